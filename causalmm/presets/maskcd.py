"""MaskCD (arXiv 2510.02790): a branch whose image heads do not see the picture."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="maskcd",
    title="MaskCD, its image heads found in the prompt",
    arxiv="2510.02790",
    formula="l + γ·(l − l_t), among tokens with p ≥ ε·max p; l_t where the heads with the most "
    "attention on the picture do not see it",
    settings={
        "mode": "language",
        "language_method": "blind",
        "language_scope": "image",
        "language_layers": "third:",
        "language_heads": "image:1",
    },
    may_change=("gamma", "epsilon", "language_layers", "language_heads", "seed"),
    differs="Of the paper only the abstract could be read, and notes on it. It finds image heads "
    "once for each language model, on other pictures, by a threshold, and sets their whole output "
    "to zero; here they are the K heads of a layer with the most attention on the picture in the "
    "prompt, and lose their view of it alone. Its threshold, strength and layers are unknown "
    "to us: γ and ε are the defaults here, K and layers are chosen by `diagnose` on adversarial "
    "POPE, development scenes. There no K gained AUC measurably on either demonstration model; "
    "from a third of the layers on, 1 cost the least accuracy (2 points on `demo-qwen2vl`, where 4 "
    "cost 9), and all layers cost 9 to 11 points on `demo-llava`.",
    least_language_layers=3,
)
