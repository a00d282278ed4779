"""How much room the home and each run take."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from charengine.machine.home import Home
from charengine.machine.known_runs import DIGEST, KnownRun, known_runs, named_in, records_of
from charengine.machine.shared import open_store, shared_url
from charengine.services import sizes_shared
from charengine.services.sizes_shared import Counted

MOST_SHOWN = 20  # runs, the largest first
MIB = 2**20


@dataclass(frozen=True)
class RunSize:
    """What a run takes: its folder, and the objects of the store that it refers to (others may too), in bytes.

    `objects` is None where a store that machines share was not counted to its end.
    """

    folder: Path
    own: int
    objects: int | None

    @property
    def known(self) -> int:
        """All of it, as far as that was counted."""
        return self.own + (self.objects or 0)


def describe(home: Home) -> list[str]:
    """Lines for a terminal: the parts of the home, a store that machines share, then the largest runs."""
    parts = {
        "store": home.store,
        "states of trainings": home.state,
        "MLflow": home.mlflow,
        "Prefect": home.prefect,
        "logs": home.logs,
    }
    lines = [f"{name:20} {size_of(place) / MIB:10.1f} MiB" for name, place in parts.items() if place.is_dir()]
    counted = _shared(home)
    lines += _of_shared(counted) if counted else []
    runs = sorted(_run_sizes(home, counted), key=lambda run: -run.known)
    lines += [f"{run.folder.name:20} {run.known / MIB:10.1f} MiB ({_of_run(run)})" for run in runs[:MOST_SHOWN]]
    return lines + ([f"and {len(runs) - MOST_SHOWN} smaller runs"] if len(runs) > MOST_SHOWN else [])


def run_sizes(home: Home) -> list[RunSize]:
    """Every known run whose folder is there."""
    return _run_sizes(home, _shared(home))


def _run_sizes(home: Home, counted: Counted | None) -> list[RunSize]:
    return [
        RunSize(run.folder, size_of(run.folder), _objects(home, run, counted))
        for run in known_runs(home)
        if run.finished
    ]


def _shared(home: Home) -> Counted | None:
    """What a store that machines share holds; None without one."""
    if not shared_url():
        return None
    wanted = {digest for run in known_runs(home) for digest in _digests(run)}
    return sizes_shared.count(lambda: open_store(home), wanted, sizes_shared.SECONDS)


def _of_shared(counted: Counted) -> list[str]:
    url, size = shared_url(), f"{counted.bytes.total() / MIB:.1f} MiB"
    states = f"{counted.bytes['state'] / MIB:.1f} MiB in states of trainings"
    if not counted.problem:
        return [f"{url} {size} ({states})"]
    if not counted.parts:
        return [f"{url} not counted ({counted.problem})"]
    told = f"{counted.parts} of {len(sizes_shared.PARTS)} parts of it"
    return [f"{url} at least {size} ({states}); {told} were counted, the others not ({counted.problem})"]


def _of_run(run: RunSize) -> str:
    objects = "not counted" if run.objects is None else f"{run.objects / MIB:.1f}"
    return f"{run.own / MIB:.1f} in {run.folder}, {objects} in the store"


def size_of(place: Path) -> int:
    """Bytes of the files below a folder; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                facts = os.lstat(os.path.join(folder, name))
                seen[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(seen.values())


def _objects(home: Home, run: KnownRun, counted: Counted | None) -> int | None:
    """Bytes of the objects that a run's records name; None where they were not all counted."""
    if counted:
        return None if counted.problem else sum(counted.objects.get(digest, 0) for digest in _digests(run))
    total = 0
    for digest in _digests(run):
        with suppress(OSError):
            total += os.stat(home.store / "sha256" / digest[:2] / digest).st_size
    return total


def _digests(run: KnownRun) -> set[str]:
    return named_in(records_of(run), DIGEST)
