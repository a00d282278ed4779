"""YAML and CSV as people write them: text stays text, and what is ambiguous is refused with its line.

YAML 1.1 takes the name `no` for a truth value, 007 for a number and 12:30 for seconds. Here every scalar is the text that was
written; whoever reads it knows which type is wanted. Keys that stand twice, tags, control characters and documents that are too
large, too deep or grow when their aliases are written out are refused before anything is built from them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from charengine.errors import HIDDEN, ConfigError
from charengine.misspelt import did_you_mean

MOST_NODES = 100_000  # keys, values and lists of one document, aliases written out
DEEPEST = 20  # lists and mappings inside each other
DELIMITERS = ",;\t"
MOST_TOLD = 100  # mistakes of a table's lines
NOTHING = ("", "~")  # plain scalars that say that there is no value
PLAIN_NULL = "null"  # may be a name; where there are none, `is_nothing`
MERGE = "<<"
UNCOMPUTED = re.compile(
    r"#(?:(?:REF|VALUE|DIV/0|NUM|NULL|SPILL|CALC|FIELD|BLOCKED)!|NAME\?|N/A|GETTING_DATA)|Err:\d{3}|=.*"
)
CONTROL = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f{HIDDEN}]")

# two escapes for one character, as JSON is written, which YAML does not have
PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the C one where it is built: a hundred times faster


# --- YAML -------------------------------------------------------------------------------------------------------------


def read_yaml(text: str, source: str) -> Any:
    """The document: mappings, lists, and scalars as the text that was written (`Quoted` where they were); None where nothing is written.

    Args:
        text: the document.
        source: whose it is, before the line in messages.

    Raises:
        ConfigError: it is no YAML, or one of the things that are refused; every key that stands twice.
    """
    return _read(text, source)[0]


def _read(text: str, source: str) -> tuple[Any, int]:
    """The document, and where what is written ends."""
    try:
        builder = _Builder(source)
        return builder.document(_events(text)), builder.end
    except yaml.YAMLError as error:
        if (whole := PAIR.sub(_of_pair, text)) != text:
            found, end = _read(whole, source)
            return found, end + len(text) - len(whole)
        raise ConfigError(f"{source} is not valid YAML: {_first_words(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is not valid YAML: {type(error).__name__}") from error
    except UnicodeError as error:
        raise ConfigError(
            f"{source} holds bytes that are no UTF-8; settings are kept as UTF-8 text: rename the file or folder, or name a link to it"
        ) from error


def read_value(text: str, source: str) -> Any:
    """One value by itself, as `--set` is given it: as `read_yaml`, but a # in a text begins no comment there: `pics #2` is a name.

    Raises:
        ConfigError: as `read_yaml`; something stands behind a list or a text in quotes.
    """
    found, end = _read(text, source)
    behind = text[end:].strip()
    if not behind:
        return found
    if found is None or type(found) is str:
        return " ".join(text.split())
    raise ConfigError(f"{source}: {behind[:80]!r} stands behind the value, where nothing is read; leave it out")


def as_value(value: object) -> str:
    """A value as `read_value` reads it back; a text as it is where that is the same.

    Raises:
        ConfigError: it cannot be written.
    """
    if not isinstance(value, str | Path):
        try:
            return json.dumps(value, default=str, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"a {type(value).__name__} that cannot be written ({error}); give a number, a text, or a list of them"
            ) from error
    text = str(value)
    try:
        same = text != PLAIN_NULL and type(found := read_value(text, "")) is str and found == text
    except ConfigError:
        same = False
    return text if same else json.dumps(text, ensure_ascii=False)


def is_nothing(value: object) -> bool:
    """Whether it says that there is no value: nothing is written, or null without quotes."""
    return value is None or (value == PLAIN_NULL and not isinstance(value, Quoted))


def _events(text: str) -> Iterator[Any]:
    events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
    return events


class Quoted(str):
    """A scalar that was written in quotes, or as a block: text, whatever it says."""


def _of_pair(found: re.Match[str]) -> str:
    return found[1] + bytes.fromhex(found[2] + found[3]).decode("utf-16-be")


def _first_words(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    told = f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)
    if "Unicode character escape" in str(problem):
        return f"{told}; it stands for no character: write the character itself"
    if "escape" in str(problem) or "hexdecimal" in str(problem):
        told += "; between double quotes a backslash begins an escape: put a Windows path in single quotes, or write it with /"
    return told


class _Builder:
    """Builds one document from the parser's events, counting as it goes."""

    def __init__(self, source: str) -> None:
        self.end = 0  # of what is written, in characters
        self._source = source
        self._events: Iterator[Any] = iter(())
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._doubled: list[str] = []

    def document(self, events: Iterator[Any]) -> Any:
        """The only document.

        Raises:
            ConfigError: something in it is refused.
        """
        self._events = self._noting_the_end(events)
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._refuse(event, "a second document begins here (---); write one")
        if self._doubled:
            raise ConfigError(self._doubled)
        return value

    def _noting_the_end(self, events: Iterator[Any]) -> Iterator[Any]:
        """The events; where what was written ends, the last before the document's own end says: that stands behind comments."""
        last = None
        for event in events:
            if isinstance(event, yaml.DocumentEndEvent) and last:
                self.end = last.end_mark.index
            last = event
            yield event

    def _refuse(self, event: Any, why: str) -> None:
        raise ConfigError(f"{self._source}, line {event.start_mark.line + 1}: {why}")

    def _count(self, event: Any, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            self._refuse(
                event, f"too much is written here: at most {MOST_NODES:,} keys and values are read, aliases included"
            )

    def _node(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if depth > DEEPEST:
            self._refuse(event, f"lists and sections are nested more than {DEEPEST} deep")
        before = self._nodes
        self._count(event, 1)
        if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
            self._refuse(event, f"not valid YAML here: the tag {event.tag} is not read; write the value without it")
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                value.append(self._node(inner, depth + 1))
        else:
            value = self._mapping(depth)
        if event.anchor:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            self._refuse(event, f"*{event.anchor} names nothing that is written before it")
        value, nodes = self._anchors[event.anchor]
        self._count(event, nodes)
        return value

    def _scalar(self, event: Any) -> str | None:
        text: str = event.value
        if found := CONTROL.search(text):
            self._refuse(event, f"the control character {found[0]!a} stands in a value; remove it")
        return Quoted(text) if event.style else None if text in NOTHING else text

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[Any] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            line = event.start_mark.line + 1
            if not isinstance(key, str):
                self._refuse(event, "a key must be a word")
            elif key == MERGE and isinstance(event, yaml.ScalarEvent) and not event.style:
                merged += value if isinstance(value, list) else [value]
                if not all(isinstance(one, dict) for one in merged):
                    self._refuse(
                        event, f"{MERGE} takes in a section, or a list of some: write *NAME of one that is marked &NAME"
                    )
            elif key in lines:
                self._doubled.append(
                    f"{self._source}: {key!r} stands twice in one entry, in lines {lines[key]} and {line}; "
                    "leave one, or begin a new entry with a dash"
                )
            else:
                found[key], lines[key] = value, line
        for one in merged:
            found = {**one, **found}
        return found


# --- CSV --------------------------------------------------------------------------------------------------------------


def read_csv(
    text: str, source: str, columns: tuple[str, ...], most: int
) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The rows of a table with a header, each with its line, and what is wrong with others, with line and column; separated by commas, semicolons or tabs: whichever its header uses.

    Empty columns behind the last named one and rows without any value are what spreadsheets leave; they are passed over.

    Args:
        text: the table.
        source: whose it is, before the line in messages.
        columns: names that the header may have.
        most: rows; reading stops at one more.

    Raises:
        ConfigError: nothing in it can be read.
    """
    lines = [(number, line) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1) if line.strip()]
    said = re.fullmatch(r"sep=(.)", lines[0][1].strip("\r\n ")) if lines else None  # written by spreadsheets
    if said and said[1] not in DELIMITERS:
        raise ConfigError(
            f"{source}, line {lines[0][0]}: {said[1]!a} separates no fields here; use a comma, a semicolon or a tab"
        )
    lines = lines[1:] if said else lines
    if not lines:
        raise ConfigError(f"{source} is empty: write a header line with at least {columns[0]!r}")
    delimiter = said[1] if said else max(DELIMITERS, key=lambda mark: len(_known(lines[0][1], mark, columns)))
    problems: list[str] = []
    header = [name.strip().lower() for name in _cells(*lines[0], delimiter, [], source, problems)]
    header = header[: _filled(header)]
    problems += _header_problems(header, columns, f"{source}, line {lines[0][0]}")
    rows: list[tuple[int, dict[str, str]]] = []
    for number, line in lines[1:]:
        if len(problems) > MOST_TOLD:
            problems.append(f"{source}: what stands behind line {number - 1} was not read after so many mistakes")
            break
        cells = _cells(number, line, delimiter, header, source, problems)
        cells = cells[: max(len(header), _filled(cells))]
        if not _filled(cells):
            continue
        if len(cells) != len(header):
            problems.append(
                f"{source}, line {number}: {len(cells)} fields, the header has {len(header)} ({', '.join(header)}); "
                f"put a field that holds {delimiter!r} in double quotes"
            )
            continue
        problems += _uncomputed(header, cells, f"{source}, line {number}")
        rows.append((number, {name: cell for name, cell in zip(header, cells, strict=True) if name in columns}))
        if len(rows) > most:
            break
    return rows, problems


def _uncomputed(header: list[str], cells: list[str], place: str) -> list[str]:
    """A line for each field that a spreadsheet wrote in place of a value: one of its errors, or the formula itself."""
    return [
        f"{place}, column {column} ({name}): got {cell[:80]!r}, which is {'a formula' if cell.lstrip().startswith('=') else 'an error'} of a spreadsheet "
        "and no text; put what it was to say there"
        for column, (name, cell) in enumerate(zip(header, cells, strict=True), start=1)
        if UNCOMPUTED.fullmatch(cell.strip())
    ]


def _filled(cells: list[str]) -> int:
    """Up to which column a row holds anything."""
    return max((column for column, cell in enumerate(cells, start=1) if cell.strip()), default=0)


def _known(line: str, delimiter: str, columns: tuple[str, ...]) -> set[str]:
    return {cell.strip().strip('"').lower() for cell in line.split(delimiter)} & set(columns)


def _header_problems(header: list[str], columns: tuple[str, ...], place: str) -> list[str]:
    unknown = [name for name in header if name and name not in columns]
    nameless = [f"{place}: column {number} has no name" for number, name in enumerate(header, start=1) if not name]
    doubled = sorted({name for name in header if header.count(name) > 1})
    return [
        *nameless,
        *(
            f"{place}: no such field: {name!r}; fields are {', '.join(columns)}{did_you_mean(name, columns)}"
            for name in unknown
        ),
        *(f"{place}: the column {name!r} stands twice; leave one" for name in doubled if name in columns),
    ]


def _cells(number: int, line: str, delimiter: str, header: list[str], source: str, problems: list[str]) -> list[str]:
    """The fields of one line; [] with a problem when they cannot be told apart.

    A quoted field must end in its line: a quote that is never closed would swallow the rows below it.
    """
    place = f"{source}, line {number}"
    if found := CONTROL.search(line):
        problems.append(f"{place}: the control character {found[0]!a} stands in a field; remove it")
        return []
    try:
        return _fields(line, delimiter)
    except csv.Error as error:
        column = _open_column(line, delimiter)
        name = f" ({header[column - 1]})" if 0 < column <= len(header) else ""
        if "unexpected end" in str(error):
            problems.append(
                f"{place}, column {column}{name}: a quote opened in line {number} is never closed in it; "
                'close it, or write a quote inside a field as ""'
            )
        elif "field larger" in str(error):
            problems.append(
                f"{place}, column {column}{name}: a field has more than {csv.field_size_limit():,} characters"
            )
        else:
            problems.append(f'{place}, column {column}{name}: {error}; write a quote inside a field as ""')
        return []


def _fields(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))


def _open_column(line: str, delimiter: str) -> int:
    """The column, from 1, in which the fields can no longer be told apart; looked for once through the line, which may have a million."""
    mark = re.escape(delimiter)
    field = re.compile(rf""" *+(?:"[^"]*+(?:""[^"]*+)*+"|(?!")[^{mark}]*+)(?={mark}|$)""")
    column, place = 1, 0
    while (found := field.match(line, place)) and found.end() < len(line):
        if len(found[0]) > csv.field_size_limit():
            break
        column, place = column + 1, found.end() + 1
    return column
