"""Ask Qwen3-VL about an image.

python -m qwen3vl_causalmm.generate --image FILE --prompt TEXT
"""

from causalmm.cli import generate
from qwen3vl_causalmm.family import FAMILY


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return generate.main(argv, family=FAMILY.name)


if __name__ == "__main__":
    raise SystemExit(main())
