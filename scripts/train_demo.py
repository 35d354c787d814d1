"""Train a demonstration model.    python scripts/train_demo.py llava|qwen2_vl"""

from causalmm.toyworld.commands.train_demo import main

if __name__ == "__main__":
    raise SystemExit(main())
