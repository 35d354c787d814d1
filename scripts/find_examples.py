"""Find the scenes of examples/.    python scripts/find_examples.py"""

from causalmm.toyworld.commands.find_examples import main

if __name__ == "__main__":
    raise SystemExit(main())
