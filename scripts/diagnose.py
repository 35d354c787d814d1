"""Which layers to edit?    python scripts/diagnose.py --questions FILE --images FOLDER --out DIR"""

from causalmm.evaluation.diagnosis.command import main

if __name__ == "__main__":
    raise SystemExit(main())
