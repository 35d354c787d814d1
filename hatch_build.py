"""Write the vendored modeling files before a wheel or an editable install is made."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VendorHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        patching = load_patching(root)
        try:
            notes = patching.build(root)
        except patching.PatchError as error:
            # pip shows what a build prints: the sentence is enough, a traceback would bury it.
            raise SystemExit(str(error)) from error
        for note in notes:
            self.app.display_warning(note)


def load_patching(root: Path) -> ModuleType:
    """causalmm/vendoring/patching.py by its path: at this point the package is not installed."""
    spec = importlib.util.spec_from_file_location(
        "patching", root / "causalmm" / "vendoring" / "patching.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
