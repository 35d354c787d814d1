"""lmms-eval beside a CPU build of torch.    python -m causalmm.lmms_eval --model ... --tasks ...

The same as the command lmms-eval, whose imports stop there at torchvision where causalmm is on the
path but not installed (see causalmm/families/compat.py).
"""

from importlib.util import find_spec

from causalmm.cli.terminal import exit_code
from causalmm.errors import FailureError


def main() -> int:
    """The command lmms-eval, with its flags. Raises FailureError where it is not installed."""
    if find_spec("lmms_eval") is None:
        raise FailureError(
            "lmms-eval is not installed: it needs an environment of its own, made by "
            "env/requirements-lmms-eval.txt"
        )
    from lmms_eval.cli.dispatch import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
