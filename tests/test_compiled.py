"""A compiled model edits what the uncompiled one edits, whatever the compiler makes symbolic.

Under `dynamic=True`, and after a second configuration under the default too, integers of a plan are
symbols to the compiler.
"""

import pytest
import torch
from tiny_models import FAMILIES, model_pair, pad_together, sample

from causalmm import CausalMMConfig
from causalmm.config import MODES

# The second changes what the first one's compilation took for constant.
SETTINGS = (
    {"epsilon": 0.1, "seed": 5, "gamma": 0.7},
    {
        "epsilon": 0.2,
        "seed": -(2**40),
        "gamma": 1.5,
        "vision_layers": "1:",
        "language_layers": (1, 3),
        "normalization": "released",
    },
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return model_pair(family, "sdpa")[0]


@torch.no_grad()
def check(model, family, mode, dynamic, backend, **more):
    inputs = pad_together([sample(family, seed=1, before=4), sample(family, seed=2)])
    plain = model(**inputs).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend=backend, dynamic=dynamic)
    for settings in SETTINGS:
        config = CausalMMConfig(mode=mode, **settings | more)
        wanted = model(**inputs, causalmm=config).logits
        assert (wanted - plain).abs().max() > 0.1
        torch.testing.assert_close(
            compiled(**inputs, causalmm=config).logits, wanted, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_dynamic_compilation_keeps_every_intervention(model, family, mode):
    check(model, family, mode, True, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dynamic", [None, False])
def test_any_compilation_keeps_every_intervention(model, family, mode, dynamic):
    check(model, family, mode, dynamic, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_through_autograd_too(model, family, mode, dynamic):
    check(model, family, mode, dynamic, "aot_eager", draws=2)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_generated_code_keeps_every_intervention(model, family, dynamic):
    check(model, family, "multimodal", dynamic, "inductor")
