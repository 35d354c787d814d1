"""Whether a checkpoint's weights fit into memory, before they are read.

Linux kills a process that takes more memory than there is, without a word to its user. What is
counted is the least that loading must allocate: on a CPU, weights that are stored in the dtype
asked for stay in their files, mapped into memory, and take none. Where it cannot be told what
there is, nothing is refused. Held by tests/families/test_memory.py.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from transformers.modeling_utils import load_state_dict, str_to_torch_dtype

from causalmm.config import DTYPES
from causalmm.errors import RequestError
from causalmm.families.weight_files import weight_files

# Files of a control group with its limit and its use, and what of memory.stat is taken back when
# memory runs short.
_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def check_fits(
    source: str,
    model: Any,
    needed: int,
    available: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise RequestError, with both numbers and what helps, where `needed` bytes are too many.

    `model` is the checkpoint's model without weights (on device "meta").
    """
    if needed <= available:
        return
    parameters = _parameters(model)
    fitting = [
        name
        for name in DTYPES
        if name != "auto" and parameters * getattr(torch, name).itemsize <= available
    ]
    ways = [f"--dtype {' or '.join(fitting)}"] if fitting else []
    ways += ["--device cpu"] if device.type != "cpu" else []
    raise RequestError(
        f"the weights of {source} take {_gib(needed)} of memory in "
        f"{str(dtype).removeprefix('torch.')}, and {_gib(available)} are free on {device}: try "
        f"{', '.join([*ways, 'a smaller model'])}"
    )


def bytes_needed(source: str, model: Any, dtype: torch.dtype, device: torch.device) -> int:
    """The least bytes that loading allocates for the weights of a folder or hub id.

    On a CPU, those in safetensors and in torch's zip files that have this dtype take none. Raises
    RequestError where there are no weights, and what reading a damaged file raises.
    """
    parameters = _parameters(model)
    if device.type != "cpu":
        return parameters * dtype.itemsize
    converted = 0
    for file in weight_files(source):
        if file.endswith(".safetensors"):
            stored = _sizes(file)
        elif is_zipfile(file):
            stored = [(each.dtype, each.numel()) for each in load_state_dict(file).values()]
        else:  # torch's old format, which cannot be mapped
            return parameters * dtype.itemsize
        converted += sum(size for kind, size in stored if kind.is_floating_point and kind != dtype)
    # A file may hold tensors that the model has no use for.
    return min(converted, parameters) * dtype.itemsize


def bytes_available(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where that cannot be told."""
    if device.type == "cpu":
        return memory_available()
    if device.type != "cuda" or torch.cuda.get_device_properties(device).is_integrated:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for reuse is not free to others, but is to us.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def memory_available(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes of Linux's memory, swap included, within the limits of every control group we are in.

    None on other systems.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        pairs = (line.split(":") for line in lines)
        kilobytes = {name: int(value.split()[0]) for name, value in pairs}
        swap = 1024 * kilobytes["SwapFree"]
        machine = 1024 * kilobytes["MemAvailable"] + swap
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return min([machine, *_left_in_groups(proc, cgroups, swap)])


def _left_in_groups(proc: Path, cgroups: Path, swap: int) -> Iterator[int]:
    """Bytes left in each control group above this process that has a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, files = cgroups, _V2
        elif "memory" in controllers.split(","):
            base, files = cgroups / "memory", _V1
        else:
            continue
        # In a container the path may be the host's, and what is mounted here its end.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if (left := _left_in(group, *files, swap)) is not None:
                yield left
            if group == base:
                break


def _left_in(
    group: Path, limit_file: str, used_file: str, cache: Sequence[str], swap: int
) -> int | None:
    limit, used = _number(group / limit_file), _number(group / used_file)
    if limit is None or used is None:
        return None
    # Version 1 has no such files.
    swap_limit, swapped = _number(group / "memory.swap.max"), _number(group / "memory.swap.current")
    if swap_limit is not None and swapped is not None:
        swap = min(swap, max(0, swap_limit - swapped))
    with contextlib.suppress(OSError, ValueError):  # without it, all that is used stays used
        lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        used -= sum(int(value) for name, value in lines if name in cache)
    return max(0, limit - used) + swap


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no file, or no limit in it ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _sizes(file: str) -> list[tuple[torch.dtype, int]]:
    """Dtype and numbers of each tensor of a safetensors file, of which only the header is read."""
    # Not mapped: a file larger than the machine's memory cannot be.
    with safe_open(file, framework="pt", backend="pread") as opened:
        stored = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118
        return [
            (str_to_torch_dtype[each.get_dtype()], math.prod(each.get_shape())) for each in stored
        ]


def _parameters(model: Any) -> int:
    return sum(each.numel() for each in model.parameters())


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
