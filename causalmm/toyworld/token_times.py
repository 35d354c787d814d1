"""What a token costs under different settings, relative to greedy decoding without branches.

The same picture is described by all settings in turn, a round each, in one process: captions of a
fixed length, the prefill included. Processor time is measured and not wall time, so that other work
on the machine counts little. Tests: tests/toyworld/test_token_times.py.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from causalmm.config import CausalMMConfig
from causalmm.toyworld.evaluation import caption_scenes
from causalmm.toyworld.lessons import prompt_parts

TOKENS = 32
ROUNDS = 15


class Way(NamedTuple):
    """A way of answering."""

    config: CausalMMConfig | None
    sampling: Mapping[str, Any]
    """Keywords of `generate`."""


def relative_times(
    model: Any,
    processor: Any,
    family: str,
    ways: Mapping[str, Way],
    *,
    base: str,
    tokens: int = TOKENS,
    rounds: int = ROUNDS,
) -> dict[str, dict[str, Any]]:
    """By name: median and quartiles over rounds of a way's time over that of `base` in the same
    round; batch 1, one round before the first is not counted."""
    [asked] = caption_scenes(family, "development", 1)
    text = "".join(prompt_parts(family, processor, asked.question.text))
    inputs = processor(images=[asked.scene.image], text=[text], return_tensors="pt")
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens}

    def seconds(way: Way) -> float:
        torch.manual_seed(0)
        extra = {} if way.config is None else {"causalmm": way.config}
        begun = time.process_time()
        model.generate(**inputs, **extra, **length, **way.sampling)
        return time.process_time() - begun

    found = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    times = {}
    for name in ways:
        ratios = [each[name] / each[base] for each in found]
        low, value, high = np.percentile(ratios, [25, 50, 75])
        times[name] = {"value": float(value), "quartiles": [float(low), float(high)]}
    return times
