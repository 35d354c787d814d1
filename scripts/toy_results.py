"""The results table of a demonstration model.    python scripts/toy_results.py demo-llava"""

from causalmm.toyworld.commands.toy_results import main

if __name__ == "__main__":
    raise SystemExit(main())
