"""`charengine settings`: every setting with its value, default, what is allowed and what it does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import pytest

from charengine.config import Character
from charengine.profiles.listing import groups
from charengine.profiles.loading import load_profile, setting_names

Charengine = Callable[..., subprocess.CompletedProcess[str]]


def test_every_setting_is_printed_with_its_default_what_it_may_be_and_what_it_does(cli: Charengine) -> None:
    done = cli("settings")
    assert done.returncode == 0, done.stderr
    entries = {re.split(r" = |: ", block.strip(), maxsplit=1)[0]: block for block in done.stdout.split("\n\n")}
    assert [name for name in [*setting_names(), *Character.model_fields] if name not in entries] == []
    assert (
        entries["train.distill"].splitlines()[0] == "  train.distill = 16 (default: 0)"
        and entries["train.steps"]
        == "  train.steps = 400 (default: 300)\n      whole number, 1 to 100,000\n      optimizer steps"
    )
    assert entries["seed"].splitlines()[1] == "      whole number, at least 0, below 2,147,483,648"
    silent = [one.name for group in groups() for one in group.settings if len(one.lines(load_profile())) != 3]
    assert silent == [] and all(len(entries[name].splitlines()) == 3 for name in setting_names())


def test_one_section_or_one_setting_is_printed_as_a_profile_sets_it(cli: Charengine) -> None:
    done = cli("settings", "sweep")
    assert "sweep.strengths = [0.4, 0.6, 0.8, 1.0, 1.2, 1.4]\n      list: number, 0 to 2\n" in done.stdout
    assert "train." not in done.stdout
    done = cli("settings", "train.steps", "--profile", "sdxl-12gb")
    assert "  train.steps = 400 (default: 300)\n" in done.stdout and "train.rank" not in done.stdout


def test_what_is_printed_is_what_set_takes(cli: Charengine) -> None:
    for profile in ("embedded", "sdxl-24gb"):
        said = dict(
            re.findall(r"^  (\S+) = (.*?)(?: \(default: .*\))?$", cli("settings", "--profile", profile).stdout, re.M)
        )
        sets = [
            f"{name}={'' if value == 'empty' else value}" for name, value in said.items() if name in setting_names()
        ]
        assert len(sets) == len(setting_names()) - 1  # all but the name
        again = load_profile(profile, [text for text in sets if not text.startswith("description")])
        assert again.model_dump() == load_profile(profile).model_dump()


def test_a_program_reads_the_same(cli: Charengine) -> None:
    rows = {row["name"]: row for row in json.loads(cli("settings", "--json", "--profile", "sdxl-12gb").stdout)}
    assert set(rows) >= {*setting_names(), *Character.model_fields}
    steps = rows["train.steps"]
    assert (steps["value"], steps["default"], steps["must_be_given"]) == (400, 300, False)
    assert (steps["allowed"], steps["about"]) == ("whole number, 1 to 100,000", "optimizer steps")


@pytest.mark.parametrize(
    ("wanted", "told"),
    [("trian", "sections are profile, models, sheet"), ("trian", "; did you mean train?"), ("train.step", "; did you mean train.steps?")],
)  # fmt: skip
def test_a_section_or_setting_that_does_not_exist_is_bad_input(cli: Charengine, wanted: str, told: str) -> None:
    done = cli("settings", wanted)
    assert done.returncode == 2 and done.stdout == ""
    assert f"got '{wanted}', but there is no such setting" in done.stderr and told in done.stderr
