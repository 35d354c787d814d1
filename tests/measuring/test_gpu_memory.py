"""Computed memory is that of real caches, a little less than a GPU held, and in the docs."""

import json
from dataclasses import replace
from pathlib import Path

import gpu_memory
import models
import pytest
import torch
from transformers import DynamicCache

from causalmm import CausalMMConfig

ROOT = Path(__file__).resolve().parents[2]
MEASURED = sorted(ROOT.glob("benchmarks/results/decode-llava-1.5-7b-cuda-*.json"))


@pytest.mark.parametrize("preset", ["tiny", "tiny-qwen2-vl"])
def test_computed_bytes_are_those_of_a_real_model_and_cache(preset):
    pair = models.build_pair(
        preset, dtype=torch.float32, device=torch.device("cpu"), image_tokens=16
    )
    inputs = models.prompt(pair.ours, batch=2, image_tokens=16, text_tokens=24)
    shell = gpu_memory.shell(preset, image_tokens=16)
    weights = sum(part.nbytes for part in pair.ours.parameters())
    assert gpu_memory.weight_bytes(shell, torch.float32) == weights
    for causalmm in [*gpu_memory.MODES.values(), CausalMMConfig(mode="joint", draws=2)]:
        cache = DynamicCache(config=pair.ours.config.get_text_config())
        plan = pair.ours.causalmm_plan(causalmm)
        with torch.no_grad():
            pair.ours(**inputs, causalmm=plan, past_key_values=cache, use_cache=True)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        length = inputs["input_ids"].shape[1]
        assert gpu_memory.cache_bytes(shell, causalmm, 2, length, torch.float32) == held


def test_a_gpu_held_a_little_more_than_is_computed():
    assert MEASURED
    shell = gpu_memory.shell("llava-1.5-7b")
    for file in MEASURED:
        record = json.loads(file.read_text(encoding="utf-8"))
        settings = record["settings"]
        tokens = sum(settings[name] for name in ("image_tokens", "text_tokens", "new_tokens"))
        for row in record["results"]["rows"]:
            causalmm = gpu_memory.MODES[row["way"]]
            if causalmm is not None:  # as the default was then
                causalmm = replace(causalmm, language_layers="half:")
            computed = gpu_memory.weight_bytes(shell, torch.bfloat16) + gpu_memory.cache_bytes(
                shell, causalmm, row["batch"], tokens, torch.bfloat16
            )
            assert computed < row["peak_bytes"] < 1.1 * computed


def test_the_docs_hold_the_table(capsys):
    assert gpu_memory.main([]) == 0
    page = (ROOT / "docs" / "real-checkpoints.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in page


@pytest.mark.parametrize("flag", ["--batch", "--tokens"])
def test_refuses_what_is_no_amount(flag, capsys):
    assert gpu_memory.main([flag, "0"]) == 2
    assert f"{flag} 0" in capsys.readouterr().err
