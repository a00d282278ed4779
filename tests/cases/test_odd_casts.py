"""Casts, profiles and settings that were taken for something else without a word, held a command up, or failed once everything had begun."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from charengine.documents import read_csv
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile, setting_names
from charengine.run.cast import check_cast, read_cast
from charengine.run.paths import profile_as_named


@pytest.fixture(autouse=True)
def _work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cast_of(text: str, name: str = "cast.yaml", **how: str) -> list:
    Path(name).write_text(text, encoding="utf-8")
    return read_cast(Path(name), **how)


def test_an_empty_field_is_what_the_command_and_the_defaults_say() -> None:
    rows = cast_of("name,prompt,profile\nA,an orc,\nB,an elf,origin\n", "cast.csv", profile="sdxl-12gb")
    assert [one.profile for one in rows] == ["sdxl-12gb", "origin"]
    defaults = "defaults: {profile: origin, seed: 7, trigger: abcd}\ncharacters:\n"
    one, two = cast_of(
        f"{defaults}- {{name: A, prompt: x, profile: , seed: ~, trigger: null}}\n- {{name: B, prompt: x, profile: '', trigger: ''}}\n",
        profile="sdxl-24gb",
    )
    assert (one.profile, one.seed, one.trigger) == ("origin", 7, "abcd")
    assert (two.profile, two.trigger) == ("sdxl-24gb", ""), "in quotes it is said: nothing"
    assert check_cast([{"prompt": "x", "profile": ""}], profile="origin")[0].profile == "origin"


@pytest.mark.parametrize(("written", "meant"), [("''", ""), ("'null'", "null"), ("~", None), ("'x #2'", "x #2")])
def test_text_in_quotes_stays_text_in_a_mapping_of_settings(written: str, meant: str | None) -> None:
    [one] = cast_of(f"- {{prompt: an orc, overrides: {{models.negative_prompt: {written}, sweep.strengths: '[1.0]'}}}}")
    profile = load_profile("embedded", one.overrides)
    assert profile.models.negative_prompt == meant and profile.sweep.strengths == (1.0,)


def test_a_list_is_a_list_in_a_mapping_of_settings_too() -> None:
    settings = "sweep.strengths: [0.5, 1], models.edit_loras: [a, 'b: c']"
    [one] = cast_of(f"- {{prompt: an orc, overrides: {{{settings}}}}}")
    profile = load_profile(one.profile, one.overrides)
    assert profile.sweep.strengths == (0.5, 1.0) and [one.file for one in profile.models.edit_loras] == ["a", "b: c"]
    with pytest.raises(ConfigError, match=r"train\.steps"):
        check_cast([{"prompt": "an orc", "overrides": {"train.steps": [3]}}], home=Home(Path("home")))


@pytest.mark.parametrize(
    ("out", "told"),
    [("runs", "has another character's folder inside it"), ("runs/a/dataset", "lies in another character's folder")],
)
def test_no_folder_lies_in_or_around_one_that_another_entry_gets(out: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cast_of(f"name,prompt,out\nA,an orc,\nB,an elf,{out}\n", "cast.csv")


@pytest.mark.parametrize("cell", ["#REF!", "#N/A", "#NAME?", "#DIV/0!", "Err:502", "=A1&B2", " =CONCAT(A1)"])
def test_what_a_spreadsheet_could_not_compute_is_no_text(cell: str) -> None:
    with pytest.raises(ConfigError, match=r"line 3, column 2 \(prompt\): got .*of a spreadsheet"):
        cast_of(f"name,prompt\nA,an orc = a brute #1\nB,{cell}\n", "cast.csv")


def test_a_faulty_row_of_a_million_fields_is_told_at_once() -> None:
    start = time.monotonic()
    _, problems = read_csv("name,prompt\n" + "a," * 300_000 + '"b" c\n', "cast.csv", ("name", "prompt"), 9)
    assert "column 300001: ',' expected after" in problems[0] and time.monotonic() - start < 20


def test_messages_stay_short_whatever_the_name_is() -> None:
    with pytest.raises(BadInput) as caught:
        check_cast([{"prompt": "", "name": "a" * 100_000, "refresh": "b" * 100_000, "seed": "x"}])
    assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError) as caught:
        load_profile("embedded", ["caption.keep=" + "x" * 100_000])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", [one for one in setting_names() if one.endswith(("prompt", "prefix")) or one == "description"]
)
def test_words_longer_than_a_model_reads_are_refused(name: str) -> None:
    load_profile("embedded", [f"{name}={'x ' * 999}x"])
    with pytest.raises(ConfigError, match=f"{name}: .*at most 2,000 characters"):
        load_profile("embedded", [f"{name}={'x ' * 1001}"])


@pytest.mark.parametrize("name", ["caption.keep", "caption.drop", "sweep.prompts"])
def test_so_are_those_of_a_list(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .*at most 2,000 characters"):
        load_profile("embedded", [f"{name}=['{{subject}}{'x ' * 1001}']"])


@pytest.mark.parametrize("name", ["''", '"a\\nb"', "a" * 101])
def test_a_profiles_name_is_a_line_that_pages_can_show(name: str) -> None:
    with pytest.raises(ConfigError, match="^name: "):
        load_profile("embedded", [f"name={name}"])


def test_zero_has_no_sign() -> None:
    profile = load_profile("embedded", ["sweep.strengths=[-0.0, 0.5]", "expand.margin=-0.0"])
    assert f"{profile.sweep.strengths[0]:g}{profile.expand.margin:g}" == "00"
    with pytest.raises(ConfigError, match="strengths has '0' twice"):
        load_profile("embedded", ["sweep.strengths=[-0, 0, 0.5]"])


def test_capitals_are_understood_or_told() -> None:
    Path("MINE.YAML").write_text("extends: embedded\nname: mine\n")
    assert profile_as_named("MINE.YAML").name == "mine"
    with pytest.raises(ConfigError, match="did you mean train.steps "):
        load_profile("embedded", ["TRAIN.STEPS=5"])
    with pytest.raises(ConfigError, match="did you mean class_noun"):
        cast_of("- {CLASS_NOUN: woman, prompt: x}")


@pytest.mark.parametrize("path", ["~\0", "~\ud83d/x", "~nobody\0/x.yaml"])
def test_a_home_that_cannot_be_asked_for_is_refused_wherever_paths_stand(path: str) -> None:
    for fields in ({"out": path}, {"sheet": path}, {"profile": f"{path}.yaml"}):
        with pytest.raises(BadInput, match="no home folder is known"):
            check_cast([{"prompt": "x", **fields}], home=Home(Path("home")))
