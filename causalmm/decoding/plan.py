"""The branch plan of one call: which rows are decoded beside the factual ones and what is edited.

A branch is B rows of one batch, one a sample. The branches lie in this order, a draw each:

    [ factual | vision (or joint) branches | language branches ]

The plan is immutable and knows nothing of tensors' sizes, so one plan serves every step and thread.
It travels as the forward keyword argument `causalmm`; `VisionPass` and `LanguagePass` are the plan
at work in one forward. Tests: tests/decoding/test_plan.py and tests/decoding/test_equivalence.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from torch import Tensor

from causalmm.config import CausalMMConfig
from causalmm.counterfactual import methods
from causalmm.counterfactual.intervention import Intervention, PixelNoise
from causalmm.decoding.branch_state import answer_place
from causalmm.decoding.contrast import Contrast, adjust, expected_logits, mask_implausible
from causalmm.decoding.strength import TokenStrength
from causalmm.decoding.trace import BranchTrace, StepLogits
from causalmm.errors import FailureError
from causalmm.heads import image_heads, resolve_heads
from causalmm.layers import FULL, resolve_layers

_DERIVED = {"tower", "edited_heads", "image_heads"}
"""Fields of an intervention that others of its fields decide."""


@dataclass(frozen=True, kw_only=True)
class Towers:
    """What a plan must know of a model: how many layers of each tower can change its output."""

    vision_layers: int
    """Vision layers at or below the one whose features the model reads."""
    language_layers: int
    language_heads: int
    """Query heads of a decoder layer."""
    full_vision_layers: tuple[int, ...] | None = None
    """Those of the vision layers whose patches see their whole picture; None: all."""
    vision_entry: int | None = None
    """Vision layer by which branches must have joined, where lower features are read too."""
    features_site: bool = False
    """Whether the model has the vision site "features" (a single feature layer of CLIP)."""


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """Branches, interventions and strengths of one call. Built by `build_plan`."""

    vision: Intervention | PixelNoise | None
    language: Intervention | None
    joint: bool
    site: str
    vision_entry: int
    gamma_vision: float
    gamma_language: float
    gamma_joint: float
    epsilon: float
    strength: TokenStrength = TokenStrength()
    prefill: bool = False
    """Whether a call is part of a prompt even with one token, as the last chunk of one may be."""
    center: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Of branches whose contrast is centered, its mean: float32 [vocab]."""
    trace: BranchTrace | None = field(default=None, compare=False)

    @property
    def image_branches(self) -> int:
        """Branches with counterfactual image features of their own: vision or joint draws."""
        return self.vision.draws if self.vision else 0

    @property
    def language_branches(self) -> int:
        """Branches that join the decoder at its first edited layer; none in joint mode."""
        return self.language.draws if self.language and not self.joint else 0

    @property
    def branches(self) -> int:
        """Branches that reach the head, the factual one included."""
        return 1 + self.image_branches + self.language_branches

    def branches_in_layer(self, layer: int) -> int:
        """Branches in a decoder layer: language branches are there from their first edited on."""
        joined = self.language_branches and layer >= self.language.first_layer
        return self.branches if joined else 1 + self.image_branches

    def key_settings(self) -> dict[str, Any]:
        """The settings that decide which keys the plan leaves in a KV cache; none: the plain ones.

        `edited` layers are a truth value each, as in `Intervention`.
        """
        edits = {"vision": self.vision, "language": self.language}
        towers = [tower for tower, edit in edits.items() if edit is not None]
        if not towers:
            return {}
        mode = "joint" if self.joint else "multimodal" if len(towers) == 2 else towers[0]
        settings = {"mode": mode, "site": self.site if self.vision else None}
        for tower in towers:
            own = {name: each for name, each in vars(edits[tower]).items() if name not in _DERIVED}
            settings |= {f"{tower}_{name}": value for name, value in own.items()}
        return settings

    def contrast(self, logits: Tensor, outputs: Any) -> tuple[Tensor, Any]:
        """Adjusted logits [B, T, vocab], float32, of all branches' [branches x B, T, vocab]; and
        the decoder's `outputs` without the branches' rows, as a caller of batch B expects them.

        A backward pass through logits of several branches raises FailureError.
        """
        parts = (1, self.image_branches, self.language_branches)
        [factual], image, language = logits.unflatten(0, (self.branches, -1)).split(parts)
        factual = factual.float()
        gammas = {
            "vision": self.gamma_vision,
            "language": self.gamma_language,
            "joint": self.gamma_joint,
        }
        draws = {"joint" if self.joint else "vision": image, "language": language}
        counterfactual = {name: expected_logits(part) for name, part in draws.items() if len(part)}
        growing = self.strength.forgetting is not None
        place = answer_place(outputs.past_key_values) if growing else 1
        contrasts = [
            Contrast(self.strength.of(gammas[name], factual, place), part, self.center.get(name))
            for name, part in counterfactual.items()
        ]
        unmasked = adjust(factual, contrasts, 0)
        adjusted = mask_implausible(unmasked, factual, self.epsilon)
        if self.trace is not None:
            shown = slice(None) if self.trace.every_position else -1
            parts = {"factual": factual, "adjusted": adjusted, **counterfactual}
            if contrasts and self.epsilon > 0:
                parts["unmasked"] = unmasked
            self.trace.record(StepLogits(**{name: part[:, shown] for name, part in parts.items()}))
        if counterfactual and adjusted.requires_grad:
            adjusted.register_hook(_refuse_gradient)
        return adjusted, self._factual_outputs(outputs)

    def _factual_outputs(self, outputs: Any) -> Any:
        if self.branches == 1:
            return outputs
        batch = outputs.last_hidden_state.shape[0] // self.branches
        for name in ("hidden_states", "attentions"):
            if (layers := getattr(outputs, name)) is not None:
                outputs[name] = tuple(layer if layer is None else layer[:batch] for layer in layers)
        return outputs


