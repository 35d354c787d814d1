"""What to falsify, how hard to lean away from it, and how to repeat the run.

Every default of the method lives in `CausalMMConfig`; command lines read them from here.
Held by tests/test_config.py.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from causalmm.counterfactual.methods import (
    LANGUAGE_METHODS,
    NORMALIZATIONS,
    TOWERS,
    VISION_METHODS,
    find,
)
from causalmm.layers import LayerSpec, check_layers

CONFIG_NAME = "causalmm_config.json"
MODES = ("vision", "language", "multimodal", "joint")
SITES = ("attention", "features")
ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Attention code of transformers under which branches can be decoded."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Of a checkpoint's weights; "auto": the checkpoint's own, float32 on a CPU."""
MAX_STRENGTH = 1e6
"""Of a contrast: beyond it, float32 cannot hold the difference that is left of two logits."""


@dataclass(frozen=True, kw_only=True)
class CausalMMConfig:
    """Settings of backdoor-adjusted contrastive decoding (CausalMM, arXiv 2410.04780).

    Checked at construction: a value that is not allowed raises ValueError naming the field, the
    value and what is allowed. Layer numbers are checked against the model when it is first used.
    """

    mode: str = "multimodal"
    """Branches decoded beside the factual one: "vision", "language", "multimodal" (one of each) or
    "joint" (one branch that carries both interventions)."""
    vision_method: str = "random"
    language_method: str = "random"
    vision_layers: LayerSpec = "all"
    """Of the layers below the one whose features the model reads."""
    language_layers: LayerSpec = "half:"
    gamma: float = 1.0
    """Contrast strength, up to `MAX_STRENGTH`; 0 leaves the branch out."""
    gamma_vision: float | None = None
    """Overrides `gamma` for the vision branch; None: `gamma`. Not for mode "joint"."""
    gamma_language: float | None = None
    epsilon: float = 0.1
    """Adaptive plausibility: tokens below epsilon x p(best token) come after all others; 0 keeps
    all in their order."""
    draws: int = 1
    """Counterfactual draws of a stochastic method (random, shuffle), averaged."""
    normalization: str = "visible"
    """"visible": weights share out the visible keys; "released": the released code's formulas."""
    site: str = "attention"
    """Vision: edit "attention" in the encoder, or weigh the selected "features" (LLaVA only)."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, MODES)
        _check_choice("vision_method", self.vision_method, VISION_METHODS)
        _check_choice("language_method", self.language_method, LANGUAGE_METHODS)
        _check_choice("normalization", self.normalization, NORMALIZATIONS)
        _check_choice("site", self.site, SITES)
        for tower in TOWERS:
            find(tower, getattr(self, f"{tower}_method")).formula(self.normalization)
        for name in ("vision_layers", "language_layers"):
            object.__setattr__(self, name, check_layers(name, getattr(self, name)))
        _check_strength("gamma", self.gamma)
        for name in ("gamma_vision", "gamma_language"):
            value = getattr(self, name)
            if value is None:
                continue
            _check_strength(name, value)
            if self.mode == "joint":
                raise ValueError(
                    f"{name}={value}: mode 'joint' has one branch and one strength, `gamma`"
                )
        if not _is_number(self.epsilon) or not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon!r}: expected a number in [0, 1]")
        if not _is_int(self.draws) or self.draws < 1:
            raise ValueError(f"draws={self.draws!r}: expected an integer >= 1")
        if not _is_int(self.seed):
            raise ValueError(f"seed={self.seed!r}: expected an integer")

    @property
    def vision_strength(self) -> float:
        """γ_v of the vision branch; 0 where the mode has none."""
        if self.mode not in ("vision", "multimodal"):
            return 0.0
        return self.gamma if self.gamma_vision is None else self.gamma_vision

    @property
    def language_strength(self) -> float:
        """γ_t of the language branch; 0 where the mode has none."""
        if self.mode not in ("language", "multimodal"):
            return 0.0
        return self.gamma if self.gamma_language is None else self.gamma_language

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable copy that `from_dict` reads back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CausalMMConfig":
        """Build from `to_dict`'s form; missing keys take their defaults.

        Raises ValueError for an unknown key or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown setting {unknown[0]!r}: expected one of {', '.join(known)}")
        return cls(**values)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `causalmm_config.json` into `folder` (made if missing); return its path."""
        path = Path(folder) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "CausalMMConfig":
        """Read a folder's `causalmm_config.json`, or a JSON file given by its own path.

        Raises FileNotFoundError where there is none, ValueError where it cannot be read.
        """
        path = Path(source)
        if path.is_dir():
            path = path / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no CausalMM configuration at {path}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}")


def _check_strength(name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value <= MAX_STRENGTH:
        raise ValueError(f"{name}={value!r}: expected a number from 0 to {MAX_STRENGTH:,.0f}")
