"""A run that began while MLflow was away: written down from the first second, sent by the next run that reaches MLflow, or by `charengine up`.

One file of lines a process, `mlflow/journal/<process>_<when it began>-<number>.jsonl`, pictures and adapters in a folder beside it. `deliver` plays
it to trackers that are open; what MLflow holds already is not sent twice.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, get_args

from charengine.errors import EngineError
from charengine.files import json_in
from charengine.machine.full_disks import is_waited_for, warn
from charengine.tracking.protocol import Status, Tracker
from charengine.tracking.views import child_name, inherited
from charengine.writing import begun, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

END_PAUSES = (1.0, 5.0, 15.0)  # seconds that the end of a run waits for the disk
STATUSES = get_args(Status)
JOURNAL = "journal"  # in MLflow's folder of the home
NAME = re.compile(
    r"(?P<pid>[0-9]{1,9})(_(?P<began>[0-9]*))?-[^.]+(\.jsonl)?"
)  # of a journal, and of the folder beside it
BESIDE = re.compile(r"[0-9a-f]{32}")  # the name of a file in that
# what the lines must say that are played, by what they tell
SAYS: dict[str, dict[str, Any]] = {
    "open": {"name": str, "params": dict, "tags": dict},
    "params": {"values": dict},
    "tags": {"values": dict},
    "metrics": {"values": dict, "step": int, "when": int},
    "image": {"file": str, "name": str, "step": int | None},
    "bytes": {"file": str, "name": str},
    "checkpoint": {"file": str, "step": int, "metrics": dict},
    "dataset": {"name": str, "digest": str, "tags": dict},
    "pick": {"file": str, "name": str, "step": int, "strength": int | float, "metrics": dict, "rescaled": bool},
    "finish": {"status": str},
}


class JournalTracker:
    """One run, written down.

    Args:
        journal: where.
        name: of the run.
        key: under which it is found again in MLflow.
        parent: the run it belongs to: its name and key; None for a character's own.
        params: of the run.
        tags: of the run.
    """

    run_id: str | None = None
    url: str = ""
    runs_url: str = ""
    strengths_url: str = ""
    adapter_url: str = ""

    def __init__(
        self,
        journal: Journal,
        name: str,
        key: str,
        parent: tuple[str, str] | None,
        params: Mapping[str, object],
        tags: Mapping[str, str],
    ) -> None:
        self._journal, self._name, self._key, self._parent = journal, name, key, parent
        self._last: dict[str, int] = {}
        self._tags = dict(tags)
        shown = {field: str(value) for field, value in params.items()}
        self._write("open", name=name, parent=parent, params=shown, tags=dict(tags))

    def picture_url(self, artifact: str) -> str:
        """Empty: no server holds it yet."""
        return ""

    def child(
        self, name: str, *, key: str, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
    ) -> JournalTracker:
        """The child run, named and keyed as MLflow's tracker does it."""
        full = key if self._parent is None else f"{self._key}/{key}"
        return JournalTracker(
            self._journal,
            child_name(name, self._name, self._parent is not None),
            full,
            (self._name, self._key),
            params or {},
            inherited(self._tags) | dict(tags or {}),
        )

    def last_step(self, metric: str = "train/loss") -> int:
        """Highest step written down by this process; -1 when there is none."""
        return self._last.get(metric, -1)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters."""
        self._write("params", values={key: str(value) for key, value in params.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags."""
        self._write("tags", values=dict(tags))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step, with the time."""
        fresh = {key: float(value) for key, value in metrics.items() if step > self.last_step(key)}
        if fresh:
            self._write("metrics", values=fresh, step=step, when=int(time.time() * 1000))
            self._last |= dict.fromkeys(fresh, step)

    def log_image(self, image: Image, name: str, step: int | None = None) -> None:
        """A picture."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self._write("image", buffer.getvalue(), name=name, step=step)

    def log_bytes(self, data: bytes, name: str) -> None:
        """A file."""
        self._write("bytes", data, name=name)

    def log_checkpoint(self, adapter: bytes, step: int, metrics: Mapping[str, float]) -> str | None:
        """An adapter; it has no id yet."""
        self._write("checkpoint", adapter, step=step, metrics=dict(metrics))
        return None

    def log_dataset(self, name: str, digest: str, tags: Mapping[str, str]) -> None:
        """The dataset."""
        self._write("dataset", name=name, digest=digest, tags=dict(tags))

    def register_pick(
        self,
        name: str,
        adapter: bytes,
        step: int,
        strength: float,
        metrics: Mapping[str, float],
        rescaled: bool = True,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """The pick, to be registered."""
        pick = {"name": name, "step": step, "strength": strength, "metrics": dict(metrics), "rescaled": rescaled}
        self._write("pick", adapter, **pick, facts=dict(facts))

    def sync(self, pauses: tuple[float, ...] | None = None) -> None:
        """Each line is on the disk when it is written; those that the disk did not take are tried again, after these seconds each."""
        self._journal.sync(pauses)

    def finish(self, status: Status = "FINISHED") -> None:
        """The end."""
        self._write("finish", status=status)

    def _write(self, what: str, data: bytes | None = None, **values: Any) -> None:
        self._journal.write({"run": self._key, "what": what, **values}, data)


class Journal:
    """The lines of one process; a line that cannot be written is a warning, never a lost run.

    Args:
        folder: of all journals.
    """

    def __init__(self, folder: Path) -> None:
        pid = os.getpid()
        self._path = folder / f"{pid}_{begun(pid)}-{uuid.uuid4().hex[:8]}.jsonl"
        self._waiting: list[tuple[dict[str, Any], bytes | None]] = []

    def write(self, line: dict[str, Any], data: bytes | None = None) -> None:
        """One line, and the file that it names; what the disk does not take is tried again with the next, and at a run's end."""
        self._waiting.append((line, data))
        self._try(END_PAUSES if line["what"] == "finish" and is_waited_for(self._path, line["status"]) else ())

    def sync(self, pauses: tuple[float, ...] | None = None) -> None:
        """Have all lines on the disk, which is waited for a little."""
        self._try(END_PAUSES if pauses is None else pauses)

    def _try(self, pauses: tuple[float, ...]) -> None:
        for pause in (*pauses, None):
            try:
                self._write()
                return
            except (OSError, EngineError) as error:
                warn(log, self._path, "what MLflow is to be told cannot be written to %s: %s", self._path, error)
            if pause is not None:
                time.sleep(pause)

    def _write(self) -> None:
        while self._waiting:
            self._write_one(*self._waiting[0])
            self._waiting.pop(0)

    def _write_one(self, line: dict[str, Any], data: bytes | None) -> None:
        if data is not None:
            line["file"] = line.get("file") or uuid.uuid4().hex
            write_atomically(self._path.with_suffix("") / line["file"], data)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line) + "\n")  # the line before may have been cut off
            file.flush()
            os.fsync(file.fileno())  # a result that is kept is never made again, nor told again


