"""What loading costs: memory of a checkpoint, weights held once, time and weight of imports.

python benchmarks/loading.py

A random LLaVA checkpoint with the packaged demonstration model's processor is written to a
temporary folder and loaded by the command's own code in a child process. Another child answers with
more and more branches: what they add is to be their rows, not weights. Imports of our packages and
of the upstream modules that they patch take turns in fresh processes. And `scripts/generate.py`,
asked for an answer, may import nothing heavy that it does not need.
Held by tests/measuring/test_benchmarks.py.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import table
from measure import (
    DTYPES,
    RESULTS,
    Bar,
    pick_device,
    ratios,
    run_command,
    spread,
    take_turns,
    write_record,
)
from PIL import Image

from causalmm.errors import FailureError
from causalmm.families import checkpoints

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("matplotlib", "gradio", "datasets", "pandas", "scipy", "sklearn")
DRAWS = (1, 2, 4)
"""Of both branches of mode "multimodal": 3, 5 and 9 rows for one."""
IMPORTS = {
    "upstream": "import causalmm\n"
    "import transformers.models.llava.modeling_llava\n"
    "import transformers.models.clip.modeling_clip\n"
    "import transformers.models.llama.modeling_llama\n"
    "import transformers.models.qwen2_vl.modeling_qwen2_vl\n",
    "ours": "from llava_causalmm import LlavaForConditionalGeneration\n"
    "from qwen2vl_causalmm import Qwen2VLForConditionalGeneration\n",
}
"""What a user of our models imports, and the modules that are patched for them. Those, too, need
torchvision to be importable."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "config.json", "training.json")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_command(run, argv)


