"""The settings of CausalMM, each declared once.

A field carries its default, what it may be, how a value is checked, its help and its flag. The
command lines, lmms-eval's model arguments and the table in docs/settings.md derive from it.
Tests: tests/test_config.py.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from causalmm.counterfactual.methods import (
    LANGUAGE_METHODS,
    NOISE,
    NORMALIZATIONS,
    SCOPES,
    VISION_CHOICES,
    find,
)
from causalmm.heads import EXPECTED as HEADS_EXPECTED
from causalmm.heads import check_heads
from causalmm.layers import EXPECTED, FULL, LayerSpec, check_layers
from causalmm.presets.registry import find as find_preset

CONFIG_NAME = "causalmm_config.json"
MODES = ("vision", "language", "multimodal", "joint")
SITES = ("attention", "features")
SCHEDULES = ("constant", "growing")
BRANCHES = ("vision", "language", "joint")
CENTERING = ("center", "center_sha256", "constant_branch")
"""Settings that any preset may be given besides its own."""
ADJUSTMENT = (
    *("gamma", "gamma_vision", "gamma_language", "schedule", "forgetting", "confident", "epsilon"),
    *CENTERING,
)
"""Settings of the contrast: the others decide what the branches say."""
ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Attention code of transformers under which branches can be decoded."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Of a checkpoint's weights; "auto": the checkpoint's own, float32 on a CPU."""
SCOPE_LAYERS = {"all": "third:+3", "image": "third:"}
"""The decoder layers edited by default under each scope. With scope "all" a wide window leaves a
branch that says one word (docs/how-it-works.md); answers read the picture from about a third of the
depth on (YARD, arXiv 2605.31429, for LLaVA-1.5; between layers 5 and 18 of 32 by 2411.16724)."""
MAX_STRENGTH = 10**6
"""Of a contrast: beyond it, float32 cannot hold the difference that is left of two logits."""
_STRENGTH = {"least": 0, "most": MAX_STRENGTH, "metavar": "G"}


def choice(
    default: str | None,
    choices: tuple[str, ...],
    help: str,
    flag_choices: tuple[str, ...] | None = None,
) -> Any:
    """A field that is one of `choices`; its flag may take others (`flag_choices`)."""

    def check(name: str, value: object) -> object:
        if value not in choices:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")
        return value

    limits = {"choices": choices}
    return setting(default, help, check, limits, choices=flag_choices or choices)


def number(
    default: float | None,
    help: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    metavar: str,
) -> Any:
    """A field that is a number from `least` to `most` and greater than `above`; a whole one where
    the default is an int."""
    whole = isinstance(default, int)
    types = int if whole else int | float
    expected = "an integer" if whole else "a number"
    if most < math.inf:
        expected += f" from {least} to {most:,}"
    elif least > -math.inf:
        expected += f" >= {least}"
    if above > -math.inf:
        expected = f"a number above {above} and at most {most:,}"

    def check(name: str, value: object) -> object:
        known = isinstance(value, types) and not isinstance(value, bool)
        if not known or not least <= value <= most or not above < value < math.inf:
            raise ValueError(f"{name}={value!r}: expected {expected}")
        return value

    flag = {"type": int if whole else float, "metavar": metavar}
    limits = {"least": least, "most": most, "above": above}
    return setting(default, f"{help}: {expected}", check, limits, **flag)


def layers(default: str | None, help: str) -> Any:
    """A field that says which layers of a tower are edited."""
    return setting(default, f"{help}: {EXPECTED}", check_layers, {}, metavar="LAYERS")


def center(help: str) -> Any:
    """A field that names the file of a center, or none."""

    def check(name: str, value: object) -> object:
        if value == "none":
            return None
        if not isinstance(value, str | Path) or Path(value).suffix != ".safetensors":
            raise ValueError(f"{name}={value!r}: expected a .safetensors file, or none")
        return str(value)

    return setting(None, help, check, {"suffix": ".safetensors"}, metavar="FILE")


