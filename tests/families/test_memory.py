"""Weights that cannot fit are refused before they are read, and none that would have fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_rows import FAMILIES
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_checkpoint
from tiny_models import model_pair

from causalmm.errors import RequestError
from causalmm.families import loading, memory

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


# What there is

MEMINFO = (
    "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   6000 kB\nSwapFree:  1000 kB\nHugePages: 0\n"
)
V2 = {"memory.max": "5000000", "memory.current": "4500000"}


def tree(folder: Path, groups: dict[str, dict[str, str]], cgroup: str) -> int | None:
    """What `memory_available` makes of such files. The machine alone has 7000 KiB."""
    files = {
        f"sys/{group}/{name}": text for group, all_ in groups.items() for name, text in all_.items()
    }
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return memory.memory_available(folder / "proc", folder / "sys")


V1 = {"memory.limit_in_bytes": "5000000", "memory.usage_in_bytes": "4500000"}
STAT_V1 = "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 20\n"
SWAP = 1000 * 1024
STAT = "anon 5\nactive_file 20\ninactive_file 300\nslab_reclaimable 4000\n"


@pytest.mark.parametrize(
    ("groups", "cgroup", "expected"),
    [
        ({}, "0::/\n", 7000 * 1024),
        ({".": {"memory.max": "max", "memory.current": "1"}}, "0::/\n", 7000 * 1024),
        ({".": V2}, "0::/\n", 500_000 + SWAP),
        ({".": V2 | {"memory.stat": STAT}}, "0::/\n", 504_320 + SWAP),
        # No swap, some of it left, or more allowed than there is.
        ({".": V2 | {"memory.swap.max": "0", "memory.swap.current": "0"}}, "0::/\n", 500_000),
        ({".": V2 | {"memory.swap.max": "90", "memory.swap.current": "20"}}, "0::/\n", 500_070),
        ({".": V2 | {"memory.swap.max": "max"}}, "0::/\n", 500_000 + SWAP),
        # Already over its limit.
        ({".": V2 | {"memory.current": "6000000"}}, "0::/\n", SWAP),
        # The group above is narrower; one beside it is none of ours.
        ({"a/b": V2, "a": V2 | {"memory.max": "4600000"}}, "0::/a/b\n", 100_000 + SWAP),
        ({"a/b": V2, "a/c": V2 | {"memory.max": "4600000"}}, "0::/a/b\n", 500_000 + SWAP),
        # In a container the path is the host's and its end is mounted.
        ({".": V2}, "0::/docker/0123\n", 500_000 + SWAP),
        # A limit above what the machine has.
        ({".": V2 | {"memory.max": str(10**15)}}, "0::/\n", 7000 * 1024),
        (
            {
                "memory/box": V1 | {"memory.stat": STAT_V1},
                "memory": V1 | {"memory.limit_in_bytes": str(2**63 - 4096)},
            },
            "9:name=systemd:/box\n4:memory:/box\n0::/\n",
            500_320 + SWAP,
        ),
        ({".": V2}, "4:cpu,memory:/\n", 7000 * 1024),
    ],
)  # fmt: skip
def test_memory_within_the_limits_of_every_control_group(tmp_path, groups, cgroup, expected):
    assert tree(tmp_path, groups, cgroup) == expected


@pytest.mark.parametrize("text", ["", "MemAvailable: 5 kB\n", "MemAvailable\nSwapFree: 1 kB\n"])
def test_a_system_that_does_not_tell_has_an_unknown_amount(tmp_path, text):
    assert memory.memory_available(tmp_path) is None
    (tmp_path / "meminfo").write_text(text)
    assert memory.memory_available(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_this_machine_has_less_than_it_is_said_to_have_in_all():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    swap = 1024 * int(Path("/proc/meminfo").read_text().partition("SwapTotal:")[2].split()[0])
    assert 2**26 < memory.bytes_available(CPU) < total + swap
    assert memory.bytes_available(torch.device("mps")) is None


# What is needed


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    return save_checkpoint(family, tmp_path)


def needed(folder, family, dtype, device=CPU):
    model, _ = model_pair(family, "sdpa")
    return memory.bytes_needed(str(folder), model.to("meta"), dtype, device)


def count(folder) -> int:
    return sum(each.numel() for each in load_file(folder / "model.safetensors").values())


def test_what_is_stored_in_another_dtype_is_allocated(family, folder):
    parameters = count(folder)
    assert needed(folder, family, torch.float32) == 0
    assert needed(folder, family, torch.bfloat16) == 2 * parameters
    assert needed(folder, family, torch.float32, CUDA) == 4 * parameters
    assert needed(folder, family, torch.float16, CUDA) == 2 * parameters
    weights = load_file(folder / "model.safetensors")
    first = sorted(weights)[0]
    half = weights | {first: weights[first].to(torch.bfloat16)}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    assert needed(folder, family, torch.float32) == 4 * weights[first].numel()
    # What the model has no use for, and what is no weight, is not loaded.
    extra = {"a": torch.zeros(9 * parameters).half(), "b": torch.zeros(9).long()}
    save_file(half | extra, folder / "model.safetensors", metadata={"format": "pt"})
    assert needed(folder, family, torch.float32) == 4 * parameters


def test_shards_are_added_up(family, folder):
    model, _ = model_pair(family, "sdpa")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    parameters = sum(each.numel() for each in model.parameters())
    assert needed(folder, family, torch.bfloat16) == 2 * parameters
    assert needed(folder, family, torch.float32) == 0


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(family, folder, zipped):
    parameters = count(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert needed(folder, family, torch.bfloat16) == 2 * parameters
    # The old format is read as a whole.
    assert needed(folder, family, torch.float32) == (0 if zipped else 4 * parameters)


def test_tables_that_share_their_words_count_once(tmp_path):
    folder = save_checkpoint("qwen2_vl", tmp_path)
    model, _ = model_pair("qwen2_vl", "sdpa")
    config = model.config
    untied = sum(each.numel() for each in model.parameters())
    config.tie_word_embeddings = True
    with torch.device("meta"):
        tied = type(model)._from_config(config)
    table = tied.lm_head.weight.numel()
    assert memory.bytes_needed(str(folder), tied, torch.float16, CUDA) == 2 * (untied - table)


MEASURED = """
import sys
from pathlib import Path
import torch
from causalmm.families.loading import load

