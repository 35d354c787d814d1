"""What a page may take is a whole number above 0 everywhere."""

from dataclasses import fields

import pytest

from causalmm.app.limits import Limits


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_other_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected an integer >= 1$"):
        Limits(**{name: value})
