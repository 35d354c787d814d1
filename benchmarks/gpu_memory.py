"""GPU memory of models of the published shapes, computed: weights, and the KV cache of branches.

python benchmarks/gpu_memory.py
python benchmarks/gpu_memory.py --batch 8 --tokens 2048

Nothing is run and no weight is made. Weights are parameters times bytes of the dtype. A decoder
layer caches, for each of its rows, 2 x KV heads x head size numbers a token; a branch has rows of
its own in the layers that `BranchPlan.branches_in_layer` says. Activations come on top.
Held by tests/measuring/test_gpu_memory.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import models
import table
import torch
from measure import DTYPES, run_command

from causalmm import CausalMMConfig
from causalmm.errors import RequestError

PRESETS = ("llava-1.5-7b", "qwen2-vl-2b", "qwen2-vl-7b")
"""Shapes of published checkpoints."""
MODES = {
    "plain": None,
    "language": CausalMMConfig(mode="language"),
    "vision or joint": CausalMMConfig(mode="vision"),
    "multimodal": CausalMMConfig(mode="multimodal"),
}
"""With the default layers and one draw; a joint branch has the rows of a vision branch."""


def main(argv: list[str] | None = None) -> int:
    return run_command(run, argv)


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--tokens",
        type=int,
        default=1024,
        help="of prompt, pictures and answer together (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if min(args.batch, args.tokens) < 1:
        raise RequestError(f"--batch {args.batch} --tokens {args.tokens}: expected integers >= 1")
    print(show(args.batch, args.tokens))


def show(batch: int, tokens: int, presets: Sequence[str] = PRESETS) -> str:
    """The table, in Markdown: a model and dtype a row, GiB."""
    shells = {name: shell(name) for name in presets}
    rows = []
    for name, model in shells.items():
        for names in (("bfloat16", "float16"), ("float32",)):
            dtype = DTYPES[names[0]]
            weights = weight_bytes(model, dtype)
            caches = [cache_bytes(model, mode, batch, tokens, dtype) for mode in MODES.values()]
            cells = [weights, *caches, weights + max(caches)]
            rows.append([name, ", ".join(names), *(f"{each / 2**30:.2f}" for each in cells)])
    columns = ["model", "dtype", "weights", *(f"cache, {name}" for name in MODES)]
    return table.grid([*columns, "weights and largest cache"], rows)


def shell(name: str, image_tokens: int = 576) -> Any:
    """The model of a preset, for images of so many tokens, without its weights (device "meta")."""
    config = models.configuration(name, image_tokens)
    with torch.device("meta"):
        model = models.class_of(config.model_type, ours=True)._from_config(config)
    model.tie_weights()
    return model


def weight_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of a model's weights."""
    return dtype.itemsize * sum(part.numel() for part in model.parameters())


def cache_bytes(
    model: Any, causalmm: CausalMMConfig | None, batch: int, tokens: int, dtype: torch.dtype
) -> int:
    """Bytes of the keys and values of `batch` samples of so many tokens each, branches included."""
    plan = model.causalmm_plan(causalmm)
    numbers = 0
    for number, layer in enumerate(model.model.language_model.layers):
        branches = 1 if plan is None else plan.branches_in_layer(number)
        attention = layer.self_attn
        numbers += branches * (attention.k_proj.out_features + attention.v_proj.out_features)
    return numbers * batch * tokens * dtype.itemsize


if __name__ == "__main__":
    raise SystemExit(main())
