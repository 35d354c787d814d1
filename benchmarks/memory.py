"""The most memory that a call holds at a time, beyond what was held before.

On CUDA the allocator counts. On a CPU the kernel does: the process gives back what its allocator
keeps for later, resets the mark of its largest resident size, and reads it again after the call.
So whatever the call touches counts, scratch space inside of libraries too. That needs Linux; and
the allocator does not go back to its habits, so measure time before memory, or elsewhere. A used
heap reads too high: large free blocks stay resident. So what is small is read in a process of its
own (`fresh_processes`), which calls `settle_heap` before it makes a tensor.
Tests, on allocations of known size: tests/measuring/test_benchmarks.py.
"""

import ctypes
import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import synchronize

from causalmm.errors import RequestError

_RESET_PEAK = "5"  # of /proc/self/clear_refs
_MMAP_THRESHOLD = -3  # of glibc's mallopt


class Peak(NamedTuple):
    """Bytes."""

    extra: int
    """The most that was held beyond what was held before the call."""
    total: int
    """The most that was held."""


def peak_memory(call: Callable[[], Any], device: torch.device) -> Peak:
    """The peak of one call, its result included.

    Raises RequestError where it cannot be read.
    """
    gc.collect()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        synchronize(device)
        most = torch.cuda.max_memory_allocated(device)
    else:
        settle_heap()
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        except OSError as error:
            raise RequestError("peak memory on a CPU is read from Linux's /proc") from error
        before = resident("VmRSS")
        result = call()
        most = resident("VmHWM")
    del result
    return Peak(max(0, most - before), most)


def resident(field: str) -> int:
    """Bytes of this process by /proc/self/status: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    if match := re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE):
        return int(match[1]) * 1024
    raise RequestError(f"/proc/self/status has no {field}")


def fresh_processes() -> ProcessPoolExecutor:
    """Runs what it is given in a new process each, forked from one that has imported what takes
    long and has done nothing else."""
    context = get_context("forkserver")
    # Of installed modules: not every Python hands this folder on to that process.
    context.set_forkserver_preload(
        ["causalmm.counterfactual.attention", "causalmm.families.loading"]
    )
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def settle_heap() -> None:
    """Return free memory to the system, and from now on all large blocks as they are freed."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        # Left alone, the allocator learns from each large block that is freed to keep such blocks.
        library.mallopt(_MMAP_THRESHOLD, 1 << 17)
        library.malloc_trim(0)
