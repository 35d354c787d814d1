"""Ask LLaVA about an image.    python -m llava_causalmm.generate --image FILE --prompt TEXT"""

from causalmm.cli import generate


def main(argv: list[str] | None = None) -> int:
    return generate.main(argv, family="llava")


if __name__ == "__main__":
    raise SystemExit(main())
