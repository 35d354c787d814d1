"""CausalMM as its paper describes it (arXiv 2410.04780)."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="causalmm",
    title="CausalMM, the paper",
    arxiv="2410.04780",
    formula="l + γ·(l − l_v) + γ·(l − l_t), among tokens with p ≥ ε·max p; l_v under random "
    "attention in the vision encoder, l_t under random attention in the decoder",
    settings={"mode": "multimodal", "vision_method": "random", "language_method": "random"},
    may_change=(
        *("gamma", "gamma_vision", "gamma_language", "epsilon"),
        *("vision_layers", "language_layers", "draws", "seed"),
    ),
    differs="The paper states neither γ nor ε, nor the layers and seeds of its tables: these are "
    "the defaults of this project. Random attention is the best of its ablation by a small margin; "
    "its ablation of layers favours about 10 to 12 of LLaVA's 32. Its answers are sampled, as far "
    "as we know; here they are greedy unless sampling is asked for.",
)
