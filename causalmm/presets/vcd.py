"""Visual contrastive decoding, VCD (arXiv 2311.16922)."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="vcd",
    title="VCD",
    arxiv="2311.16922",
    formula="l + γ·(l − l_v), among tokens with p ≥ ε·max p; l_v of the picture noised by a "
    "diffusion schedule (γ and ε are the paper's α and β)",
    settings={
        "mode": "vision",
        "vision_method": "noise",
        "noise_step": 500,
        "gamma": 1.0,
        "epsilon": 0.1,
    },
    may_change=("gamma", "epsilon", "noise_step", "draws", "seed"),
    differs="The paper takes step 500 for MME and LLaVA-Bench and 999 for POPE, and a POPE script "
    "of its code has β 0.2. It samples at temperature 1, which is `--temperature 1`. Its noise is "
    "drawn anew for every question, here it is a function of the seed and the place in the "
    "picture. The Qwen models, which the paper does not have, take a still picture twice, as two "
    "frames: each gets noise of its own.",
)
