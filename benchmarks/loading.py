"""What loading costs: memory of a checkpoint, and weights held once whatever the branches.

python benchmarks/loading.py

A random LLaVA checkpoint with the packaged demonstration model's processor is written to a
temporary folder and loaded by the command's own code in a fresh process. Another one answers with
more and more branches: they may add their rows, but no weights.
Tests: tests/measuring/test_benchmarks.py.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import measure
import models
import torch
from measure import Bar
from memory import fresh_processes, peak_memory

from causalmm import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.families import checkpoints
from causalmm.families.loading import load as load_checkpoint

CPU = torch.device("cpu")
DRAWS = (1, 2, 4)
"""Of both branches of mode "multimodal": 3, 5 and 9 rows for one."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "config.json", "training.json")


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    if args.device != "cpu":
        raise RequestError(f"device {args.device!r}: loading is measured on cpu")
    with tempfile.TemporaryDirectory() as name, fresh_processes() as processes:
        folder = Path(name)
        size = processes.submit(save, folder, args.preset, args.dtype).result()
        dtypes = dict.fromkeys((args.dtype, "float32"))
        results = {
            "checkpoint_bytes": size,
            "load": {dtype: processes.submit(load, folder, dtype).result() for dtype in dtypes},
            "branches": processes.submit(branches, folder, args.dtype).result(),
        }
    measure.finish("loading", argv, args, results, bars_of(results))


def bars_of(results: dict[str, Any]) -> list[Bar]:
    """Those of memory."""
    branches, size = results["branches"], results["checkpoint_bytes"]
    load = next(iter(results["load"].values()))  # in the checkpoint's own precision
    first, *_, last = branches["peaks"]
    added = (last["extra_bytes"] - first["extra_bytes"]) / (last["rows"] - first["rows"])
    return [
        Bar("loading: peak memory, to the checkpoint's size", load["extra_bytes"] / size, 1.2),
        Bar("weights held, to the checkpoint's size", branches["weights_bytes"] / size, 1.01),
        Bar("a further branch: memory, to the weights", added / branches["weights_bytes"], 0.1),
    ]


# -- in a fresh process ------------------------------------------------------------------------


def save(folder: Path, preset: str, dtype: str) -> int:
    """Write the checkpoint; return the bytes of its weights."""
    demo = Path(checkpoints.resolve("demo-llava"))
    config = models.configuration(preset)
    # The processor's image token; and no token that the model does not have.
    config.image_token_id = json.loads((demo / "config.json").read_text())["image_token_index"]
    upstream = models.class_of(config.model_type, ours=False)
    model = models.build(upstream, config, measure.DTYPES[dtype], CPU)
    models.fill(model)
    model.save_pretrained(folder, max_shard_size="200MB")
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns(*_WEIGHTS), dirs_exist_ok=True)
    # Pictures of the model's size: a processor that makes others is refused.
    file, size = folder / "processor_config.json", config.vision_config.image_size
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    file.write_text(json.dumps(settings))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load(folder: Path, dtype: str) -> dict[str, int]:
    """Peak memory of loading it as the command does, and of reading every weight once.

    Weights of the right precision stay pages of the file until they are read.
    """
    kept = []

    def loading() -> None:
        kept.append(load_checkpoint(str(folder), dtype=dtype, device="cpu"))
        for part in kept[0].model.parameters():
            part.max()

    # Once before: modules are imported, and libraries take what they keep.
    load_checkpoint(checkpoints.resolve("demo-llava"), device="cpu")
    peak = peak_memory(loading, CPU)
    return {"extra_bytes": peak.extra, "weights_bytes": _storage_bytes(kept[0].model)}


def branches(folder: Path, dtype: str) -> dict[str, Any]:
    """Peak memory of answers with more and more branches, and the weights held meanwhile."""
    model = load_checkpoint(str(folder), dtype=dtype, device="cpu").model
    model.generation_config.eos_token_id = None
    inputs = models.prompt(model, text_tokens=24)
    peaks = []
    for draws in DRAWS:
        plan = model.causalmm_plan(CausalMMConfig(draws=draws))

        def answer(plan: Any = plan) -> Any:
            return model.generate(**inputs, causalmm=plan, do_sample=False, max_new_tokens=4)

        answer()
        extra = peak_memory(answer, CPU).extra
        peaks.append({"draws": draws, "rows": plan.branches, "extra_bytes": extra})
    return {"weights_bytes": _storage_bytes(model), "peaks": peaks}


def _storage_bytes(model: Any) -> int:
    """Of everything that the model's parameters lie in, each counted once."""
    storages = [part.untyped_storage() for part in model.parameters()]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--preset", choices=("tiny", "cpu-small"), default="cpu-small")
    return parser.parse_args(argv)


main = measure.command(run)

if __name__ == "__main__":
    raise SystemExit(main())
