"""Run folders on this machine: whose they are, their record, and the files that a page may show or hand out."""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home, work_folder
from charengine.records import RunRecord, SweepRecord
from charengine.run.claim import owner_of
from charengine.run.folder import read_run

RUNS = "runs"  # where runs go that name no folder
SWEEPS = "sweeps"  # in a run's folder: pictures drawn later at other strengths, checkpoints or prompts
RECORD, REPORT = "run.json", "report.html"
PICTURES = (".png", ".jpg", ".webp")  # endings that a sheet or a reference may have
MOST_FOLDERS = 20_000  # that are looked into in one place
LARGEST_SWEEP = 50_000_000  # bytes of a sweep.json
ADAPTERS = "adapters"
MOST_WHOLE = 400  # records kept unpacked, more than a page shows: 190 KiB each, fifteen times a packed one
TAKEN_AWAY = (".safetensors", ".png", ".webp", ".json", ".civitai.info", ".md")  # endings of what belongs to an adapter


@dataclass(frozen=True)
class KeptRecord:
    """A run's record, packed, and of it what is asked of thousands at once."""

    name: str
    prompt: str
    trigger: str
    class_noun: str
    profile: str
    prefect_flow_run_id: str
    packed: bytes

    @classmethod
    def of(cls, run: RunRecord) -> KeptRecord:
        """Packs a record."""
        facts = run.name, run.prompt, run.trigger, run.class_noun, run.profile, run.prefect_flow_run_id or ""
        return cls(*facts, zlib.compress(run.model_dump_json().encode(), 1))


@functools.lru_cache(MOST_WHOLE)
def _whole(packed: bytes) -> RunRecord:
    return RunRecord.model_validate_json(zlib.decompress(packed))


@dataclass(frozen=True)
class RunFolder:
    """A run's folder as it is now.

    Args:
        path: absolute.
        identity: name and prompt of whose it is, as spelled for comparison.
        record: of what was made; None while nothing is complete.
        written: when the record was, in seconds since 1970; 0 without one.
        problem: why the record cannot be read.
    """

    path: Path
    identity: tuple[str, str]
    record: KeptRecord | None
    written: float = 0.0
    problem: str = ""

    @property
    def run(self) -> RunRecord | None:
        """The whole record; of the last few hundred that were asked for at once, of others in two milliseconds."""
        return _whole(self.record.packed) if self.record else None

    @property
    def report(self) -> Path | None:
        """The report, when there is one."""
        return plain_file(self.path / REPORT)

    @property
    def sheet(self) -> Path | None:
        """The sheet, from the moment that it is written."""
        return self._picture("sheet")

    @property
    def reference(self) -> Path | None:
        """The picture that the sheet was drawn from, if one was given."""
        return self._picture("reference")

    def _picture(self, stem: str) -> Path | None:
        found = (plain_file(self.path / f"{stem}{ending}") for ending in PICTURES)
        return next((path for path in found if path), None)

    @property
    def views(self) -> list[Path]:
        """Front, side and back, from the moment that they are written."""
        found = (plain_file(self.path / "views" / f"{view}.png") for view in ("front", "side", "back"))
        return [path for path in found if path]

    @property
    def downloads(self) -> list[Path]:
        """The adapters and what lies beside them: card, previews, sidecars."""
        return [*self._downloads()]

    @property
    def has_downloads(self) -> bool:
        """Whether there is anything to take away: of hundreds on a page not every file is looked at."""
        return any(self._downloads())

    def _downloads(self) -> Iterator[Path]:
        folder = self.path / ADAPTERS
        try:
            found = files.entries(folder) if files.is_dir(folder) and not files.is_link(folder) else []
        except BadInput:
            return
        yield from (path for path in found if path.name.lower().endswith(TAKEN_AWAY) and plain_file(path))

    @property
    def sweeps(self) -> list[SweepRecord]:
        """Pictures that were drawn later, the oldest first."""
        folder = self.path / SWEEPS
        try:
            found = files.entries(folder) if files.is_dir(folder) else []
            return [record for path in found if (record := _sweep(path / "sweep.json"))]
        except BadInput:
            return []


def plain_file(path: Path) -> Path | None:
    """The path, when a file of its own is there: a link could lead anywhere."""
    try:
        return path if files.is_file(path) and not files.is_link(path) else None
    except BadInput:
        return None


def _sweep(path: Path) -> SweepRecord | None:
    try:
        return SweepRecord.model_validate_json(files.read_text(path, most=LARGEST_SWEEP))
    except (BadInput, ValueError):  # it is not there yet, or another version's
        return None


@dataclass
class Folders:
    """All run folders that can be found; a record is read again only when it changed.

    Args:
        home: its `runs` hold what workers without a work folder made.
    """

    home: Home
    _kept: dict[Path, tuple[tuple[int, ...], RunFolder]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def places(self) -> list[Path]:
        """Folders of run folders."""
        return list(dict.fromkeys([work_folder() / RUNS, self.home.root / RUNS]))

    def find(self, besides: Iterable[Path] = ()) -> list[RunFolder]:
        """Every run folder in the usual places, and those of the paths besides that are one."""
        paths = [path for place in self.places for path in _inside(place)]
        found = (self.read(path) for path in dict.fromkeys([*paths, *besides]))
        return [folder for folder in found if folder]

    def read(self, path: Path) -> RunFolder | None:
        """A run's folder; None when it is none, or cannot be read from here."""
        mark = (_changed(path), _changed(path / RECORD))
        with self._lock:
            kept = self._kept.get(path)
        if kept and kept[0] == mark:
            return kept[1]
        try:
            identity = owner_of(path)
        except BadInput:
            identity = None
        if identity is None:
            return None
        folder = _read(path, identity, mark[1])
        with self._lock:
            self._kept[path] = (mark, folder)
        return folder


def _read(path: Path, identity: tuple[str, str], written: int) -> RunFolder:
    if not written:
        return RunFolder(path, identity, None)
    try:
        return RunFolder(path, identity, KeptRecord.of(read_run(path)), written / 1e9)
    except BadInput as error:
        return RunFolder(path, identity, None, written / 1e9, str(error))


def _changed(path: Path) -> int:
    """When it was changed, in nanoseconds; 0 when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _inside(place: Path) -> list[Path]:
    try:
        return (
            [path for path in files.entries(place)[:MOST_FOLDERS] if files.is_dir(path)] if files.is_dir(place) else []
        )
    except BadInput:
        return []
