"""Several processes on one run: which this one is and which units it answers.

Under `accelerate launch` or `torchrun` the environment says how many there are. They meet only
before the work begins, so that one which dies later takes no other with it. The group is torch's
own and ends there; `accelerate.PartialState` would keep it, and a device, until the process ends.
Tests: tests/evaluation/test_evaluation_processes.py.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from causalmm.errors import FailureError, first_line

T = TypeVar("T")


class Processes(NamedTuple):
    """This process among those of a run."""

    index: int = 0
    count: int = 1
    local: int = 0
    """Among those of this machine: the number of its GPU."""

    def share(self, units: Sequence[T]) -> list[T]:
        """Every count-th unit: slow ones often lie together."""
        return list(units[self.index :: self.count])

    def wait(self) -> None:
        """Until all have come here; only within `meeting`.

        Raises FailureError where one does not come.
        """
        if self.count > 1:
            import torch

            try:
                torch.distributed.barrier()
            except RuntimeError as error:
                raise FailureError("another process of this run has stopped") from error


@contextlib.contextmanager
def meeting() -> Iterator[Processes]:
    """The processes of this run, able to wait for each other.

    Raises FailureError where they cannot be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    import torch

    try:
        # Gloo, since nothing but waiting is done: it needs no GPU and takes none.
        torch.distributed.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise FailureError(
            f"the {count} processes of this run do not find each other ({first_line(error)})"
        ) from error
    try:
        yield Processes(torch.distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()
