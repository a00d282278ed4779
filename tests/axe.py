"""axe-core, which reads a page by the rules of WCAG: what a keyboard or a screen reader would stumble on."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from chromium import Page

PACKAGE = "axe-core@4.14.1"  # too large to be kept here; npm compares what it brings with the digest that was published
SERIOUS = ("serious", "critical")
FOUND = """axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations.map((one) =>
  ({rule: one.id, impact: one.impact, where: one.nodes.map((node) => node.target.join(' ') + ': ' + node.html.slice(0, 120))})))"""


@functools.cache
def script() -> str | None:
    """The script's text; None where npm is missing or reaches nobody."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, timeout=60)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        [packed] = Path(folder).glob("axe-core-*.tgz")
        with tarfile.open(packed) as archive:
            text = archive.extractfile("package/axe.min.js")
            assert text is not None
            return text.read().decode()


def serious(page: Page) -> list[str]:
    """What the open page has to mend, a line each: rule, where, and the markup."""
    page.run(f"{script()};0")
    return [
        f"{one['rule']} ({one['impact']}) {where}"
        for one in page.run(FOUND)
        if one["impact"] in SERIOUS
        for where in one["where"]
    ]
