"""YARD (arXiv 2605.31429): a branch that loses the picture from a third of the depth on."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="yard",
    title="YARD, without its register token",
    arxiv="2605.31429",
    formula="l + γ·(l − l_t), among tokens with p ≥ ε·max p; l_t of text that sees no picture from "
    "a third of the decoder's layers on (γ and ε are the paper's α and τ)",
    settings={
        "mode": "language",
        "language_method": "blind",
        "language_scope": "image",
        "language_layers": "third:",
        "gamma": 1.0,
        "epsilon": 0.1,
    },
    may_change=("gamma", "epsilon", "language_layers", "seed"),
    differs="The paper keeps a register token in both branches: a further slot of the vision "
    "encoder, which takes over the activations of some neurons. By which pictures and threshold "
    "these neurons are found, in Qwen2-VL's encoder above all, it leaves open, so there is no "
    "register here. Its own table has such a branch, with all picture tokens dropped, at 85.1 % on "
    "POPE, and 86.1 % with the register. It states no τ (ε is the default here), and the layer for "
    "LLaVA-1.5-7B alone: 10 of 32, a third. It removes the picture's keys; here they are hidden, "
    "and the text keeps its positions.",
    least_language_layers=3,
)
