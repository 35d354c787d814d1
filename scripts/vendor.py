"""Make, check and maintain the vendored modeling files (see patches/README.md).

python scripts/vendor.py build | check | diff | export | port DIR | adopt FROM TO
"""

try:
    from causalmm.vendoring.command import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: install the project first (`make setup`).") from error

if __name__ == "__main__":
    raise SystemExit(main())
