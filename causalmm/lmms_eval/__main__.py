"""lmms-eval beside a CPU build of torch.    python -m causalmm.lmms_eval --model ... --tasks ...

The same as the command lmms-eval, whose imports stop there at torchvision where causalmm is on the
path but not installed (see causalmm/compat.py).
"""


def main() -> None:
    """The command lmms-eval, with its flags."""
    from lmms_eval.cli.dispatch import main as run

    run()


if __name__ == "__main__":
    main()
