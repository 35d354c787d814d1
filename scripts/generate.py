"""Ask a model about an image.    python scripts/generate.py --image FILE --prompt TEXT"""

from causalmm.cli.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
