"""Layer specifications follow Python's slices, name half and third, and refuse the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalmm.layers import check_layers, resolve_layers


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", range(9)),
        (":", range(9)),
        ("half:", range(4, 9)),
        (":half", range(4)),
        ("third:-third", range(3, 6)),
        ("-third:", range(6, 9)),
        ("-2:", range(7, 9)),
        ("third:+3", range(3, 6)),
        ("7:+3", range(7, 9)),
        ("-4:+2", range(5, 7)),
        ("2:5", range(2, 5)),
        ("::4", (0, 4, 8)),
        ("7, 1", (1, 7)),
        ([3, -1, 3], (3, 8)),
    ],
)
def test_selects(spec, expected):
    assert resolve_layers("layers", check_layers("layers", spec), 9) == tuple(expected)


@given(st.integers(1, 40), st.data())
def test_numbers_in_range_equal_python_slices(count, data):
    bound = st.none() | st.integers(-count, count)
    start, stop = data.draw(bound), data.draw(bound)
    spec = f"{'' if start is None else start}:{'' if stop is None else stop}"
    expected = tuple(range(count))[start:stop]
    if expected:
        assert resolve_layers("layers", spec, count) == expected
    else:
        with pytest.raises(ValueError, match="selects none of the"):
            resolve_layers("layers", spec, count)


@pytest.mark.parametrize("count", range(1, 40))
def test_a_window_at_a_third_fits_every_depth(count):
    layers = resolve_layers("layers", "third:+3", count)
    assert layers == tuple(range(count))[count // 3 :][:3]
    assert layers


@pytest.mark.parametrize(
    "spec",
    ["", "some", "1:2:3:4", "half", [], [1.5], [True], None, "1:x", "third:+0", ":+3", "1:+2:1"],
)
def test_refuses_what_no_model_has(spec):
    with pytest.raises(ValueError, match=r"vision_layers=.*expected \"all\", \"full\""):
        check_layers("vision_layers", spec)


@pytest.mark.parametrize("spec", ["0:10", "-10:", (9,), (-10,), "10:+2"])
def test_refuses_layers_outside_the_tower(spec):
    with pytest.raises(ValueError, match="outside the 9 layers an edit can act on, 0 to 8"):
        resolve_layers("layers", spec, 9)


def test_refuses_a_step_of_zero():
    with pytest.raises(ValueError, match="step"):
        resolve_layers("layers", "::0", 9)
