"""Stage keys: what decides whether a stage has to run again (DESIGN.md, rule 2), and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charengine.config import Settings
from charengine.records import Record


def stage_key(
    stage: str,
    version: int,
    *,
    character: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    inputs: Sequence[str] = (),
    models: Sequence[str] = (),
    seed: int | None = None,
) -> str:
    """Key of one stage's result; equal on every machine and in every process for equal work.

    Args:
        stage: its name; two stages never share a key.
        version: its STAGE_VERSION, bumped when its output would change.
        character: only the fields of the character that the stage reads.
        settings: the config section it reads.
        inputs: digests of what it takes, in the stage's own order; a file counts by content, never by path.
        models: fingerprints of the models it uses.
        seed: where its randomness comes from; None when it has none.
    """
    body = {
        "stage": stage,
        "version": version,
        "character": dict(character or {}),
        "settings": settings.digest() if settings else "",
        "inputs": list(inputs),
        "models": list(models),
        "seed": seed,
    }
    return f"{stage}-{digest(body)[:40]}"


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON; the order of dict keys does not matter."""
    if isinstance(value, Record):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[str(path.relative_to(folder)), file_digest(path)] for path in files])
