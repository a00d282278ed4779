"""What is wrong with a setting is said in words: the value, what is allowed, an example; never in pydantic's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from charengine.config import Character, Profile, Settings
from charengine.errors import BadInput, ConfigError
from charengine.machine.environment import unknown_variables
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile, setting_names
from charengine.run.folder import read_run
from charengine.run.request import RunRequest, check


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.rank=0", "train.rank: got 0; give a whole number, 1 to 128, e.g. 16"),
        ("train.rank=many", "train.rank: got 'many'; give a whole number, 1 to 128, e.g. 16"),
        ("train.learning_rate=.nan", "give a number, 1e-09 to 10, e.g. 0.001"),
        ("train.algorithm=foo", "train.algorithm: got 'foo'; give locon or lora or loha or lokr or dora or tlora"),
        ("sheet.gate=perhaps", "sheet.gate: got 'perhaps'; give true or false"),
        ("sweep.strengths=[0.5, 9]", "sweep.strengths: got 9 (item 2); give a list in brackets: number, 0 to 2, e.g. [0.4,"),
        ("models.folders=here", "models.folders: got 'here'; give a list in brackets: text"),
        ("models.edit_loras=[{file: a, strength: 9}]", "models.edit_loras.strength: got 9 (item 1); give a number, -4 to 4"),
        ("sweep.prompts={subject} runs", """quotes: --set 'sweep.prompts=["{subject} runs"]'"""),
        ("sweep.prompts={subject}", """got '{subject}'; give a text with braces in quotes: --set 'sweep.prompts=["{subject}"]'"""),
        ("sweep.prompts={subject} a, {subject} b", """=["{subject} a", "{subject} b"]'"""),
        ("sweep.prompts='{subject} runs'", """a list in brackets: text, at most 2,000 characters, e.g. ["{subject} runs"]"""),
        ("train.flips=null", "train.flips: got 'null'; give auto or on or off"),
        ("train.steps=null", "train.steps: got 'null'; give a whole number, 1 to 100,000"),
        ("train.steps=9 train.rank=4", "got '9 train.rank=4', which holds train.rank too; give each setting a --set"),
        ("train.steps=9,train.rank=4", "in a CSV field a ';' before it"),
        ("sheet.width=100", "give a whole number, 96 to 2,048, a multiple of 16, e.g. 384"),
        ("models.edit=[a]", "models.edit: got ['a']; give text"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_answered_with_what_is_allowed_and_an_example(setting: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("embedded", [setting])
    assert told in str(caught.value)


def test_no_setting_has_a_mistake_that_is_said_in_pydantics_words() -> None:
    for name in setting_names():
        with pytest.raises(ConfigError) as caught:
            load_profile("embedded", [f"{name}={{a: {{b: [c]}}}}"])
        told = caught.value.problems
        assert all(f"{name}:" in line or "train.budget_gib" in line for line in told), told
        assert all(": got " in line and "; give " in line for line in told), told
        assert "Input should" not in str(caught.value) and " valid " not in str(caught.value)


def test_a_section_that_is_none_and_a_profile_without_a_name_are_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train: 5\n")
    with pytest.raises(ConfigError) as caught:
        load_profile(str(tmp_path / "own.yaml"))
    assert caught.value.problems == [
        "name is missing; a profile without it needs the line `extends: NAME`, with one of the shipped profiles",
        "train: got 5; give a section with settings, e.g. train: {steps: 800}",
    ]


LISTS = "`charengine settings{}` lists all of them"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.stepz=800", "train.stepz: got 800, but there is no such setting; did you mean train.steps (whole number, 1 to 100,000)? " + LISTS.format(" train")),
        ("trian.steps=3", "trian.steps: got 3, but there is no such setting; did you mean train.steps (whole number, 1 to 100,000)?"),
        ("steps=800", "steps: got 800, but there is no such setting; did you mean sheet.steps, expand.steps, train.steps or sweep.steps? " + LISTS.format("")),
        ("sheet.rank=4", "did you mean train.rank (whole number, 1 to 128)? " + LISTS.format(" train")),
        ("trian={steps: 3}", "trian: got '{steps: 3}', but there is no such setting; did you mean train? " + LISTS.format(" train")),
        ("train=5", "it is a section: name one of its settings, e.g. train.algorithm. " + LISTS.format(" train")),
        ("train.xyzzy=on", "train.xyzzy: got 'on', but there is no such setting; " + LISTS.format(" train")),
        ("seed=7", "it is said of the character, beside the settings: --seed, or seed in a cast"),
        ("models.edit_loras.strength=1", "models.edit_loras is set as a whole: list: {file, strength}. " + LISTS.format(" models")),
        ("train.rank", "write section.key=value, e.g. train.steps=800; train.rank takes whole number, 1 to 128"),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_exist_is_answered_with_its_value_the_one_that_was_meant_and_what_lists_them(
    setting: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("embedded", [setting])
    [problem] = caught.value.problems
    assert told in problem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trian: {steps: 5}", "trian: got {'steps': '5'}, but there is no such setting; did you mean train? " + LISTS.format(" train")),
        ("train: {stepz: 800}", "train.stepz: got 800, but there is no such setting; did you mean train.steps (whole number, 1"),
        ("models: {edit_loras: [{file: a, stregth: 1}]}", "models.edit_loras.stregth: got 1 (item 1), but there is no such setting; models.edit_loras has file, strength in each entry; did you mean strength? "),
        ("models: {edit_loras: [a, {strength: 1}]}", "models.edit_loras.file is missing (item 2): got {'strength': '1'}; give text, not empty"),
    ],
)  # fmt: skip
def test_a_profiles_misspelt_and_missing_names_are_told_where_they_stand_however_deep(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "own.yaml").write_text(f"extends: embedded\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_profile(str(tmp_path / "own.yaml"))
    [problem] = caught.value.problems
    assert problem.startswith(told) and "extends" not in problem


def test_a_misspelt_variable_of_the_environment_is_said_with_its_value_and_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, charengine: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    said = "CHARENGINE_LOKCS: got 'lease', but there is no such variable; read are CHARENGINE_HOME, "
    done = charengine("profiles", CHARENGINE_LOKCS="lease")
    assert done.returncode == 0 and done.stdout.startswith("embedded")
    assert done.stderr.startswith(f"warning: {said}") and done.stderr.endswith("; did you mean CHARENGINE_LOCKS?\n")
    assert "warning" not in charengine("profiles", CHARENGINE_LOCKS="lease").stderr
    monkeypatch.setenv("CHARENGINE_LOKCS", "lease")
    assert [problem.startswith(said) for problem in unknown_variables()] == [True]


@pytest.mark.parametrize("seed", [-1, 2**31, "many"])
def test_a_characters_mistakes_say_what_is_allowed_too(home: Home, seed: object) -> None:
    with pytest.raises(ConfigError, match=r"seed: got .*; give a whole number, at least 0, below 2,147,483,648"):
        check(RunRequest("an orc", seed=seed), home)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "name is missing"),
        ("[1", "it is no JSON, or is cut short"),
        ('{"name": 5}', "name: got 5; give text"),
        ('{"named": "Aya"}', "named: got 'Aya', but there is no such field; known are name, prompt, "),
    ],
)
def test_a_run_record_that_is_none_is_told_in_words(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_run(tmp_path)
    assert told in str(caught.value) and "; give a run's folder or its run.json" in str(caught.value)
    assert "validation error" not in str(caught.value)


def test_every_field_that_a_user_sets_has_words_for_what_it_may_hold() -> None:
    from charengine.mistakes import allowed_words

    for model in (Profile, Character):
        for name, field in model.model_fields.items():
            inner = field.annotation
            is_section = isinstance(inner, type) and issubclass(inner, Settings)
            fields = inner.model_fields if is_section else {name: field}  # type: ignore[union-attr]
            assert all(allowed_words(one) for one in fields.values()), name


def test_of_a_list_that_is_wrong_in_each_of_thousands_some_mistakes_are_told() -> None:
    with pytest.raises(ConfigError) as told:
        load_profile("embedded", ["expand.kinds=[" + ",".join("1" * 2000) + "]"])
    assert len(str(told.value)) < 20_000 and str(told.value).endswith("mistakes more")
