"""A cast: many characters in one YAML or CSV file, read and checked together."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path, PurePath
from typing import Any

from charengine import files
from charengine.documents import read_csv, read_yaml
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
COLUMNS = tuple(field.name for field in fields(RunRequest))


def read_cast(
    path: Path, profile: str = "embedded", overrides: tuple[str, ...] = (), out: str = ""
) -> list[RunRequest]:
    """The characters of a cast file; an entry's own profile, settings and folder win over the ones given.

    YAML: a list of entries, or a mapping with `characters` (the list) and `defaults` (an entry without prompt).
    CSV, separated by commas, semicolons or tabs: a header line with at least `prompt` or `reference`; several settings in one field are
    separated by `;` (in double quotes, in a file whose columns are separated so).

    Every field is text, as it was written: a character may be called no, 007 or Null.

    Raises:
        ConfigError: everything wrong with the file, one line each.
    """
    entries, defaults = _read(path)
    return check_cast([{**defaults, **entry} for entry in entries], path.name, profile, overrides, out)


def check_cast(
    entries: list[dict[str, Any]],
    source: str = "cast",
    profile: str = "embedded",
    overrides: tuple[str, ...] = (),
    out: str = "",
) -> list[RunRequest]:
    """Entries as requests, each with a name and a folder of its own.

    Raises:
        ConfigError: everything wrong with them, one line each; `source` says where they came from.
    """
    if not 0 < len(entries) <= MAX_CAST:
        raise BadInput(f"{source} has {len(entries)} characters; 1 to {MAX_CAST} are taken at once")
    problems: list[str] = []
    requests = [
        _request({"profile": profile, **entry}, index, overrides, problems)
        for index, entry in enumerate(entries, start=1)
    ]
    problems += _doubled(requests)
    if problems:
        raise ConfigError([f"{source}: {problem}" for problem in problems])
    folder, made = in_work_folder(out or "runs"), []
    taken = {place for request in requests if request.out for place in _places(request)}
    for request in requests:
        made.append(request if request.out else replace(request, out=str(_own(folder, request, taken))))
        taken.add(Path(made[-1].out))
    return made


def check_each(requests: list[RunRequest], source: str, home: Home) -> None:
    """Every character as its run will check it, before the first is made.

    Raises:
        ConfigError: everything that is wrong with them, one line each.
    """
    problems: list[str] = []
    for request in requests:
        try:
            check(request, home)
        except ConfigError as error:
            problems += [f"{source}: {request.name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)


def _places(request: RunRequest) -> tuple[Path, Path]:
    """The folder that an entry names, as it is written and without links and dots."""
    place = in_work_folder(request.out)
    return place, files.real(place)


def _own(folder: Path, request: RunRequest, taken: set[Path]) -> Path:
    """The character's folder inside the cast's: another one when an earlier prompt's run is there, or another entry's will be."""
    usual = folder / slug(request.name)
    free = free_folder(usual, request.name, request.prompt, taken)
    if free != usual:
        log.warning("%s is for another prompt's run; %s goes to %s", usual, request.name, free)
    return free


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in CASTS:
        raise BadInput(f"{path}: a cast is a .yaml, .yml or .csv file (.tsv with tabs)")
    text = files.read_text(path, "cast")
    if suffix in (".csv", ".tsv"):
        return list(read_csv(text, path.name, COLUMNS, MAX_CAST)), {}
    return _read_yaml(path, text)


def _read_yaml(path: Path, text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = read_yaml(text, path.name)
    defaults = data.get("defaults") or {} if isinstance(data, dict) else {}
    entries = data.get("characters") if isinstance(data, dict) else data
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in [defaults, *entries]):
        raise BadInput(f"{path}: write a list of characters, each with at least a prompt (see deployments/samples)")
    if isinstance(data, dict) and (unknown := [key for key in data if key not in SECTIONS]):
        wrong = ", ".join(f"{key[:80]} (got {shown_value(data[key])})" for key in unknown[:5])
        raise BadInput(
            f"{path}: no such section: {wrong}; sections are {' and '.join(SECTIONS)}{did_you_mean(unknown[0], SECTIONS)}"
        )
    return entries, defaults


def _request(entry: dict[str, Any], index: int, overrides: tuple[str, ...], problems: list[str]) -> RunRequest:
    problems += [
        f"entry {index}: no such field: {str(key)[:80]} (got {shown_value(value)}); "
        f"fields are {', '.join(COLUMNS)}{did_you_mean(str(key), COLUMNS)}"
        for key, value in entry.items()
        if key not in COLUMNS
    ]
    known = {key: value for key, value in entry.items() if key in COLUMNS and not _is_nothing(key, value)}
    text = {}
    for key, value in known.items():
        if key in ("overrides", "refresh", "seed"):
            continue
        if isinstance(value, list | dict):
            problems.append(
                f"entry {index}: {key} must be text, got a {'list' if isinstance(value, list) else 'section'}"
            )
        elif key != "out" or place_of(str(value), f"entry {index}: out", problems):
            text[key] = str(value)
    if not text.get("prompt") and "prompt" not in known and not text.get("reference"):
        problems.append(
            f"entry {index}: prompt is missing; describe the character in one sentence, or name a picture of it in reference"
        )
    request = RunRequest(
        **{"prompt": "", **text},
        seed=_seed(known.get("seed", 42), index, problems),
        overrides=(*overrides, *_several(known.get("overrides"), "overrides", index, problems)),
        refresh=_several(known.get("refresh"), "refresh", index, problems),
    )
    return request if request.name else replace(request, name=usual_name(request.prompt, request.reference))


def _is_nothing(key: str, value: Any) -> bool:
    """Whether a field is left out; YAML's null too, except in a name, which may be Null."""
    return value in (None, "") or (value in ("null", "Null", "NULL") and key != "name")


def _seed(value: Any, index: int, problems: list[str]) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, str) and WHOLE.fullmatch(value.strip())):
        return int(value)
    problems.append(f"entry {index}: seed must be a whole number, got {str(value)[:80]!r}")
    return 42


def _several(value: Any, key: str, index: int, problems: list[str]) -> tuple[str, ...]:
    if isinstance(value, list):
        if not all(isinstance(item, str | int | float) for item in value):
            problems.append(f"entry {index}: {key} must be a list of texts, e.g. [train.steps=800]")
            return ()
        return tuple(str(item) for item in value)
    if isinstance(value, dict):
        problems.append(f"entry {index}: {key} must be a list of texts, e.g. [train.steps=800], got a section")
        return ()
    parts = re.split(r"[;,\s]" if key == "refresh" else ";", str(value or ""))
    return tuple(part.strip() for part in parts if part.strip())


def _doubled(requests: list[RunRequest]) -> list[str]:
    names = [slug(request.name) for request in requests]
    outs = [str(_places(request)[1]) for request in requests if request.out]
    alike = [unicodedata.normalize("NFC", out).casefold() for out in outs]  # one folder on Windows and macOS
    counted = Counter(alike)
    inner = [
        out
        for out, one in zip(outs, alike, strict=True)
        if {str(above) for above in PurePath(one).parents} & counted.keys()
    ]
    return [
        *(
            f"name {name!r} is used twice; names make the folders"
            for name in sorted({n for n in names if names.count(n) > 1})
        ),
        *(
            f"out {out!r} is used twice; give each character a folder of its own"
            for out in sorted({o for o, one in zip(outs, alike, strict=True) if counted[one] > 1})
        ),
        *(f"out {out!r} lies in another character's folder; give it a place beside that" for out in inner),
    ]
