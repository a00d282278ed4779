"""What is given twice where one is taken: of two pictures, folders or seeds the last was taken without a word."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from charengine.cli.main import app
from charengine.errors import BadInput

COMMANDS: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
SINGLE = [
    (name, parameter.opts[0])
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag)
]


@pytest.mark.parametrize(("command", "option"), SINGLE)
def test_every_option_that_takes_one_value_refuses_two(command: str, option: str) -> None:
    with pytest.raises(BadInput, match=rf"{option} is given 2 times and takes one value"):
        COMMANDS[command].make_context(command, [option, "1", option, "2"])


def test_a_switch_may_be_repeated_and_settings_may_be_many() -> None:
    words = ["an orc", "--json", "--json", "--set", "train.steps=4", "--set", "train.rank=4", "--set", "train.rank=4"]
    assert COMMANDS["run"].make_context("run", words).params["as_json"] is True


def test_of_a_setting_that_is_given_two_values_it_is_said_which_counts(capsys: pytest.CaptureFixture[str]) -> None:
    COMMANDS["run"].make_context("run", ["an orc", "--set", "train.steps=4", "--set", "train.steps = 5"])
    assert capsys.readouterr().err == "warning: --set train.steps is given 2 times: the last, 5, counts\n"
    COMMANDS["run"].make_context("run", ["an orc", "--set", "train.steps=4", "--set", "sweep.steps=5"])
    assert capsys.readouterr().err == ""
