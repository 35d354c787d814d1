"""Seeds of what is drawn, by what is asked. Tests: tests/evaluation/test_evaluation_run.py."""

import hashlib


def seed_of(text: str) -> int:
    """A seed for torch, the same for the same text and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:7])
