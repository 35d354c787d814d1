"""Several processes on one run: shares, and meeting before the work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalmm.errors import FailureError
from causalmm.evaluation.processes import Processes, meeting


@given(units=st.lists(st.integers()), count=st.integers(1, 9))
def test_shares_are_all_there_is_once(units, count):
    shares = [Processes(index, count).share(units) for index in range(count)]
    assert sorted(unit for share in shares for unit in share) == sorted(units)
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with meeting() as processes:
        processes.wait()
    assert processes == Processes(index=0, count=1, local=0)


def test_processes_that_do_not_find_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    sentence = "the 2 processes of this run do not find each other"
    with pytest.raises(FailureError, match=sentence), meeting():
        pass
