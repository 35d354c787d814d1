"""The presets by name: a new one is a module like vcd.py and a line here.

Flags, `--grid`, lmms-eval's arguments, the docs and the tests ask this table.
Tests: tests/presets/test_presets.py.
"""

from importlib import import_module

from causalmm.presets.preset import Preset

_MODULES = (
    "causalmm",
    "causalmm_released",
    "vcd",
    "m3id",
    "sira",
    "yard",
    "maskcd",
)
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (import_module(f"{__package__}.{name}").PRESET for name in _MODULES)
}


def find(name: str) -> Preset:
    """The preset of a name. Raises ValueError naming those that there are."""
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
