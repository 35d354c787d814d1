"""SIRA (arXiv 2605.14621): a branch that loses the picture from half of the depth on."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="sira",
    title="SIRA",
    arxiv="2605.14621",
    formula="l + γ·(l − l_t); l_t of text that sees no picture from half of the decoder's layers "
    "on (γ is the paper's α)",
    settings={
        "mode": "language",
        "language_method": "blind",
        "language_scope": "image",
        "language_layers": "half:",
        "gamma": 0.5,
        "epsilon": 0.0,
    },
    may_change=("gamma", "epsilon", "seed"),
    differs="Formula, α 0.5 and the fork at half of the depth (layer 16 of LLaVA-1.5-7B's 32, 14 "
    "of Qwen2.5-VL-7B's 28) were read in a note on the paper, not in the paper itself, and no code "
    "was found. In the paper the picture's own tokens see no picture either; here they stay "
    "factual, which changes nothing, since no text sees them. Whether tokens are ruled out by "
    "their probability is open: here ε is 0.",
    least_language_layers=2,
)