def _refuse_gradient(gradient: Tensor) -> NoReturn:
    # Counterfactual attention is computed in place, block by block: of some methods a backward
    # pass would be an error of autograd, or NaN under gradient checkpointing.
    raise FailureError("causalmm has no gradient: expected causalmm=None for a backward pass")


def build_plan(
    config: CausalMMConfig, towers: Towers, trace: BranchTrace | None = None
) -> BranchPlan | None:
    """Resolve a configuration against a model; None where it would change nothing.

    A branch whose strength is 0 at every token is left out. Raises ValueError for layers the model
    does not have or that cannot reach its output, and for a vision site it does not have.
    """
    growing = config.schedule == "growing"
    if growing and config.forgetting == 0:  # exp(0) - 1 is a strength of 0
        config = replace(config, gamma=0.0, gamma_vision=None, gamma_language=None)
    gamma_joint = config.gamma if config.mode == "joint" else 0.0
    joint = gamma_joint > 0
    vision = language = None
    if joint or config.vision_strength > 0:
        vision = _vision_intervention(config, towers)
    if joint or config.language_strength > 0:
        language = _language_intervention(config, towers)
    if joint:
        draws = max(vision.draws, language.draws)
        vision, language = replace(vision, draws=draws), replace(language, draws=draws)
    if vision is None and language is None and config.epsilon == 0 and trace is None:
        return None
    entry = 0 if vision is None else vision.first_layer
    return BranchPlan(
        vision=vision,
        language=language,
        joint=joint,
        site=config.site,
        vision_entry=entry if towers.vision_entry is None else min(entry, towers.vision_entry),
        gamma_vision=config.vision_strength,
        gamma_language=config.language_strength,
        gamma_joint=gamma_joint,
        epsilon=config.epsilon,
        strength=TokenStrength(
            forgetting=config.forgetting if growing else None, confident=config.confident
        ),
        trace=trace,
    )


def _vision_intervention(config: CausalMMConfig, towers: Towers) -> Intervention | PixelNoise:
    if config.vision_method == methods.NOISE.name:
        return PixelNoise(
            method=config.vision_method,
            noise_step=config.noise_step,
            seed=config.seed,
            draws=config.draws,
        )
    if towers.vision_layers == 0:
        raise ValueError("the model reads its image features below every vision layer")
    count = towers.vision_layers
    if config.site == "attention":
        layers = resolve_layers(
            "vision_layers", config.vision_layers, count, towers.full_vision_layers
        )
        return _intervention("vision", config.vision_method, layers, count, config)
    if not towers.features_site:
        raise ValueError(
            "site='features' needs a model with one vision feature layer (LLaVA, LLaVA-NeXT); "
            "expected 'attention'"
        )
    if config.vision_layers not in (FULL, "all"):
        raise ValueError(
            f"vision_layers={config.vision_layers!r}: site='features' edits the feature layer's "
            f"map only; leave vision_layers at {FULL!r}"
        )
    return _intervention("vision", config.vision_method, (count - 1,), count, config)


def _language_intervention(config: CausalMMConfig, towers: Towers) -> Intervention:
    count, spec = towers.language_layers, config.language_heads
    layers = resolve_layers("language_layers", config.edited_language_layers, count)
    edit = _intervention("language", config.language_method, layers, count, config)
    heads = resolve_heads("language_heads", spec, layers, towers.language_heads)
    edited_heads = heads and tuple(
        tuple(head in heads.get(layer, ()) for head in range(towers.language_heads))
        for layer in range(count)
    )
    return replace(
        edit,
        scope=config.language_scope,
        heads=spec,
        edited_heads=edited_heads,
        image_heads=image_heads(spec),
    )


def _intervention(
    tower: str, name: str, layers: tuple[int, ...], count: int, config: CausalMMConfig
) -> Intervention:
    method = methods.find(tower, name)
    return Intervention(
        tower=tower,
        method=name,
        # No `in`: both numbers may be symbols of a compiler.
        edited=tuple(any(number == layer for layer in layers) for number in range(count)),
        normalization=config.normalization,
        # A deterministic method knows no seed, and its draws are all the same: one is exact.
        seed=config.seed if method.stochastic else 0,
        draws=config.draws if method.stochastic else 1,
    )