def taken():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])

load(sys.argv[2], device="cpu")  # what is loaded once, whatever the checkpoint
before = taken()
model = load(sys.argv[1], device="cpu", dtype=sys.argv[3]).model
sum(each.float().sum() for each in model.parameters())
print(taken() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_allocates_what_is_said(tmp_path, dtype):
    small, large = save_checkpoint("llava", tmp_path / "small"), tmp_path / "large"
    save_checkpoint("llava", large)
    model, _ = model_pair("llava", "sdpa")
    config = model.config
    config.text_config.intermediate_size = 2**18
    model = type(model)._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(large)
    expected = memory.bytes_needed(str(large), model, getattr(torch, dtype), CPU)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(large), str(small), dtype],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size = 2 * sum(each.numel() for each in model.parameters())
    assert expected == (0 if dtype == "bfloat16" else 2 * size)
    # The sums above take the float32 copy of one tensor at a time, and the allocator keeps some.
    assert expected - 2**20 < int(done.stdout) < expected + size / 2


# What is said


@pytest.mark.parametrize(
    ("dtype", "device", "available", "ways"),
    [
        ("float32", "cpu", 3 * GIB, "--dtype bfloat16 or float16, a smaller model"),
        ("float32", "cpu", 2 * GIB, "--dtype bfloat16 or float16, a smaller model"),
        ("float32", "cpu", 2 * GIB - 1, "a smaller model"),
        ("float32", "cuda", 2 * GIB, "--dtype bfloat16 or float16, --device cpu, a smaller model"),
        ("float16", "cuda", 1 * GIB, "--device cpu, a smaller model"),
    ],
)
def test_a_refusal_has_both_numbers_and_what_helps(dtype, device, available, ways):
    model = torch.nn.Linear(2**15, 2**15, bias=False, device="meta")
    dtype = getattr(torch, dtype)
    size = dtype.itemsize * GIB
    device = torch.device(device)
    memory.check_fits("x/y", model, size, size, dtype, device)
    with pytest.raises(RequestError) as caught:
        memory.check_fits("x/y", model, size, available, dtype, device)
    assert str(caught.value) == (
        f"the weights of x/y take {dtype.itemsize}.0 GiB of memory in {str(dtype)[6:]}, and "
        f"{available / GIB:.1f} GiB are free on {device}: try {ways}"
    )


