"""Tests import transformers directly, so torchvision must be importable before they do."""

from causalmm.compat import ensure_torchvision

ensure_torchvision()
