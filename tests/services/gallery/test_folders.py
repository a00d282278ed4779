"""Run folders as the gallery reads them: no more is looked at than a page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from charengine.services.gallery import folders


def test_whether_there_is_something_to_take_away_is_known_from_the_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.RunFolder(tmp_path, ("x", "y"), None)
    assert not folder.has_downloads
    (tmp_path / "adapters").mkdir()
    for number in range(12):
        (tmp_path / "adapters" / f"{number}.png").touch()
    looked: list[Path] = []
    monkeypatch.setattr(folders, "plain_file", lambda path: looked.append(path) or path)
    assert folder.has_downloads and len(looked) == 1  # a page shows 300 characters
