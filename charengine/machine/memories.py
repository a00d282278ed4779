"""Small JSON files of the home folder that save work and may be lost: file digests, plans that fitted, what checkpoints predict."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from charengine import files

log = logging.getLogger(__name__)


def recall(path: Path) -> dict[str, Any]:
    """What is remembered there; nothing where nothing can be read."""
    known = files.kept_json(path)
    if isinstance(known, dict):
        return known
    if os.path.lexists(path):  # a memory, not a record: losing it costs the work once more
        log.warning("%s is damaged and passed over: what it remembered is found out again", path)
    return {}


def remember(path: Path, known: dict[str, Any]) -> None:
    """Put it there, whole or not at all; of two processes that do so at once, one is forgotten."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:  # a disk that is full, a home that is read only: what was found out is used all the same
        log.warning("%s is not remembered (%s)", path, error.strerror)
