"""A home as it is after a night, without the night: what a few characters left, copied until there are so many.

    python benchmarks/load_grown.py --to 1000 --beside ../other     # writes the JSON; --beside: another checkout in turns

Rows of both databases, run folders, records and kept results of every character are copied under other names and ids, as many to a
character as the night leaves; files that nothing counts are linked. Then real characters are made beside what pages ask, as `load.py`
does, by one checkout and by the other in turns over the same home: what a character and an answer cost where there are a thousand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from demo import commit  # noqa: E402
from kill_tables import machine  # noqa: E402
from load import SETTINGS, Load, Watch, get, page_calls, prepare, spread, timed  # noqa: E402

TURN = 10  # characters of one turn
AGAIN = 5  # of them once more, and made without servers
FEW = 12  # characters that are made and copied
QUIET_ASKS = 10  # of each page while nobody works
OF_CHARACTERS = {  # tables with rows for each character
    "mlflow/mlflow.db": "runs tags params metrics latest_metrics inputs input_tags logged_models logged_model_metrics "
    "logged_model_params logged_model_tags registered_models model_versions model_version_tags registered_model_aliases",
    "prefect/prefect.db": "flow_run flow_run_state task_run task_run_state artifact artifact_collection log events event_resources",
}
ID = r"(?<![0-9a-f])(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f])"  # a digest is longer
PART = re.compile(rf"({ID}|\b[Nn]oop[ _-]\d{{4}})")
KEYS = ("id", "run_uuid", "input_uuid", "model_id")  # columns that a row is known by
NAMES = ("Noop", "noop")
IN_THE_FOLDER = ("run.json", "result.json", ".charengine-run.json")  # of a run: its own; all else is linked
KEPT = ("store/results", "known-runs", "locks")  # folders of a home with files for each character


def main() -> None:
    """Measure, write the JSON, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=int, default=1000, help="characters that the home is grown to")
    parser.add_argument("--turns", type=int, default=2, help="of each checkout")
    parser.add_argument("--beside", type=Path, help="another checkout, whose homes this one goes on with")
    parser.add_argument("--first-port", type=int, default=21_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "charengine-load")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/load_grown.json"))
    arguments = parser.parse_args()
    checkouts = [*([arguments.beside.resolve()] if arguments.beside else []), ROOT]
    prepared = prepare(arguments.folder.absolute() / "prepared", SETTINGS)
    turns = Turns(arguments.folder.absolute() / "grown", prepared, arguments.first_port)
    found: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "turns": []}
    try:
        for number in range(arguments.turns + 1):
            for checkout in checkouts:
                told = turns.turn(checkout, TURN if number else FEW, AGAIN)
                found["turns"].append({"of": commit(checkout), **told})
                write(arguments.out, found, turns.load.site.folder)
                print(json.dumps(found["turns"][-1]), flush=True)
            if not number:
                turns.grow(arguments.to)
    finally:
        turns.load.site.end_all()


