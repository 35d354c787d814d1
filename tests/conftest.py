"""Tests import transformers directly, so torchvision must be importable before any of them loads."""

from causalmm.compat import ensure_torchvision

ensure_torchvision()
