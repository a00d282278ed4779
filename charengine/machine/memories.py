"""Small JSON files of the home folder that save work and may be lost: file digests, plans that fitted, what checkpoints predict."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def recall(path: Path) -> dict[str, Any]:
    """What is remembered there; nothing where nothing can be read."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
        why = "it holds no names"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    log.warning("%s is damaged and passed over (%s): what it remembered is found out again", path, why)
    return {}  # a memory, not a record: losing it costs the work once more


def remember(path: Path, known: dict[str, Any]) -> None:
    """Put it there, whole or not at all; of two processes that do so at once, one is forgotten."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:  # a disk that is full, a home that is read only: what was found out is used all the same
        log.warning("%s is not remembered (%s)", path, error.strerror)