def write(out: Path, found: dict[str, Any], folder: Path) -> None:
    """After each turn: a run that is cut off leaves what it measured."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1).replace(f"{folder}", "...") + "\n")


def grow(home: Path, runs: Path, made: int, wanted: int) -> int:
    """Copy what so many characters left until there are at least so many.

    Args:
        home: of both databases; nobody may have them open.
        runs: folder of the runs' folders.
        made: characters there, called Noop 0001 and so on.
        wanted: in the end.

    Returns:
        How many there are.
    """
    copies = range(1, -(-wanted // made))
    for database, tables in OF_CHARACTERS.items():
        with closing(sqlite3.connect(home / database)) as connection, connection:
            own = _ids(connection, tables.split())
            for table in tables.split():
                _copy_rows(connection, table, own, copies, made)
    for folder in (path for path in sorted(runs.iterdir()) if path.is_dir()):
        for copy in copies:
            _copy_run(folder, runs / _mapped(folder.name, None, copy, made), copy, made)
    for kept in KEPT:
        _copy_files(home / kept, len(copies))
    return made * (len(copies) + 1)


def _ids(connection: sqlite3.Connection, tables: list[str]) -> set[str]:
    """What rows of characters are known by, however it is written."""
    found: set[str] = set()
    for table in tables:
        keys = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")') if row[1] in KEYS]
        for row in connection.execute(f'SELECT {", ".join(keys)} FROM "{table}"') if keys else ():
            found.update(str(value).removeprefix("m-").replace("-", "") for value in row if value)
    return found


def _copy_rows(connection: sqlite3.Connection, table: str, own: set[str], copies: range, made: int) -> None:
    rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
    if not rows:
        return
    split = [[PART.split(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    insert = f'INSERT OR IGNORE INTO "{table}" VALUES ({", ".join("?" * len(rows[0]))})'

    def copied() -> Iterator[list[Any]]:
        for copy in copies:
            for row in split:
                yield [
                    "".join(_part(part, own, copy, made) for part in cell) if isinstance(cell, list) else cell
                    for cell in row
                ]

    connection.executemany(insert, copied())


def _mapped(text: str, own: set[str] | None, copy: int, made: int) -> str:
    return "".join(_part(part, own, copy, made) for part in PART.split(text))


def _part(part: str, own: set[str] | None, copy: int, made: int) -> str:
    """A name's number, or an id of a character's, as the copy has it."""
    if part[:4] in NAMES and part[-4:].isdigit():
        return f"{part[:-4]}{int(part[-4:]) + copy * made:04d}"
    bare = part.replace("-", "")
    if not re.fullmatch(ID, part) or (own is not None and bare not in own):
        return part
    new = hashlib.md5(f"{bare} {copy}".encode()).hexdigest()
    return new if len(part) == 32 else f"{new[:8]}-{new[8:12]}-{new[12:16]}-{new[16:20]}-{new[20:]}"


def _copy_run(folder: Path, to: Path, copy: int, made: int) -> None:
    for path in folder.rglob("*"):
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in IN_THE_FOLDER:
            target.write_text(_mapped(path.read_text(), None, copy, made))
            os.utime(target, (path.stat().st_atime, path.stat().st_mtime))
        else:
            os.link(path, target)


def _copy_files(folder: Path, copies: int) -> None:
    """Files named after a key, each so many times more; what they hold does not count."""
    for path in [*folder.iterdir()]:
        stem, _, digest = path.stem.rpartition("-")
        if re.fullmatch(r"[0-9a-f]{32,}", digest):
            for copy in range(copies):
                new = hashlib.sha256(f"{digest} {copy}".encode()).hexdigest()[: len(digest)]
                shutil.copyfile(path, path.with_name(f"{stem}{'-' if stem else ''}{new}{path.suffix}"))


class Turns:
    """One home, and checkouts that go on with it in turns.

    Args:
        folder: made anew.
        prepared: of `load.prepare`.
        first_port: that its servers ask for.
    """

    def __init__(self, folder: Path, prepared: Path, first_port: int) -> None:
        self.load = Load(folder, prepared, 1, first_port)
        self._laid = self.load.environment["PYTHONPATH"].split(os.pathsep)
        self.there = 0  # characters
        self.runs = 0  # that have ended

    def turn(self, checkout: Path, count: int, again: int = 0) -> dict[str, Any]:
        """So many further characters by a checkout, what pages ask before and beside them, and some of them once more."""
        load, site = self.load, self.load.site
        laid, _, here = self._laid
        site.environment = {**load.environment, "PYTHONPATH": os.pathsep.join((laid, f"{checkout}", here))}
        names = [f"Noop {self.there + number:04d}" for number in range(1, count + 1)]
        site.start()
        load.take_up()
        found: dict[str, Any] = {"there": self.there}
        if self.there:
            found |= {"gallery_first_s": round(timed(lambda: get(f"{load.gallery}/")), 2), "quiet_s": _quiet(site)}
        with Watch(site) as watch:
            found["visible_s"] = load.ask(names, f"at-{self.there}", is_watched=True)
            self._wait(count)
        found |= watch.told(count) | {"seconds": load.seconds(names)}
        self.there += count
        if again:
            load.ask(names[:again], f"again-{self.there}")
            self._wait(again)
            found["cached_seconds"] = load.seconds(names[:again], latest=True)
        site.stop()
        if again:
            found["here_seconds"] = load.here(names[:again])
        return found

    def _wait(self, more: int) -> None:
        self.runs += more
        self.load.wait(self.runs)

    def grow(self, wanted: int) -> None:
        """Copy what is there, once."""
        site = self.load.site
        now = grow(site.home.root, site.work / "runs", self.there, wanted)
        self.runs, self.there = self.runs * now // self.there, now


def _quiet(site: Any) -> dict[str, list[float]]:
    """What pages ask, while nobody works: p50, p95, most."""
    calls = page_calls(site)
    for call in calls.values():
        call()
    return {what: spread([timed(call) for _ in range(QUIET_ASKS)]) for what, call in calls.items()}


if __name__ == "__main__":
    main()
