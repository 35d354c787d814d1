"""Benchmarks: ask, score, compare.    python scripts/evaluate.py pope run --help"""

from causalmm.evaluation.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
