"""A control for each field of `CausalMMConfig`, made from the field's declaration.

What a control holds is text, but for sliders and files, and an empty text stands for None. Numbers
that may be large or left open are text too: gradio's box for a number shows and sends 0 for None.
Tests: tests/app/test_controls.py.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

import gradio as gr

from causalmm.config import CausalMMConfig

FIELDS = fields(CausalMMConfig)
NONE = ""
"""Stands for None where a text or a choice may be left open."""
_SLIDER = 1000
"""The widest range that a slider is for."""


def control(setting: Field, config: CausalMMConfig) -> gr.components.Component:
    """The control of a setting, with its value in `config`."""
    limits = setting.metadata["limits"]
    shared = {
        "label": setting.name,
        "info": setting.metadata["help"],
        "value": shown(setting, config),
        "elem_id": f"setting-{setting.name}",
        "interactive": True,
    }
    if "choices" in limits:
        open_choice = [("none", NONE)] if setting.default is None else []
        choices = [*open_choice, *((each, each) for each in limits["choices"])]
        return gr.Dropdown(choices=choices, filterable=False, **shared)
    if _is_slider(setting):
        step = 1 if isinstance(setting.default, int) else 0.001
        least = max(limits["least"], limits["above"] + step)
        return gr.Slider(least, limits["most"], step=step, **shared)
    if "suffix" in limits:
        # It has no room for help.
        gr.Markdown(f"{setting.name}: {shared.pop('info')}", elem_id=f"help-{setting.name}")
        return gr.File(file_types=[limits["suffix"]], height=110, **shared)
    return gr.Textbox(max_lines=1, **shared)


def shown(setting: Field, config: CausalMMConfig) -> Any:
    """The value of a setting as its control holds it."""
    value = getattr(config, setting.name)
    if isinstance(value, tuple):
        return ",".join(str(each) for each in value)
    if _is_text(setting):
        return NONE if value is None else str(value)
    return value


def all_shown(config: CausalMMConfig) -> list[Any]:
    """The values of all settings, in the order of the fields."""
    return [shown(each, config) for each in FIELDS]


def settings(values: Sequence[Any]) -> dict[str, Any]:
    """What the controls hold, in the order of the fields, as settings by name."""
    return {each.name: _read(each, value) for each, value in zip(FIELDS, values, strict=True)}


def configuration(values: Sequence[Any], preset: str | None) -> CausalMMConfig:
    """What the controls hold as a configuration, or as a changed `preset`.

    Raises ValueError for a value that is not allowed, and for one that would make a preset another
    method.
    """
    given = settings(values)
    return CausalMMConfig(**given) if preset is None else CausalMMConfig.preset(preset, **given)


def _read(setting: Field, value: Any) -> Any:
    if not _is_text(setting):
        return value
    if setting.default is None and value == NONE:
        return None
    if "least" in setting.metadata["limits"]:
        with contextlib.suppress(ValueError):  # what is no number is refused as it stands
            return setting.metadata["flag"]["type"](value)
    return value


def _is_text(setting: Field) -> bool:
    return "suffix" not in setting.metadata["limits"] and not _is_slider(setting)


def _is_slider(setting: Field) -> bool:
    limits = setting.metadata["limits"]
    return "least" in limits and limits["most"] - max(limits["least"], limits["above"]) <= _SLIDER


def whole_number(value: Any, name: str, most: int) -> int:
    """A count from 1 to `most`. Raises ValueError for another value."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not 1 <= value <= most:
        raise ValueError(f"{name}={value!r}: expected an integer from 1 to {most:,}")
    return int(value)
