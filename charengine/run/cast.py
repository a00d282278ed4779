"""A cast: many characters in one YAML or CSV file, read and checked together."""

from __future__ import annotations

import csv
import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from charengine.errors import BadInput, ConfigError
from charengine.machine.home import in_work_folder
from charengine.run.request import RunRequest, name_from_prompt, slug

MAX_CAST = 1000
COLUMNS = tuple(field.name for field in fields(RunRequest))


def read_cast(
    path: Path, *, profile: str = "embedded", overrides: tuple[str, ...] = (), out: str = ""
) -> list[RunRequest]:
    """The characters of a cast file; an entry's own profile, settings and folder win over the ones given.

    YAML: a list of entries, or a mapping with `characters` (the list) and `defaults` (an entry without prompt).
    CSV: a header line with at least `prompt`; several settings in one field are separated by `;`.

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
    folder = in_work_folder(out or "runs")
    return [request if request.out else replace(request, out=str(folder / slug(request.name))) for request in requests]


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); give a YAML or CSV file") from error
    if path.suffix.lower() == ".csv":
        return [dict(row) for row in csv.DictReader(io.StringIO(text))], {}
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path, text)
    raise BadInput(f"{path}: a cast is a .yaml, .yml or .csv file")


def _read_yaml(path: Path, text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from error
    defaults = data.get("defaults") or {} if isinstance(data, dict) else {}
    entries = data.get("characters") if isinstance(data, dict) else data
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in [defaults, *entries]):
        raise BadInput(f"{path}: write a list of characters, each with at least a prompt (see deployments/samples)")
    return entries, defaults


def _request(entry: dict[str, Any], index: int, overrides: tuple[str, ...], problems: list[str]) -> RunRequest:
    unknown = [str(key) for key in entry if key not in COLUMNS]
    if unknown:
        problems.append(f"entry {index}: no such field: {', '.join(unknown)}; fields are {', '.join(COLUMNS)}")
    known = {key: value for key, value in entry.items() if key in COLUMNS and value not in (None, "")}
    text = {key: str(value) for key, value in known.items() if key not in ("overrides", "refresh", "seed")}
    if not text.get("prompt"):
        problems.append(f"entry {index}: prompt is missing; describe the character in one sentence")
    request = RunRequest(
        **{"prompt": "", **text},
        seed=_seed(known.get("seed", 42), index, problems),
        overrides=(*overrides, *_several(known.get("overrides"))),
        refresh=_several(known.get("refresh")),
    )
    return request if request.name else replace(request, name=name_from_prompt(request.prompt))


def _seed(value: Any, index: int, problems: list[str]) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        problems.append(f"entry {index}: seed must be a whole number, got {value!r}")
        return 42


def _several(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return tuple(part.strip() for part in str(value or "").split(";") if part.strip())


def _doubled(requests: list[RunRequest]) -> list[str]:
    names = [slug(request.name) for request in requests]
    return [
        f"name {name!r} is used twice; names make the folders"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
