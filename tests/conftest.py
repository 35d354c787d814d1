"""Tests import transformers directly, so torchvision must be importable before they do."""

import causalmm  # noqa: F401
