"""Small JSON files of the home folder that save work and may be lost: file digests, plans that fitted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def recall(path: Path) -> dict[str, Any]:
    """What is remembered there; nothing where nothing can be read."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a memory, not a record: losing it costs the work once more
    return known if isinstance(known, dict) else {}


def remember(path: Path, known: dict[str, Any]) -> None:
    """Put it there, whole or not at all; of two processes that do so at once, one is forgotten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
    temporary.replace(path)