def test_loading_refuses_what_does_not_fit(family, folder, monkeypatch):
    parameters = count(folder)
    left = 2 * parameters
    monkeypatch.setattr(loading, "bytes_available", lambda device: left)
    assert loading.load(str(folder), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    assert loading.load(str(folder), device="cpu").model.dtype == torch.float32  # as stored
    left -= 1
    with pytest.raises(RequestError, match=r"take 0\.0 GiB of memory in bfloat16"):
        loading.load(str(folder), dtype="bfloat16", device="cpu")
    left = None
    loading.load(str(folder), dtype="bfloat16", device="cpu")


def test_quantised_weights_are_not_judged(monkeypatch):
    monkeypatch.setattr(loading, "bytes_available", lambda device: 0)
    model, _ = model_pair("llava", "sdpa")
    model.to("meta").config.quantization_config = {"quant_method": "bitsandbytes"}
    loading._check_memory("nowhere", model, "float16", CPU)


@pytest.mark.parametrize("stated", [torch.float32, torch.bfloat16, None])
def test_auto_is_the_configurations_dtype(monkeypatch, stated):
    model, _ = model_pair("llava", "sdpa")
    size = sum(each.numel() for each in model.parameters()) * (stated or torch.float16).itemsize
    model.to("meta").config.dtype = stated
    left = size
    monkeypatch.setattr(loading, "bytes_available", lambda device: left)
    loading._check_memory("nowhere", model, "auto", CUDA)
    left -= 1
    with pytest.raises(RequestError, match=f"in {str(stated or torch.float16)[6:]}, .* on cuda"):
        loading._check_memory("nowhere", model, "auto", CUDA)


@pytest.mark.slow
@pytest.mark.skipif(memory.memory_available() is None, reason="the amount of memory is unknown")
def test_the_command_refuses_a_checkpoint_larger_than_the_machine(tmp_path):
    folder = save_checkpoint("llava", tmp_path)
    wide = 2**31  # 1.6 TB in bfloat16
    settings = json.loads((folder / "config.json").read_text())
    narrow = settings["text_config"]["intermediate_size"]
    settings["text_config"]["intermediate_size"] = wide
    (folder / "config.json").write_text(json.dumps(settings))
    path = folder / "model.safetensors"
    header, end = {}, 0
    for name, each in load_file(path).items():
        shape = list(each.shape)
        if ".mlp." in name and "language_model" in name:
            shape[shape.index(narrow)] = wide
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        os.truncate(path, 8 + len(text) + end)  # a hole
    except OSError:
        pytest.skip("the file system has no files of this size")
    command = [
        sys.executable, str(ROOT / "scripts" / "generate.py"), "--model", str(folder),
        "--image", str(ROOT / "examples" / "llava_300041_helped.png"), "--prompt", "what?",
        "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [said] = done.stderr.splitlines()
    assert f"{2 * end / GIB:.1f} GiB of memory in float32, and " in said
    assert said.endswith("a smaller model")
