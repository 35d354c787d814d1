"""A compiled model edits what the uncompiled one edits, whatever the compiler makes symbolic.

Under `dynamic=True`, and after a second configuration under the default too, integers of a plan are
symbols to the compiler.
"""

import pytest
import torch
from family_rows import fast_first
from tiny_models import model_pair, pad_together, sample

from causalmm import CausalMMConfig
from causalmm.config import MODES
from causalmm.counterfactual.attention_mask import visible_keys
from causalmm.decoding.plan import Towers, build_plan

# The second changes what the first one's compilation took for constant.
SETTINGS = (
    {"epsilon": 0.1, "seed": 5, "gamma": 0.7},
    {
        "epsilon": 0.2,
        "seed": -(2**40),
        "gamma": 1.5,
        "vision_layers": "1:",
        "language_layers": (0, 2),
        "normalization": "released",
    },
)
SCOPED = (
    {"language_scope": "image", "language_method": "blind", "language_heads": "image:2"},
    {"language_scope": "image", "language_layers": "all", "language_heads": {1: [0, 3]}},
)


@pytest.fixture(scope="module")
def model(family):
    return model_pair(family, "sdpa", layers=3)[0]  # a layer takes seconds to compile


@torch.no_grad()
def check(model, family, mode, dynamic, backend, settings=SETTINGS):
    inputs = pad_together([sample(family, seed=1, before=4), sample(family, seed=2)])
    plain = model(**inputs).logits
    tolerance = 3e-5 if backend == "inductor" else 1e-5  # inductor reorders float32 sums
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend=backend, dynamic=dynamic)
    for each in settings:
        config = CausalMMConfig(mode=mode, **each)
        wanted = model(**inputs, causalmm=config).logits
        assert (wanted - plain).abs().max() > 0.1
        torch.testing.assert_close(
            compiled(**inputs, causalmm=config).logits, wanted, atol=tolerance, rtol=1e-5
        )


@pytest.mark.parametrize("dynamic", fast_first(1, [None, True, False]))
@pytest.mark.parametrize("given", ["configuration", "plan"])
def test_no_compiler_loses_a_layer(dynamic, given):
    """What a layer asks of its plan, compiled by itself, for one configuration after another."""
    towers = Towers(vision_layers=6, language_layers=6, language_heads=4)

    def asked(x, causalmm):
        plan = causalmm if given == "plan" else build_plan(causalmm, towers)
        edited = [x + number for number in range(7) if plan.language.edits(number)]
        rows = [x * plan.branches_in_layer(number) for number in range(7)]
        return torch.stack(edited), torch.stack(rows)

    torch._dynamo.reset()
    compiled = torch.compile(asked, backend="eager", dynamic=dynamic, fullgraph=True)
    x = torch.ones(3)
    for layers in ("half:", "1:5:2", (2, 4), (-1,), "all", "third:"):
        config = CausalMMConfig(language_layers=layers, draws=2, seed=7)
        causalmm = build_plan(config, towers) if given == "plan" else config
        for found, wanted in zip(compiled(x, causalmm), asked(x, causalmm), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_mask_that_cannot_be_read_stops(backend):
    """What is checked without a compiler is checked with one, in one graph."""

    def positions(mask):
        return visible_keys(mask, 0, 6).numbered().positions

    causal = torch.ones(6, 6).tril()[None, None]
    good = torch.zeros_like(causal).masked_fill(causal == 0, -torch.inf)
    window = good.masked_fill(causal.tril(-3) == 1, -torch.inf)
    torch._dynamo.reset()
    compiled = torch.compile(positions, backend=backend, fullgraph=True)
    assert torch.equal(compiled(good), positions(good))
    for bad, words in ((window, "a sliding window"), (good - causal, "hidden or visible")):
        for run, error in ((positions, ValueError), (compiled, RuntimeError)):
            with pytest.raises(error, match=words):
                run(bad)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_a_compiled_forward_keeps_every_intervention(model, family, mode, dynamic):
    # By itself, the default makes integers symbols from the second configuration on.
    check(model, family, mode, dynamic, "eager", SETTINGS if dynamic is None else SETTINGS[1:])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["language", "joint"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_it_keeps_scopes_and_heads(model, family, mode, dynamic):
    check(model, family, mode, dynamic, "eager", SCOPED)


# Inductor with symbols for all lengths simplifies the expressions of random weights for hours.
OTHERS = [
    *[("aot_eager", True, mode) for mode in MODES],
    ("aot_eager", None, "multimodal"),
    ("aot_eager", False, "multimodal"),
    ("inductor", None, "multimodal"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dynamic", "mode"), OTHERS)
def test_so_do_other_backends(model, family, backend, dynamic, mode):
    check(model, family, mode, dynamic, backend, SETTINGS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_other_backends_keep_scopes_and_heads(model, family, backend):
    check(model, family, "language", None, backend, SCOPED[:1])