class Receiver(Protocol):
    """MLflow, as a journal is played to it."""

    def alone(self, keys: set[str]) -> AbstractContextManager[bool]:
        """Whether nobody else tells of the runs with these keys, nor does until it is left."""
        ...

    def begin(
        self, name: str, key: str, parent: Tracker | None, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> Tracker:
        """The run with this key, reopened or started."""
        ...

    def known(self, key: str) -> Tracker | None:
        """The run with this key as it is; None when there is none."""
        ...

    def metrics(self, run: Tracker, values: Mapping[str, float], step: int, when: int) -> None:
        """Metrics of one step that MLflow does not hold yet; `when` in milliseconds of Unix time."""
        ...

    def close(self, run: Tracker, status: Status) -> None:
        """Deliver what is queued, and end the run."""
        ...

    def is_away(self) -> bool:
        """Whether a call has failed."""
        ...


def deliver(folder: Path, receiver: Receiver, alive: Callable[[int], bool]) -> int:
    """Play every journal whose run has ended or whose process has; how many were delivered whole and removed.

    One that tells of a run which somebody is at work in waits for another time: both would ask which steps MLflow holds, and both tell it.

    Args:
        folder: of all journals.
        receiver: MLflow.
        alive: whether a process id is one that runs.
    """
    done = 0
    for path in _journals(folder):
        lines = list(_lines(path))
        if not _is_over(path, lines, alive):
            continue
        with receiver.alone(_keys(lines)) as alone:
            if not alone:
                continue
            _play(lines, path.with_suffix(""), receiver)
            if receiver.is_away():
                return done
            path.unlink(missing_ok=True)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            done += 1
    for beside in _orphans(folder, alive):
        shutil.rmtree(beside, ignore_errors=True)
    return done


def left_journals(folder: Path, alive: Callable[[int], bool]) -> Iterator[set[str]]:
    """The keys of the runs that each journal tells of which `deliver` would play or clear away; what goes meanwhile is left out."""
    for path in _journals(folder):
        with suppress(FileNotFoundError):
            lines = list(_lines(path))
            if _is_over(path, lines, alive):
                yield _keys(lines)
    for _ in _orphans(folder, alive):
        yield set()


def _journals(folder: Path) -> list[Path]:
    """The journals in a folder; what another program left there is none, and stays."""
    return sorted(path for path in folder.glob("*.jsonl") if NAME.fullmatch(path.name) and path.is_file())


def _is_over(path: Path, lines: list[dict[str, Any]], alive: Callable[[int], bool]) -> bool:
    """Whether nobody writes to a journal any more: its run has ended, or its process."""
    ended = bool(lines) and lines[-1]["what"] == "finish" and lines[-1]["run"] == lines[0]["run"]
    return ended or not _is_alive(path, alive)


def _orphans(folder: Path, alive: Callable[[int], bool]) -> list[Path]:
    """Folders of journals that have gone, whose process was killed between the two."""
    found = [path for path in folder.glob("*") if NAME.fullmatch(path.name) and path.suffix != ".jsonl"]
    return [path for path in found if not path.with_suffix(".jsonl").exists() and not _is_alive(path, alive)]


def _is_alive(path: Path, alive: Callable[[int], bool]) -> bool:
    """Whether the process that a journal is named after runs; another one that has its number now, does not count."""
    named = NAME.fullmatch(path.name)
    assert named  # who is not named so, is not asked about
    number, began = int(named["pid"]), named["began"] or ""
    return alive(number) and began in ("", begun(number))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = json_in(text)
        if isinstance(line, dict) and _is_whole(line):  # else the last of a process that was killed while writing it
            yield line


def _is_whole(line: dict[str, Any]) -> bool:
    """Whether a line says all that is needed to play it."""
    if not isinstance(line.get("run"), str) or not isinstance(what := line.get("what"), str) or what not in SAYS:
        return False
    if not all(field in line and isinstance(line[field], kind) for field, kind in SAYS[what].items()):
        return False
    if what == "open":
        above = line.get("parent", ())
        return above is None or (
            isinstance(above, list) and len(above) == 2 and all(isinstance(part, str) for part in above)
        )
    numbers = [*line["values"].values()] if what == "metrics" else []
    return (
        all(isinstance(value, int | float) for value in numbers)
        and line.get("status", STATUSES[0]) in STATUSES
        and bool(BESIDE.fullmatch(line.get("file", "0" * 32)))
    )


def _keys(lines: list[dict[str, Any]]) -> set[str]:
    """Of the runs that a journal tells of, and of those above them."""
    above = {line["parent"][1] for line in lines if line["what"] == "open" and line["parent"]}
    return {line["run"] for line in lines} | above


def _play(lines: list[dict[str, Any]], beside: Path, receiver: Receiver) -> None:
    runs: dict[str, Tracker] = {}
    for line in lines:
        key = line["run"]
        if line["what"] == "open":
            above = _parent(line["parent"], runs, receiver)
            runs[key] = receiver.begin(line["name"], key, above, line["params"], line["tags"])
        elif key not in runs:
            log.warning("a journal of MLflow is damaged: nothing opens run %s", key)
        elif line["what"] == "metrics":
            receiver.metrics(runs[key], line["values"], line["step"], line["when"])
        elif line["what"] == "finish":
            receiver.close(runs[key], line["status"])
            runs.pop(key)
        elif "file" not in line or (beside / line["file"]).is_file():
            _tell(runs[key], line, (beside / line["file"]).read_bytes() if "file" in line else b"")
    for run in runs.values():  # their process was killed
        receiver.close(run, "KILLED")


def _parent(above: list[str] | None, runs: dict[str, Tracker], receiver: Receiver) -> Tracker | None:
    """The run that another belongs to, (name, key): opened by this journal, there already, or made."""
    if above is None:
        return None
    name, key = above
    if key not in runs:
        there = receiver.known(key)
        if there is not None:
            return there
        runs[key] = receiver.begin(name, key, None, {}, {})
    return runs[key]


def _tell(run: Tracker, line: dict[str, Any], data: bytes) -> None:
    what = line["what"]
    if what == "params":
        run.log_params(line["values"])
    elif what == "tags":
        run.set_tags(line["values"])
    elif what == "image":
        if picture := _picture(data):
            run.log_image(picture, line["name"], line["step"])
    elif what == "bytes":
        run.log_bytes(data, line["name"])
    elif what == "checkpoint":
        run.log_checkpoint(data, line["step"], line["metrics"])
    elif what == "dataset":
        run.log_dataset(line["name"], line["digest"], line["tags"])
    elif what == "pick":
        run.register_pick(
            line["name"], data, line["step"], line["strength"], line["metrics"], line["rescaled"], line.get("facts", {})
        )


def _picture(data: bytes) -> Image | None:
    """A picture that waited; None for a damaged one, which keeps nothing back that came after it."""
    from charengine.pictures import open_image

    try:
        return open_image(data)
    except Exception as error:  # whatever Pillow raises
        log.warning("a picture that MLflow was to be told of is damaged (%s): it is left out", error)
        return None
