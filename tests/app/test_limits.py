"""What a page may take is a whole number above 0 everywhere."""

from dataclasses import fields

import pytest

from causalmm.app import command
from causalmm.app.limits import MOST_WAITING, Limits
from causalmm.errors import RequestError


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_other_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected an integer >= 1$"):
        Limits(**{name: value})


def test_no_more_may_wait_than_the_server_has_threads_for():
    args = command.parse_args(["--queue", str(MOST_WAITING)])
    assert command.read_limits(args).waiting == MOST_WAITING
    args = command.parse_args(["--queue", str(MOST_WAITING + 1)])
    with pytest.raises(RequestError, match="^waiting=33: expected at most 32$"):
        command.read_limits(args)
