"""How much room the home and each run take."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from charengine.machine.home import Home
from charengine.machine.known_runs import RECORDS, known_runs
from charengine.services.prune import DIGEST

MOST_SHOWN = 20  # runs, the largest first
MIB = 2**20


@dataclass(frozen=True)
class RunSize:
    """What a run takes: its folder, and the objects of the store that it refers to (others may too), in bytes."""

    folder: Path
    own: int
    objects: int


def describe(home: Home) -> list[str]:
    """Lines for a terminal: the parts of the home, then the largest runs."""
    parts = {
        "store": home.store,
        "states of trainings": home.state,
        "MLflow": home.mlflow,
        "Prefect": home.prefect,
        "logs": home.logs,
    }
    lines = [f"{name:20} {size_of(place) / MIB:10.1f} MiB" for name, place in parts.items() if place.is_dir()]
    runs = sorted(run_sizes(home), key=lambda run: -(run.own + run.objects))
    lines += [
        f"{run.folder.name:20} {(run.own + run.objects) / MIB:10.1f} MiB ({run.own / MIB:.1f} in {run.folder}, {run.objects / MIB:.1f} in the store)"
        for run in runs[:MOST_SHOWN]
    ]
    return lines + ([f"and {len(runs) - MOST_SHOWN} smaller runs"] if len(runs) > MOST_SHOWN else [])


def run_sizes(home: Home) -> list[RunSize]:
    """Every known run whose folder is there."""
    return [
        RunSize(run.folder, size_of(run.folder), _objects(home, run.folder)) for run in known_runs(home) if run.finished
    ]


def size_of(place: Path) -> int:
    """Bytes of the files below a folder; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                facts = os.lstat(os.path.join(folder, name))
                seen[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(seen.values())


def _objects(home: Home, folder: Path) -> int:
    """Bytes of the objects that a run's records name."""
    digests: set[str] = set()
    for name in RECORDS:
        with suppress(OSError):
            digests |= set(DIGEST.findall((folder / name).read_text(encoding="utf-8", errors="replace")))
    total = 0
    for digest in digests:
        with suppress(OSError):
            total += os.stat(home.store / "sha256" / digest[:2] / digest).st_size
    return total
