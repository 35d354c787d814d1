"""A distribution of one modeling file, and a repository that patches it, small enough to read."""

import hashlib
from pathlib import Path

from causalmm.vendoring import patching

NAME = "toy_upstream_package"
FILE = f"{NAME}/models/toy/modeling_toy.py"
VENDORED = "toy_causalmm/modeling_toy.py"
PATCH = "patches/toy/modeling_toy.patch"

UPSTREAM = """\
# Copyright nobody.
\"\"\"A toy model.\"\"\"

from ...layers import (
    Linear,
)
from .configuration_toy import ToyConfig


class ToyAttention:
    def forward(self, x):
        scores = Linear(x)
        return scores


class ToyModel:
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def load(config: ToyConfig):
    return ToyModel(config)
"""

# Line numbers of the relocated upstream text.
BODY = f"""\
--- a/{FILE}
+++ b/{VENDORED}
@@ -12,0 +13,2 @@
+        if self.plan is not None:
+            scores = self.plan.edit(scores)
@@ -19,0 +22,1 @@
+            x = self.enter(x)
"""

PROSE = f"""\
Subject: toy: edit the scores
Upstream: {NAME} 1.0 {FILE}
Kind: research
Why: To have a patch,
  and a value of two lines.
Why here: There is only one file.
When off: The branch is not entered.
Guarded by: tests/test_toy.py::test_off, ::test_on
---
"""


def write_distribution(site: Path, text: str = UPSTREAM, version: str = "1.0") -> None:
    """What pip would unpack into a site-packages folder."""
    file = site / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    (site / NAME / "__init__.py").write_text(
        "raise ImportError('building must not import upstream')"
    )
    info = site / f"{NAME}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n")


def write_repository(root: Path, prose: str = PROSE, body: str = BODY) -> None:
    manifest = root / patching.MANIFEST
    manifest.parent.mkdir(parents=True)
    digest = hashlib.sha256(UPSTREAM.encode()).hexdigest()
    manifest.write_text(
        "# The toy's pins.\n\n[[file]]\n"
        f'distribution = "{NAME}"\nversion = "1.0"\nupstream = "{FILE}"\nsha256 = "{digest}"\n'
        f'vendored = "{VENDORED}"\npatch = "{PATCH}"\n'
    )
    (root / PATCH).parent.mkdir()
    (root / PATCH).write_text(prose + body)
    (root / "tests").mkdir()
    (root / "tests" / "test_toy.py").write_text("def test_off(): ...\n\n\ndef test_on(): ...\n")
