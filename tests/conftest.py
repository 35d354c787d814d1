"""Before any test: one torch thread a worker, no model hub, and torchvision importable.

Tests import transformers directly, so torchvision must be importable before they do.
"""

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# An id of the hub is refused at once, instead of after seconds of tries; read when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402

import causalmm  # noqa: E402, F401


def pytest_addoption(parser):
    parser.addoption(
        "--family-row",
        action="append",
        default=[],
        metavar="MODULE:ROW",
        help="a family of another package for tests/families/test_contract.py",
    )
    parser.addoption(
        "--app-picture",
        metavar="FILE",
        help="where tests/app/test_browser.py writes docs/figures/app.png anew",
    )


@pytest.fixture(autouse=True)
def seeded():
    """The global random stream of torch, where a test draws from it, begins alike every time."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
