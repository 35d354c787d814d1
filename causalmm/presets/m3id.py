"""M3ID, multi-modal mutual information decoding (arXiv 2403.14003)."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="m3id",
    title="M3ID",
    arxiv="2403.14003",
    formula="l + γ·(exp(λt) − 1)·(l − l_t) at the t-th token of the answer, where the best token "
    "has p < α; l_t of text that sees no picture in any layer",
    settings={
        "mode": "language",
        "language_method": "blind",
        "language_scope": "image",
        "language_layers": "all",
        "gamma": 1.0,
        "schedule": "growing",
        "forgetting": 0.02,
        "confident": 0.3,
        "epsilon": 0.0,
    },
    may_change=("gamma", "forgetting", "confident", "epsilon", "seed"),
    differs="The formula, λ 0.02 and α 0.3 were read in agreeing notes and in other "
    "implementations, not in the paper itself. The paper contrasts log-probabilities, which gives "
    "the same probabilities as these logits. Whether t begins at 0 or 1 is open: here, and in the "
    "package mitigv, it begins at 1, so that a one-word answer is contrasted with a strength of "
    "0.02. One note has t + 10 for POPE, which other readings do not have; `--forgetting 0.22` "
    "gives a first token that strength. Which prompt the model without a picture gets is open, "
    "too: here the picture's tokens keep their places and are hidden in all layers; mitigv leaves "
    "them out, so that the text moves to earlier positions. By what we could read of the paper "
    "both are M3ID.",
)
