"""Ask LLaVA-NeXT about an image.

python -m llavanext_causalmm.generate --image FILE --prompt TEXT
"""

from causalmm.cli import generate
from llavanext_causalmm.family import FAMILY


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return generate.main(argv, family=FAMILY.name)


if __name__ == "__main__":
    raise SystemExit(main())
