"""An empty path, as an unset variable of a shell leaves behind, is the current folder to `Path`, and left out to a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.main import get_command

from charengine.cli.main import app
from charengine.errors import BadInput, ConfigError
from charengine.files import expanded
from charengine.machine.home import Home, in_work_folder
from charengine.run.export import find_run
from charengine.run.paths import profile_as_named

COMMANDS: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
TEXTS = {"sheet", "reference", "out", "profile"}  # options of `run` and others that are texts, and paths


def is_path(command: Any, parameter: Any) -> bool:
    kind = get_type_hints(command.callback)[parameter.name]
    return kind is Path or Path in get_args(kind) or (kind is str and parameter.name in TEXTS)


GIVEN = [
    (name, parameter.name, [""] if parameter.param_type_name == "argument" else [parameter.opts[0], ""])
    for name, command in COMMANDS.items()
    for parameter in command.params
    if is_path(command, parameter)
]


@pytest.mark.parametrize(("command", "parameter", "words"), GIVEN, ids=[f"{one[0]}-{one[1]}" for one in GIVEN])
def test_every_command_refuses_an_empty_path_and_says_where(command: str, parameter: str, words: list[str]) -> None:
    with pytest.raises(BadInput, match=rf"(?i){parameter}: an empty path"):
        COMMANDS[command].make_context(command, list(words))


def test_dot_is_the_current_folder_and_what_is_left_out_is_left_out() -> None:
    context = COMMANDS["run"].make_context("run", ["an orc", "--out", "."])
    assert (context.params["out"], context.params["sheet"]) == (".", "")


def test_no_empty_path_is_taken_for_a_folder_wherever_it_comes_from(tmp_path: Path) -> None:
    for taken in (expanded, in_work_folder, lambda path: find_run(Home(tmp_path), path)):
        with pytest.raises(BadInput, match="an empty path"):
            taken("")
    for setting in ('models.folders=[""]', 'models.edit_loras=[""]'):
        with pytest.raises(ConfigError, match="not empty"):
            profile_as_named("embedded", [setting])
