"""The two generated pages of the manual: all settings from charengine/config.py, all commands from the command line.

A Sphinx extension. A line `<!-- generated: settings -->` or `<!-- generated: commands -->` in a page is replaced when the
page is read. A setting, argument or option without a description stops the build.
"""

from __future__ import annotations

import html
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from charengine.cli.main import app as command_line
from charengine.config import Profile
from charengine.mistakes import KINDS
from charengine.profiles.listing import Group, Setting, as_yaml, groups
from charengine.profiles.loading import load_profile, profile_names

GENERATED = ["reference/settings", "reference/commands"]
COMMAND_ORDER = ("demo", "run", "batch", "compare", "up", "doctor", "inspect", "profiles", "settings")
STAGES = ("sheet", "crop", "expand", "caption", "train", "sweep", "report")


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls when it loads the extension."""
    app.connect("source-read", fill_page)
    app.connect("env-get-outdated", lambda *_: GENERATED)  # the code may have changed
    return {"parallel_read_safe": True, "version": "1"}


def fill_page(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Replace the marks of one page, in place."""
    for name, write in PAGES.items():
        mark = f"<!-- generated: {name} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


# --- settings


def settings_page() -> str:
    """Every setting, section by section, in Markdown.

    Raises:
        ExtensionError: one has no description.
    """
    missing = undescribed_settings()
    if missing:
        raise ExtensionError(f"settings without a description in charengine/config.py: {', '.join(missing)}")
    profiles = {name: load_profile(name) for name in profile_names()}
    parts = []
    for group in groups():
        title = group.title[0].upper() + group.title[1:] if " " in group.title else group.title
        parts += [f"## {title}\n", f"{group.about}\n", _section(group, profiles)]
    return "\n".join(parts)


def undescribed_settings() -> list[str]:
    """Names of the settings that do not say what they do."""
    return [setting.name for group in groups() for setting in group.settings if not setting.about]


def _section(group: Group, profiles: dict[str, Profile]) -> str:
    rows = []
    for setting in group.settings:
        default = "must be given" if setting.must_be_given else _code(setting.default)
        about = _prose(setting.about)
        others = _other_values(setting, profiles)
        if others:
            about += f"<br><small>{others}</small>"
        rows.append(
            (f'<code id="{setting.name.replace(".", "-")}">{setting.name}</code>', _type(setting), default, about)
        )
    return _table(("setting", "allowed", "default", "what it does"), rows)


def _other_values(setting: Setting, profiles: dict[str, Profile]) -> str:
    """Where the shipped profiles differ from the default: `sdxl-12gb: 400`."""
    if setting.name in ("name", "description"):  # every profile has its own
        return ""
    plain = setting.value_in(Profile(name="plain"))
    values = {name: setting.value_in(profile) for name, profile in profiles.items()}
    return ", ".join(f"{name}: {_code(value)}" for name, value in values.items() if value != plain)


def _type(setting: Setting) -> str:
    if words := setting.allowed(_code):
        return words
    raise ExtensionError(f"no words for the type {setting.field.annotation!r}; add them to charengine/mistakes.py")


# --- commands


def commands_page() -> str:
    """Every command with its arguments and options, in Markdown.

    Raises:
        ExtensionError: one has no description.
    """
    missing = undescribed_options()
    if missing:
        raise ExtensionError(f"commands or options without a help text: {', '.join(missing)}")
    found = commands()
    first = [name for name in (*COMMAND_ORDER, *STAGES) if name in found]
    parts = []
    for name in [*first, *sorted(set(found) - set(first))]:
        command = found[name]
        usage = " ".join(["charengine", name, "[OPTIONS]", *(_metavar(p) for p in command.params if _is_argument(p))])
        parts += [f"## charengine {name}\n", f"{command.help}\n", f"```text\n{usage}\n```\n"]
        parts.append(_table(("argument or option", "default", "what it does"), list(_option_rows(command))))
    return "\n".join(parts)


def commands() -> dict[str, Any]:
    """The commands by name: click's, or those of the click that newer typers carry inside."""
    return dict(typer.main.get_command(command_line).commands)  # type: ignore[attr-defined]


def undescribed_options() -> list[str]:
    """Commands, arguments and options that do not say what they are for."""
    missing = [name for name, command in commands().items() if not command.help]
    missing += [f"{name} {p.name}" for name, command in commands().items() for p in command.params if not p.help]
    return missing


def _option_rows(command: Any) -> Iterator[tuple[str, str, str]]:
    kinds = get_type_hints(command.callback)
    for parameter in command.params:
        if _is_argument(parameter):
            name = f"<code>{_metavar(parameter)}</code>"
        else:
            name = ", ".join(f"<code>{option}</code>" for option in parameter.opts)
            if not parameter.is_flag:
                name += f" <small>{_words_of_option(kinds[parameter.name])}</small>"
        yield name, _default_of(parameter), _prose(parameter.help)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _metavar(parameter: Any) -> str:
    name = parameter.name.upper() + ("…" if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _words_of_option(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"{_words_of_option(get_args(kind)[0])}, repeatable"
    if get_origin(kind) in (Union, types.UnionType):
        return _words_of_option(next(part for part in get_args(kind) if part is not type(None)))
    return {**KINDS, Path: "path"}[kind]


def _default_of(parameter: Any) -> str:
    if parameter.required:
        return "must be given"
    default = parameter.default
    if callable(default) or default in (None, "", [], (), False):
        return ""
    return f"<code>{html.escape(str(default))}</code>"


# --- both


def _code(value: Any) -> str:
    """A value as YAML takes it, which is how `--set` reads it."""
    return as_yaml(value) if value is None else f"<code>{html.escape(as_yaml(value))}</code>"


def _prose(text: Any) -> str:
    """A description as HTML; what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(text)))


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    cells = (
        "".join(f'<td data-head="{name}">{cell}</td>' for name, cell in zip(heads, row, strict=True)) for row in rows
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return f'<table class="reference table">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n'


PAGES: dict[str, Callable[[], str]] = {"settings": settings_page, "commands": commands_page}
