"""CausalMM as the POPE script of its released code runs it (arXiv 2410.04780)."""

from causalmm.presets.preset import Preset

PRESET = Preset(
    name="causalmm-released",
    title="CausalMM, the released code",
    arxiv="2410.04780",
    formula="l + γ·(l − l_v), among tokens with p ≥ ε·max p; l_v with the selected image features "
    "weighed by the feature layer's attention map, its entries permuted",
    settings={
        "mode": "vision",
        "vision_method": "shuffle",
        "site": "features",
        "normalization": "released",
        "gamma": 1.0,
        "epsilon": 0.6,
        "seed": 55,
    },
    may_change=("gamma", "epsilon", "draws", "seed"),
    differs="Every token is contrasted: in the released code the branches share one KV cache, so "
    "that from the second token on equal logits are subtracted and only the mask of ε acts. The "
    "script samples at temperature 1, which is `--temperature 1`. Its permutation is drawn from a "
    "stream, here it is a function of the seed.",
    features_site=True,
)
