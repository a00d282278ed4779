"""A cast: many characters in one YAML or CSV file, read and checked together."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any

from charengine import files
from charengine.documents import Quoted, as_value, read_csv, read_yaml
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home, in_work_folder
from charengine.misspelt import did_you_mean, shown_value
from charengine.run.claim import free_folder
from charengine.run.request import RunRequest, check, place_of, usual_name
from charengine.wording import slug

log = logging.getLogger(__name__)

MAX_CAST = 10_000
WHOLE = re.compile(r"[-+]?[0-9]{1,12}")
CASTS = (".csv", ".tsv", ".yaml", ".yml")
SECTIONS = ("characters", "defaults")
NOT_SAID = (None, "")
COLUMNS = tuple(field.name for field in fields(RunRequest))


@dataclass(frozen=True)
class Entry:
    """A character of a cast: where it stands, what was asked for, what is wrong with how that is written, or beside other entries."""

    place: str
    request: RunRequest
    problems: list[str]
    clashes: tuple[str, ...] = ()

    def says(self, field: str) -> bool:
        """Whether something is said of a field: one that cannot be read seems empty to its run."""
        return field in map(_field, self.problems)


def read_cast(
    path: Path,
    profile: str = "embedded",
    overrides: tuple[str, ...] = (),
    out: str = "",
    home: Home | None = None,
) -> list[RunRequest]:
    """The characters of a cast file; an entry's own profile, settings and folder win over the ones given.

    YAML: a list of entries, or a mapping with `characters` (the list) and `defaults` (an entry without prompt).
    CSV, separated by commas, semicolons or tabs: a header line with at least `prompt` or `reference`; several settings in one field are
    separated by `;` (in double quotes, in a file whose columns are separated so).

    Every field is text, as it was written: a character may be called no, 007 or Null.

    With a home, every character is checked as its run will check it.

    Raises:
        ConfigError: everything wrong with the file, one line each, with its line in a table.
    """
    entries, problems = read_entries(path, profile, overrides, out)
    return _sound(entries, problems, path.name, home)


def read_entries(
    path: Path, profile: str = "embedded", overrides: tuple[str, ...] = (), out: str = ""
) -> tuple[list[Entry], list[str]]:
    """The same, each with what is wrong with it, and what is wrong with the file.

    Raises:
        BadInput: nothing in it can be read.
    """
    rows, defaults, problems = _read(path)
    below = _said(defaults)
    rows = [(place, {**below, **_said(row)}) for place, row in rows]
    return _entries(rows, problems, path.name, (profile, overrides, out))


def check_cast(
    entries: list[dict[str, Any]],
    source: str = "cast",
    profile: str = "embedded",
    overrides: tuple[str, ...] = (),
    out: str = "",
    home: Home | None = None,
    lines: Sequence[int] = (),
) -> list[RunRequest]:
    """Entries as requests, each with a name and a folder of its own.

    Args:
        entries: with the fields of a request.
        source: where they came from.
        lines: of the entries in it; empty: they are counted. The others are `read_cast`'s.

    Raises:
        ConfigError: everything wrong with them, one line each.
    """
    places = [f"line {line}" for line in lines] or _counted(entries)
    found = _entries(list(zip(places, entries, strict=True)), [], source, (profile, overrides, out))
    return _sound(*found, source, home)


def _counted(entries: Sequence[Any]) -> list[str]:
    return [f"entry {number}" for number in range(1, len(entries) + 1)]


def _field(problem: str) -> str:
    return re.split(r"[:\s]", problem, maxsplit=1)[0]


def _sound(entries: list[Entry], problems: list[str], source: str, home: Home | None) -> list[RunRequest]:
    told = [*problems]
    for entry in entries:
        found = list(entry.problems)
        if home:
            try:
                check(entry.request, home, writes_run=False)  # a changed file in one's folder stops that one alone
            except ConfigError as error:
                found += [problem for problem in error.problems if not entry.says(_field(problem))]
        told += [f"{source}, {entry.place} ({entry.request.name[:80]}): {problem}" for problem in found]
    if told:
        raise ConfigError(told)
    return [entry.request for entry in entries]


def _entries(
    rows: list[tuple[str, Any]], problems: list[str], source: str, how: tuple[str, tuple[str, ...], str]
) -> tuple[list[Entry], list[str]]:
    if len(rows) > MAX_CAST or not (rows or problems):
        raise BadInput(f"{source} has {len(rows)} characters; 1 to {MAX_CAST} are taken at once")
    profile, overrides, out = how
    entries = []
    for place, row in rows:
        wrong: list[str] = []
        row = {**row, "profile": profile} if row.get("profile") in NOT_SAID else row
        entries.append(Entry(place, _request(row, overrides, out or "runs", wrong), wrong))
    doubled = _doubled(entries, out or "runs")
    problems = [*problems, *(f"{source}: {problem}" for problem, _ in doubled)]
    if problems:  # none starts, so none needs a folder
        return [
            replace(one, clashes=tuple(line for line, places in doubled if one.place in places)) for one in entries
        ], problems
    folder, made = in_work_folder(out or "runs"), []
    taken = {place for entry in entries if entry.request.out for place in _places(entry.request)}
    for entry in entries:
        if not entry.request.out:
            entry = replace(entry, request=replace(entry.request, out=str(_own(folder, entry.request, taken))))
        made.append(entry)
        taken.add(Path(entry.request.out))
    return made, problems


def _places(request: RunRequest, usual: str = "") -> tuple[Path, Path]:
    """The folder that an entry names, or else its usual one, as it is written and without links and dots."""
    place = in_work_folder(request.out or usual)
    try:
        return place, files.real(place)
    except BadInput:  # its own check says so
        return place, place


def _own(folder: Path, request: RunRequest, taken: set[Path]) -> Path:
    """The character's folder inside the cast's: another one when an earlier prompt's run is there, or another entry's will be."""
    usual = folder / slug(request.name)
    free = free_folder(usual, request.name, request.prompt, taken)
    if free != usual:
        log.warning("%s is for another prompt's run; %s goes to %s", usual, request.name, free)
    return free


def _read(path: Path) -> tuple[list[tuple[str, Any]], dict[str, Any], list[str]]:
    """Entries with their places, what holds for all of them, and what is wrong with the file."""
    suffix = path.suffix.lower()
    if suffix not in CASTS:
        raise BadInput(f"{path}: a cast is a .yaml, .yml or .csv file (.tsv with tabs)")
    text = files.read_text(path, "cast")
    if suffix in (".csv", ".tsv"):
        rows, problems = read_csv(text, path.name, COLUMNS, MAX_CAST)
        told = not problems or (rows and rows[0][1].keys() & {"prompt", "reference"})  # else each row would lack them
        return [(f"line {number}", row) for number, row in rows] if told else [], {}, problems
    return _read_yaml(path, text)


def _read_yaml(path: Path, text: str) -> tuple[list[tuple[str, Any]], dict[str, Any], list[str]]:
    data = read_yaml(text, path.name)
    defaults = data.get("defaults") or {} if isinstance(data, dict) else {}
    entries = data.get("characters") if isinstance(data, dict) else data
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in [defaults, *entries]):
        raise BadInput(f"{path}: write a list of characters, each with at least a prompt (see deployments/samples)")
    problems = []
    if isinstance(data, dict) and (unknown := [key for key in data if key not in SECTIONS]):
        wrong = ", ".join(f"{key[:80]} (got {shown_value(data[key])})" for key in unknown[:5])
        problems.append(
            f"{path.name}: no such section: {wrong}; sections are {' and '.join(SECTIONS)}{did_you_mean(unknown[0], SECTIONS)}"
        )
    return list(zip(_counted(entries), entries, strict=True)), defaults, problems


def _request(entry: dict[str, Any], overrides: tuple[str, ...], within: str, problems: list[str]) -> RunRequest:
    problems += [
        f"no such field: {str(key)[:80]} (got {shown_value(value)}); "
        f"fields are {', '.join(COLUMNS)}{did_you_mean(str(key), COLUMNS)}"
        for key, value in entry.items()
        if key not in COLUMNS
    ]
    known = {key: value for key, value in entry.items() if key in COLUMNS and value not in NOT_SAID}
    text = {}
    for key, value in known.items():
        if key in ("overrides", "refresh", "seed"):
            continue
        if isinstance(value, list | dict):
            problems.append(f"{key} must be text, got a {'list' if isinstance(value, list) else 'section'}")
        elif key != "out" or place_of(str(value), "out", problems):
            text[key] = str(value)
    if not text.get("prompt") and "prompt" not in known and not text.get("reference"):
        problems.append(
            "prompt is missing; describe the character in one sentence, or name a picture of it in reference"
        )
    request = RunRequest(
        **{"prompt": "", **text},
        seed=_seed(known.get("seed", 42), problems),
        overrides=(*overrides, *_several(known.get("overrides"), "overrides", problems)),
        refresh=_several(known.get("refresh"), "refresh", problems),
    )
    if request.name:
        return request
    return replace(request, name=usual_name(request.prompt, request.reference, request.out, within))


def _said(row: dict[str, Any]) -> dict[str, Any]:
    """The row without fields that are empty or YAML's null, for which defaults hold; in quotes both are text, and a name may be Null."""
    empty = (*NOT_SAID, "null", "Null", "NULL")
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, Quoted) or value not in (NOT_SAID if key == "name" else empty)
    }


