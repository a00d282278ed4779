"""The site builds without a warning, and looking at it asks nobody else for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from manual import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built manual."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_no_page_loads_anything_from_another_server(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^\"']+", re.IGNORECASE
    )
    styles = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^\"')]+")
    found = [(page.name, hit[:120]) for page in site.rglob("*.html") for hit in loads.findall(page.read_text())]
    found += [(sheet.name, hit[:120]) for sheet in site.rglob("*.css") for hit in styles.findall(sheet.read_text())]
    assert found == []


def test_the_pages_of_settings_and_commands_are_filled(site: Path) -> None:
    assert 'id="train-steps"' in (site / "reference" / "settings.html").read_text()
    assert "charengine compare" in (site / "reference" / "commands.html").read_text()