def sha256(help: str) -> Any:
    """A field that is the SHA-256 of a file."""

    def check(name: str, value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{name}={value!r}: expected 64 hexadecimal digits, in small letters")
        return value

    return setting(None, help, check, {}, metavar="HEX")


def heads(default: str, help: str) -> Any:
    """A field that says which heads of the decoder are edited."""
    return setting(default, f"{help}: {HEADS_EXPECTED}", check_heads, {}, metavar="HEADS")


def setting(default: Any, help: str, check: Any, limits: Mapping[str, Any], **flag: Any) -> Any:
    """`check` takes name and value, returns the value as it is stored and raises ValueError.

    `limits` says what it allows to whoever offers values: the `choices`, or the `least`, `most` and
    `above` of a number, or the `suffix` of a file, or, for other text, nothing. `flag` holds the
    options of argparse.
    """
    metadata = {"help": help, "check": check, "limits": limits, "flag": flag}
    return field(default=default, metadata=metadata)


def check_fields(declared: Any) -> None:
    """Check the `setting` fields of a frozen dataclass; for its `__post_init__`.

    Raises ValueError for a value that is not allowed.
    """
    for each in fields(declared):
        value = getattr(declared, each.name)
        if "check" in each.metadata and (value is not None or each.default is not None):
            object.__setattr__(declared, each.name, each.metadata["check"](each.name, value))


@dataclass(frozen=True, kw_only=True)
class CausalMMConfig:
    """Settings of backdoor-adjusted contrastive decoding (CausalMM, arXiv 2410.04780).

    Checked at construction: a value that is not allowed raises ValueError naming the field, the
    value and what is allowed. Layer numbers are checked against the model when it is first used.
    """

    mode: str = choice(
        "multimodal",
        MODES,
        "branches decoded beside the factual one; multimodal: one of each tower, joint: one with "
        "both interventions, plain (a flag's value only): none",
        flag_choices=("plain", *MODES),
    )
    vision_method: str = choice(
        "random",
        VISION_CHOICES,
        f"counterfactual of the vision encoder; {NOISE.name}: of its pixels, by noise_step",
    )
    language_method: str = choice("random", LANGUAGE_METHODS, "counterfactual of the decoder")
    vision_layers: LayerSpec = layers(
        FULL,
        "vision layers, of those below the one that is read; full: those whose patches see their "
        "whole picture, which are all but in Qwen2.5-VL",
    )
    language_scope: str = choice(
        "all",
        SCOPES,
        "all: weights of all visible keys are edited; image: those of the image keys of text "
        "tokens alone, and the rest stays factual",
    )
    language_layers: LayerSpec | None = layers(
        None,
        "decoder layers; where none are given, "
        + ", ".join(f'"{spec}" with scope {scope}' for scope, spec in SCOPE_LAYERS.items()),
    )
    language_heads: str = heads("all", "query heads of the edited decoder layers")
    gamma: float = number(1.0, "contrast strength of every branch, 0 leaves them out", **_STRENGTH)
    gamma_vision: float | None = number(
        None, "the vision branch's, in the place of gamma; not in mode joint", **_STRENGTH
    )
    gamma_language: float | None = number(
        None, "the language branch's, in the place of gamma; not in mode joint", **_STRENGTH
    )
    schedule: str = choice(
        "constant",
        SCHEDULES,
        "growing: strengths are multiplied by exp(L t) - 1 at the t-th token of the answer (M3ID)",
    )
    forgetting: float = number(0.02, "L of the growing schedule", least=0, metavar="L")
    confident: float = number(
        1.0,
        "branches act only where the best token's plain probability is below A, 1: everywhere",
        above=0,
        most=1,
        metavar="A",
    )
    epsilon: float = number(
        0.1, "tokens below E x p(best token) come after all others", least=0, most=1, metavar="E"
    )
    center: str | None = center(
        "what each branch's contrast is on average, subtracted from it: a file that `diagnose "
        "--center` made, or none"
    )
    center_sha256: str | None = sha256("that the file must have")
    constant_branch: str | None = choice(
        None, BRANCHES, "the branch that `diagnose --center` found to be constant, which is told"
    )
    draws: int = number(1, "samples of a stochastic method, averaged", least=1, metavar="S")
    normalization: str = choice(
        "visible",
        NORMALIZATIONS,
        "visible: weights are normalised over the visible keys; released: the released formulas",
    )
    site: str = choice(
        "attention",
        SITES,
        "edit attention in the encoder, or weigh the features (LLaVA, LLaVA-NeXT)",
    )
    noise_step: int = number(
        500,
        f"step of the diffusion schedule of vision method {NOISE.name}",
        least=0,
        most=999,
        metavar="T",
    )
    seed: int = number(0, "of the counterfactuals and, as a flag, of sampling", metavar="N")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.vision_method == NOISE.name:
            self._check_noise()
        else:
            find("vision", self.vision_method).formula(self.normalization)
        find("language", self.language_method).formula(self.normalization, self.language_scope)
        for name in ("gamma_vision", "gamma_language"):
            if self.mode == "joint" and (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}={value}: mode 'joint' has one branch and one strength, `gamma`"
                )
        if self.center is None and self.center_sha256 is not None:
            raise ValueError(f"center_sha256={self.center_sha256!r}: expected a center that has it")

    def _check_noise(self) -> None:
        """Raise ValueError for a setting that noise on the pixels cannot follow."""
        for name, allowed in (
            ("vision_layers", (FULL, "all")),
            ("site", ("attention",)),
            ("normalization", ("visible",)),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"{name}={value!r}: vision method {NOISE.name!r} changes the pixels and edits "
                    f"no attention of the vision encoder; expected {allowed[0]!r}"
                )

    @property
    def edited_language_layers(self) -> LayerSpec:
        """`language_layers`, or where it is None the default of the scope."""
        return self.language_layers or SCOPE_LAYERS[self.language_scope]

    @property
    def stochastic(self) -> bool:
        """Whether a branch that acts is drawn, so that another seed gives other answers."""
        joint = self.mode == "joint" and self.gamma > 0
        vision = joint or self.vision_strength > 0
        language = joint or self.language_strength > 0
        drawn = self.vision_method == NOISE.name or find("vision", self.vision_method).stochastic
        return (vision and drawn) or (
            language and find("language", self.language_method).stochastic
        )

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

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "CausalMMConfig":
        """The settings of a published method (causalmm/presets), some of them changed.

        Raises ValueError for an unknown name, and for a setting that would make it another method.
        """
        declared = find_preset(name)
        own, config = cls(**declared.settings), cls(**(dict(declared.settings) | overrides))
        for each in overrides:
            value = getattr(own, each)
            allowed = (*declared.may_change, *CENTERING)
            if each not in allowed and getattr(config, each) != value:
                raise ValueError(
                    f"{each}={overrides[each]!r}: preset {name!r} has {value!r}; it may be given "
                    f"{', '.join(declared.may_change)}"
                )
        return config

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `causalmm_config.json` into `folder` (made if missing); return its path.

        A center in the folder is named relative to it, another one absolutely.
        """
        path = Path(folder) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        values = self.to_dict()
        if self.center is not None:
            file, here = Path(self.center).resolve(), path.parent.resolve()
            inside = file.is_relative_to(here)
            values["center"] = file.relative_to(here).as_posix() if inside else str(file)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "CausalMMConfig":
        """Read a folder's `causalmm_config.json`, or a JSON file given by its own path.

        A `center` that is no absolute path lies relative to the file's folder.
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
        if isinstance(file := values.get("center"), str) and file != "none":
            values["center"] = os.path.join(path.parent, file)
        return cls.from_dict(values)

    def read_center(self) -> tuple[bytes, str]:
        """The file of `center`, and its SHA-256.

        Raises ValueError where it cannot be read or has another one than `center_sha256`.
        """
        try:
            data = Path(self.center).read_bytes()
        except OSError as error:
            raise ValueError(
                f"center={self.center!r}: the file cannot be read ({error.strerror})"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        if self.center_sha256 not in (None, digest):
            raise ValueError(
                f"center={self.center!r}: its SHA-256 is {digest}, expected center_sha256="
                f"{self.center_sha256}: another file, or one that was made again"
            )
        return data, digest