def _seed(value: Any, problems: list[str]) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, str) and WHOLE.fullmatch(value.strip())):
        return int(value)
    problems.append(f"seed must be a whole number, got {str(value)[:80]!r}")
    return 42


def _several(value: Any, key: str, problems: list[str]) -> tuple[str, ...]:
    if isinstance(value, list):
        if not all(isinstance(item, str | int | float) for item in value):
            problems.append(f"{key} must be a list of texts, e.g. [train.steps=800]")
            return ()
        return tuple(str(item) for item in value)
    if isinstance(value, dict) and key == "overrides" and all(_is_plain(one) for one in value.values()):
        return tuple(f"{name}={_written(one)}" for name, one in value.items())
    if isinstance(value, dict):
        more = " or {train.steps: 800}" if key == "overrides" else ""
        problems.append(f"{key} must be a list of texts, e.g. [train.steps=800]{more}, got a section")
        return ()
    parts = re.split(r"[;,\s]" if key == "refresh" else ";", str(value or ""))
    return tuple(part.strip() for part in parts if part.strip())


def _is_plain(value: Any) -> bool:
    """A number, a text or the like, or a list of them."""
    return not any(isinstance(one, list | dict) for one in (value if isinstance(value, list) else [value]))


def _written(value: Any) -> str:
    """A setting's value as `--set` reads it: text in quotes stays text, but for a list, which may stand in them."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        return value
    return value if type(value) is str and value else as_value(value)


def _doubled(entries: list[Entry], within: str) -> list[tuple[str, list[str]]]:
    """What entries cannot have together, each with their places; `within` is the folder of those that name none."""
    given = [(entry.place, str(_places(entry.request)[1])) for entry in entries if entry.request.out]
    named = [(entry.place, slug(entry.request.name)) for entry in entries if entry.request.name]
    usual = [
        (entry.place, str(_places(entry.request, f"{within}/{slug(entry.request.name)}")[1]))
        for entry in entries
        if not entry.request.out
    ]
    return [
        *_twice("name", named, [name for _, name in named], "names make the folders"),
        *_twice("out", given, [alike(out) for _, out in given], "give each character a folder of its own"),
        *nested(given, usual),
    ]


def alike(out: str) -> str:
    """What two folders have in common that are one on Windows and macOS."""
    return unicodedata.normalize("NFC", out).casefold()


def nested(given: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]] = ()) -> list[tuple[str, list[str]]]:
    """The given folders that lie inside each other's or the others', or around the others': a line for each, with its place."""
    firm, loose = [PurePath(alike(out)) for _, out in given], [PurePath(alike(out)) for _, out in others]
    roots = {*firm, *loose}
    around = {above for one in loose for above in one.parents}
    return [
        (f"out {out!r} ({place}) lies in another character's folder; give it a place beside that", [place])
        if roots & set(one.parents)
        else (f"out {out!r} ({place}) has another character's folder inside it; give it a place beside that", [place])
        for (place, out), one in zip(given, firm, strict=True)
        if roots & set(one.parents) or one in around
    ]


def _twice(what: str, given: list[tuple[str, str]], alike: list[str], why: str) -> list[tuple[str, list[str]]]:
    """A line for each value that stands more than once, with its places."""
    places: dict[str, list[str]] = {}
    for (place, _), one in zip(given, alike, strict=True):
        places.setdefault(one, []).append(place)
    last = {one: value for (_, value), one in zip(given, alike, strict=True)}
    return [
        (f"{what} {last[one]!r} is used twice, in {' and '.join(found[:5])}; {why}", found)
        for one, found in sorted(places.items())
        if len(found) > 1
    ]
