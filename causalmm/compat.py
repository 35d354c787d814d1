"""Make torchvision importable beside a CPU build of torch.

torchvision's wheels are built for CUDA torch. Beside a CPU build its compiled operators do not load
and importing it stops at `operator torchvision::nms does not exist`, although the Python transforms
that transformers' processors need would work. Declaring the schemas of the missing operators first
lets the import through; calling one of them still fails, and nothing here does.
"""

import importlib
import importlib.util
import sys

_MISSING = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
# A library's declarations end with the object, so it lives as long as the process.
_declared: list = []


def ensure_torchvision() -> None:
    """Declare the operators where importing torchvision fails for want of them, else do nothing.

    To be called before transformers looks for torchvision. Calling it again does nothing; a
    torchvision that is not installed, or broken in another way, is left to whoever imports it.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            return
        _forget_partial_import()
        _declare_operators()
        importlib.import_module("torchvision")


def _forget_partial_import() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}{_SCHEMA}")
    _declared.append(library)
