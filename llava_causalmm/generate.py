"""Ask LLaVA about an image.    python -m llava_causalmm.generate --image FILE --prompt TEXT"""

from causalmm import cli


def main(argv: list[str] | None = None) -> int:
    return cli.main(argv, family="llava")


if __name__ == "__main__":
    raise SystemExit(main())
