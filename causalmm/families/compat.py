"""Make torchvision importable beside a CPU build of torch.

torchvision's wheels are built for CUDA torch. Beside a CPU build its compiled operators do not load
and importing it stops at `operator torchvision::nms does not exist`, although the Python transforms
that transformers' processors need would work. Declaring the schemas of the missing operators first
lets the import through; calling one of them still fails, and nothing here does.

Importing `causalmm` (or a model package, which imports it) adds a finder to `sys.meta_path`, and
nothing else: it acts when torchvision is first imported, by whomever, and only where that stops for
this reason. The installed `causalmm_torchvision.pth` (from env/torchvision.pth) imports `causalmm`
when Python starts, so that even code that imports transformers first finds it in place. Therefore
neither this module nor `causalmm/__init__.py` imports what the interpreter has not loaded itself.
Held by tests/families/test_compat.py.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing for it would take longer than all else here
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_MISSING = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
# A library's declarations end with the object, so it lives as long as the process.
_declared: list = []


def watch_torchvision() -> None:
    """Let torchvision be imported where only its operators are missing. Twice is as once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchvision where the finders after it do, and gives it a `_Loader`."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            if (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """A module's own loader, which is tried again with the operators declared if it needs them."""

    def __init__(self, own) -> None:
        self.own = own

    def __getattr__(self, name: str):
        return getattr(self.own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # As after an import without us.
        module.__spec__.loader = module.__loader__ = self.own
        try:
            self.own.exec_module(module)
        except RuntimeError as error:
            if _MISSING not in str(error):
                raise
            # A clean second try: also without what an import that stopped before us has left.
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
                vars(module).pop(name.removeprefix("torchvision."), None)
            _declare_operators()
            self.own.exec_module(module)


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}{_SCHEMA}")
    _declared.append(library)
