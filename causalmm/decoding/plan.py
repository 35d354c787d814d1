"""The branch plan of one call: which rows are decoded beside the factual ones and what is edited.

A branch is B rows of one batch, one a sample. The branches lie in this order, a draw each:

    [ factual | vision (or joint) branches | language branches ]

The plan is immutable and knows nothing of tensors' sizes, so one plan serves every step and thread.
It travels as the forward keyword argument `causalmm`; `VisionPass` and `LanguagePass` are the plan
at work in one forward. Tests: tests/decoding/test_plan.py and tests/decoding/test_equivalence.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from causalmm.config import CausalMMConfig
from causalmm.counterfactual import methods
from causalmm.counterfactual.intervention import Intervention
from causalmm.counterfactual.methods import Method
from causalmm.decoding.contrast import Contrast, adjust, expected_logits
from causalmm.decoding.trace import BranchTrace, StepLogits
from causalmm.layers import resolve_layers


@dataclass(frozen=True, kw_only=True)
class Towers:
    """What a plan must know of a model: how many layers of each tower can change its output."""

    vision_layers: int
    """Vision layers at or below the one whose features the model reads."""
    language_layers: int
    vision_entry: int | None = None
    """Vision layer by which branches must have joined, where lower features are read too."""
    features_site: bool = False
    """Whether the model has the vision site "features" (a single feature layer, LLaVA)."""


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """Branches, interventions and strengths of one call. Built by `build_plan`."""

    vision: Intervention | None
    language: Intervention | None
    joint: bool
    site: str
    vision_entry: int
    gamma_vision: float
    gamma_language: float
    gamma_joint: float
    epsilon: float
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

        Edited layers are a truth value each, as in `Intervention`.
        """
        edits = {"vision": self.vision, "language": self.language}
        towers = [tower for tower, edit in edits.items() if edit is not None]
        settings: dict[str, Any] = {}
        if towers:
            mode = "joint" if self.joint else "multimodal" if len(towers) == 2 else towers[0]
            settings |= {"mode": mode, "site": self.site if self.vision else None}
        for tower in towers:
            settings |= {f"{tower}_{name}": value for name, value in vars(edits[tower]).items()}
        return settings

    def contrast(self, logits: Tensor) -> Tensor:
        """Adjusted logits [B, T, vocab], float32, of all branches' [branches x B, T, vocab]."""
        per_branch = logits.unflatten(0, (self.branches, -1))
        factual = per_branch[0].float()
        counterfactual: dict[str, Tensor] = {}
        if self.image_branches:
            name = "joint" if self.joint else "vision"
            counterfactual[name] = expected_logits(per_branch[1 : 1 + self.image_branches])
        if self.language_branches:
            counterfactual["language"] = expected_logits(per_branch[1 + self.image_branches :])
        strengths = {
            "vision": self.gamma_vision,
            "language": self.gamma_language,
            "joint": self.gamma_joint,
        }
        contrasts = [Contrast(strengths[name], branch) for name, branch in counterfactual.items()]
        adjusted = adjust(factual, contrasts, self.epsilon)
        if self.trace is not None:
            last = {name: branch[:, -1] for name, branch in counterfactual.items()}
            self.trace.record(StepLogits(factual=factual[:, -1], adjusted=adjusted[:, -1], **last))
        return adjusted

    def factual_outputs(self, outputs):
        """The model outputs without the branches' rows, as a caller of batch B expects them."""
        if self.branches == 1:
            return outputs
        batch = outputs.last_hidden_state.shape[0] // self.branches
        for name in ("hidden_states", "attentions"):
            if (layers := getattr(outputs, name)) is not None:
                outputs[name] = tuple(layer if layer is None else layer[:batch] for layer in layers)
        return outputs


def build_plan(
    config: CausalMMConfig, towers: Towers, trace: BranchTrace | None = None
) -> BranchPlan | None:
    """Resolve a configuration against a model; None where it would change nothing.

    A branch whose strength is 0 is left out. Raises ValueError for layers the model does not have
    or that cannot reach its output, and for a vision site it does not have.
    """
    gamma_joint = config.gamma if config.mode == "joint" else 0.0
    joint = gamma_joint > 0
    vision = language = None
    if joint or config.vision_strength > 0:
        vision = _vision_intervention(config, towers)
    if joint or config.language_strength > 0:
        count = towers.language_layers
        layers = resolve_layers("language_layers", config.language_layers, count)
        method = methods.find("language", config.language_method)
        language = _intervention(method, layers, count, config)
    if joint:
        draws = max(vision.draws, language.draws)
        vision, language = replace(vision, draws=draws), replace(language, draws=draws)
    if vision is None and language is None and config.epsilon == 0 and trace is None:
        return None
    return BranchPlan(
        vision=vision,
        language=language,
        joint=joint,
        site=config.site,
        vision_entry=_vision_entry(vision, towers),
        gamma_vision=config.vision_strength,
        gamma_language=config.language_strength,
        gamma_joint=gamma_joint,
        epsilon=config.epsilon,
        trace=trace,
    )


def _vision_intervention(config: CausalMMConfig, towers: Towers) -> Intervention:
    if towers.vision_layers == 0:
        raise ValueError("the model reads its image features below every vision layer")
    method = methods.find("vision", config.vision_method)
    if config.site == "attention":
        layers = resolve_layers("vision_layers", config.vision_layers, towers.vision_layers)
        return _intervention(method, layers, towers.vision_layers, config)
    if not towers.features_site:
        raise ValueError(
            "site='features' needs a model with one vision feature layer (LLaVA); "
            "expected 'attention'"
        )
    if config.vision_layers != "all":
        raise ValueError(
            f"vision_layers={config.vision_layers!r}: site='features' edits the feature layer's "
            "map only; leave vision_layers at 'all'"
        )
    last = towers.vision_layers - 1
    return _intervention(method, (last,), towers.vision_layers, config)


def _vision_entry(vision: Intervention | None, towers: Towers) -> int:
    """The layer at which counterfactual images join the encoder: the first that is edited."""
    if vision is None:
        return 0
    limit = towers.vision_entry
    return vision.first_layer if limit is None else min(vision.first_layer, limit)


def _intervention(
    method: Method, layers: tuple[int, ...], count: int, config: CausalMMConfig
) -> Intervention:
    return Intervention(
        method=method.name,
        # No `in`: both numbers may be symbols of a compiler.
        edited=tuple(any(number == layer for layer in layers) for number in range(count)),
        normalization=config.normalization,
        # A deterministic method knows no seed, and its draws are all the same: one is exact.
        seed=config.seed if method.stochastic else 0,
        draws=config.draws if method.stochastic else 1,
    )
