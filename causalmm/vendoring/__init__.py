"""Patched modeling files: build, check, diff, export, port, adopt."""
