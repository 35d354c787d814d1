"""GPU memory of models of the published shapes, computed: weights, and the KV cache of branches.

python benchmarks/gpu_memory.py
python benchmarks/gpu_memory.py --batch 8 --tokens 2048

Nothing is run and no weight is made. Weights are parameters times bytes of the dtype. A decoder
layer caches, for each of its rows, 2 x KV heads x head size numbers a token; a branch has rows of
its own in the layers that `BranchPlan.branches_in_layer` says. Activations come on top.
Tests: tests/measuring/test_gpu_memory.py.
"""

import argparse
from typing import Any

import models
import table
import torch
from measure import DTYPES, command

from causalmm import CausalMMConfig
from causalmm.errors import RequestError

MODES = {
    "plain": None,
    "language": CausalMMConfig(mode="language"),
    "vision or joint": CausalMMConfig(mode="vision"),
    "multimodal": CausalMMConfig(mode="multimodal"),
}
"""With the default layers and one draw; a joint branch has the rows of a vision branch."""


def run(argv: list[str]) -> None:
    """Print the table. Raises RequestError for what is no amount."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=int, default=1024,
        help="of prompt, pictures and answer together (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if min(args.batch, args.tokens) < 1:
        raise RequestError(f"--batch {args.batch} --tokens {args.tokens}: expected integers >= 1")
    rows = []
    for name in models.PUBLISHED:
        model = shell(name)
        for names in (("bfloat16", "float16"), ("float32",)):
            size = (args.batch, args.tokens, DTYPES[names[0]])
            weights = weight_bytes(model, DTYPES[names[0]])
            caches = [cache_bytes(model, mode, *size) for mode in MODES.values()]
            cells = [weights, *caches, weights + max(caches)]
            rows.append([name, ", ".join(names), *(f"{each / 2**30:.2f}" for each in cells)])
    columns = ["model", "dtype", "weights", *(f"cache, {name}" for name in MODES)]
    print(table.grid([*columns, "weights and largest cache"], rows))


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
    for number, layer in enumerate(model.get_decoder().layers):
        branches = 1 if plan is None else plan.branches_in_layer(number)
        attention = layer.self_attn
        numbers += branches * (attention.k_proj.out_features + attention.v_proj.out_features)
    return numbers * batch * tokens * dtype.itemsize


main = command(run)

if __name__ == "__main__":
    raise SystemExit(main())