def run(argv: list[str]) -> None:
    """Measure, write and print. Raises RequestError for what cannot be measured."""
    args = parse_args(argv)
    if args.child:
        print(json.dumps(_CHILDREN[args.child](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        size = child("save", args)["bytes"]
        loaded = {dtype: child("load", args, dtype) for dtype in (args.dtype, "float32")}
        branches = child("branches", args)
        heavy = heavy_imports(args.folder)
    results = {
        "checkpoint_bytes": size,
        "load": loaded,
        "branches": branches,
        "imports": imports(args.rounds),
        "heavy": heavy,
    }
    out = args.out or RESULTS / "loading.json"
    settings = {"preset": args.preset, "dtype": args.dtype, "rounds": args.rounds}
    device = pick_device("cpu")
    record = write_record(out, "loading", argv, device, settings, results, bars_of(results))
    print(table.show(record))


def child(what: str, args: argparse.Namespace, dtype: str | None = None) -> dict[str, Any]:
    """What this script finds in a fresh process. `dtype`: to load in, instead of the stored one."""
    command = [sys.executable, str(Path(__file__)), "--child", what, "--folder", str(args.folder)]
    command += ["--preset", args.preset, "--dtype", dtype or args.dtype]
    return json.loads(_run(command))


def imports(rounds: int) -> dict[str, Any]:
    """Seconds to import our packages, and the modules that they patch, each in a new process."""

    def importing(statements: str) -> Callable[[], float]:
        text = (
            "import time\n"
            "begun = time.perf_counter()\n"
            f"{statements}"
            "print(time.perf_counter() - begun)\n"
        )
        return lambda: float(_run([sys.executable, "-c", text]))

    seconds = take_turns({name: importing(text) for name, text in IMPORTS.items()}, rounds)
    return {name: spread(samples) for name, samples in seconds.items()} | {
        "ratio": ratios(seconds["ours"], seconds["upstream"])
    }


def heavy_imports(folder: Path) -> dict[str, list[str]]:
    """Which heavy packages are installed here, and which of them an answer imports."""
    image = folder / "picture.png"
    Image.new("RGB", (64, 64), "red").save(image)
    text = (
        "import json, runpy, sys\n"
        f"sys.argv = ['generate.py', '--image', {str(image)!r}, '--prompt', 'What is this?',\n"
        "            '--max-new-tokens', '2', '--device', 'cpu']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'scripts' / 'generate.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    if end.code: raise\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    imported = json.loads(_run([sys.executable, "-c", text]))
    return {"installed": [name for name in HEAVY if find_spec(name)], "imported": imported}


def bars_of(results: dict[str, Any]) -> list[Bar]:
    branches, size = results["branches"], results["checkpoint_bytes"]
    load = next(iter(results["load"].values()))  # in the checkpoint's own precision
    first, *_, last = branches["peaks"]
    added = (last["extra_bytes"] - first["extra_bytes"]) / (last["rows"] - first["rows"])
    imports, heavy = results["imports"], results["heavy"]["imported"]
    return [
        Bar("loading: peak memory, to the checkpoint's size", load["extra_bytes"] / size, 1.2),
        Bar("weights held, to the checkpoint's size", branches["weights_bytes"] / size, 1.01),
        Bar("a further branch: memory, to the weights", added / branches["weights_bytes"], 0.1),
        Bar("import, to upstream's modules", imports["ratio"]["median"], 1.1),
        Bar("heavy packages imported by an answer", len(heavy), 0),
    ]


# -- in a child process ------------------------------------------------------------------------


def save(args: argparse.Namespace) -> dict[str, int]:
    """Write the checkpoint."""
    import models
    import torch

    demo = Path(checkpoints.resolve("demo-llava"))
    config = models.configuration(args.preset)
    # The processor's image token; and no token that the model does not have.
    config.image_token_id = json.loads((demo / "config.json").read_text())["image_token_index"]
    upstream = models.class_of("llava", ours=False)
    model = models.build(upstream, config, DTYPES[args.dtype], torch.device("cpu"), "sdpa")
    models.fill(model)
    model.save_pretrained(args.folder, max_shard_size="200MB")
    shutil.copytree(demo, args.folder, ignore=shutil.ignore_patterns(*_WEIGHTS), dirs_exist_ok=True)
    # Pictures of the model's size: a processor that makes others is refused.
    file, size = args.folder / "processor_config.json", config.vision_config.image_size
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    file.write_text(json.dumps(settings))
    return {"bytes": sum(file.stat().st_size for file in args.folder.glob("*.safetensors"))}


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of loading it as the command does, and of reading every weight once.

    Weights of the right precision stay pages of the file until they are read.
    """
    import torch
    from memory import peak_memory

    from causalmm.families.loading import load as load_checkpoint

    kept = []

    def loading() -> None:
        kept.append(load_checkpoint(str(args.folder), dtype=args.dtype, device="cpu"))
        for part in kept[0].model.parameters():
            part.max()

    # Once before: modules are imported, and libraries take what they keep.
    load_checkpoint(checkpoints.resolve("demo-llava"), device="cpu")
    peak = peak_memory(loading, torch.device("cpu"))
    return {"extra_bytes": peak.extra, "weights_bytes": _storage_bytes(kept[0].model)}


def branches(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of answers with more and more branches, and the weights held meanwhile."""
    import models
    import torch
    from memory import peak_memory

    from causalmm import CausalMMConfig
    from causalmm.families.loading import load as load_checkpoint

    model = load_checkpoint(str(args.folder), dtype=args.dtype, device="cpu").model
    model.generation_config.eos_token_id = None
    inputs = models.prompt(args.preset, model, text_tokens=24)
    peaks = []
    for draws in DRAWS:
        plan = model.causalmm_plan(CausalMMConfig(draws=draws))

        def answer(plan: Any = plan) -> Any:
            return model.generate(**inputs, causalmm=plan, do_sample=False, max_new_tokens=4)

        answer()
        extra = peak_memory(answer, torch.device("cpu")).extra
        peaks.append({"draws": draws, "rows": plan.branches, "extra_bytes": extra})
    return {"weights_bytes": _storage_bytes(model), "peaks": peaks}


def _storage_bytes(model: Any) -> int:
    """Of everything that the model's parameters lie in, each counted once."""
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage() for part in model.parameters()
    }
    return sum(storage.nbytes() for storage in storages.values())


_CHILDREN = {"save": save, "load": load, "branches": branches}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise FailureError(f"a child process failed ({last[0]})")
    return done.stdout.strip().splitlines()[-1]


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--preset", choices=("tiny", "cpu-small"), default="cpu-small")
    add("--dtype", choices=DTYPES, default="bfloat16")
    add("--rounds", type=int, default=9, help="of imports")
    add("--out", type=Path, help="JSON file; otherwise one in benchmarks/results")
    add("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
