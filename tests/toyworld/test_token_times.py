"""Times are ratios to the base within a round, their median and quartiles."""

import time

import pytest

from causalmm.config import CausalMMConfig
from causalmm.families.loading import load
from causalmm.toyworld import CHECKPOINTS, token_times
from causalmm.toyworld.token_times import Way, relative_times


def test_median_and_quartiles_of_ratios_within_a_round(monkeypatch):
    """Three rounds after one that does not count; all of the third are twice as slow."""
    asked = []

    class Model:
        def generate(self, **keywords):
            asked.append(keywords)

    durations = [9, 9, 1, 2, 1, 4, 2, 6]  # base and other by turns
    clock = iter([moment for each in durations for moment in (0, each)])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    monkeypatch.setattr(token_times, "prompt_parts", lambda *_: ("prompt",))
    ways = {
        "base": Way(None, {"do_sample": False}),
        "other": Way(CausalMMConfig(mode="vision"), {"do_sample": True, "top_k": 0}),
    }
    found = relative_times(Model(), lambda **_: {}, "llava", ways, base="base", tokens=5, rounds=3)
    assert found["base"] == {"value": 1, "quartiles": [1, 1]}
    assert found["other"] == {"value": 3, "quartiles": [2.5, 3.5]}
    assert asked[0] == {"min_new_tokens": 5, "max_new_tokens": 5, "do_sample": False}
    assert asked[1]["causalmm"] == CausalMMConfig(mode="vision")
    assert asked[1]["top_k"] == 0
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("model", "family"), [("demo-llava", "llava"), ("demo-qwen2vl", "qwen2_vl")]
)
def test_branches_cost_time(model, family):
    ways = {"greedy": Way(None, {"do_sample": False})}
    ways["branches"] = Way(CausalMMConfig(draws=3), {"do_sample": False})
    loaded = load(str(CHECKPOINTS / model), device="cpu")
    found = relative_times(*loaded, family, ways, base="greedy", tokens=4, rounds=3)
    assert found["greedy"]["value"] == 1
    assert found["branches"]["value"] > 1
