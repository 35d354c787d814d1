"""Write benchmarks of toy scenes.    python scripts/make_toybench.py FOLDER"""

from causalmm.toyworld.commands.make_toybench import main

if __name__ == "__main__":
    raise SystemExit(main())
