"""Head specifications: one stored form for equal ones, and the rest refused."""

import pytest

from causalmm.heads import check_heads, image_heads, resolve_heads


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        ("all", "all"),
        ("image:3", "image:3"),
        ("3, 0,3", "0,3"),
        ([3, 0], "0,3"),
        ({11: [5], 2: (3, 0)}, "2=0,3;11=5"),
        ("11=5; 2=3,0", "2=0,3;11=5"),
    ],
)
def test_equal_ones_have_one_form(spec, stored):
    assert check_heads("language_heads", spec) == stored
    assert check_heads("language_heads", stored) == stored


@pytest.mark.parametrize(
    "spec",
    ["", "some", "image:", "image:0", "-1", "1=2;1=3", "1=", "=2", [], {}, [1.5], None, 3, {1: []}],
)
def test_others_are_refused(spec):
    with pytest.raises(ValueError, match='language_heads=.*expected "all", heads such as 0,3'):
        check_heads("language_heads", spec)


def test_resolved_against_a_model():
    layers = (2, 4)
    assert resolve_heads("language_heads", "all", layers, 4) is None
    assert resolve_heads("language_heads", "image:2", layers, 4) is None
    assert resolve_heads("language_heads", "0,3", layers, 4) == {2: (0, 3), 4: (0, 3)}
    assert resolve_heads("language_heads", "4=1", layers, 4) == {4: (1,)}
    assert image_heads("image:2") == 2
    assert image_heads("0,3") == 0
