"""Ask Qwen2-VL about an image.    python -m qwen2vl_causalmm.generate --image FILE --prompt TEXT"""

from causalmm.cli import generate


def main(argv: list[str] | None = None) -> int:
    return generate.main(argv, family="qwen2_vl")


if __name__ == "__main__":
    raise SystemExit(main())
