"""Whose attention the figure `attention-vision` shows. Nothing here loads torch.

Held by tests/figures/test_visualize_command.py.
"""

import re

from causalmm.errors import RequestError

MEAN, SUMMARY = "mean", "cls"
Query = str | tuple[int, int]
"""MEAN over the patches, SUMMARY for the class token, or a patch's (row, column)."""


def read_query(text: str) -> Query:
    """A query as given on a command line. Raises RequestError for anything that is none."""
    if text in (MEAN, SUMMARY):
        return text
    if match := re.fullmatch(r"(\d+),(\d+)", text):
        return int(match[1]), int(match[2])
    raise RequestError(f"query {text!r}: expected {MEAN}, {SUMMARY} or ROW,COLUMN of a patch")
