"""Casts, profiles and settings as people write them: text stays text, and what is ambiguous is refused with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from charengine.config import Character, Profile
from charengine.dataset.folder import read_caption
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home
from charengine.machine.places import check_folder
from charengine.profiles.loading import load_profile
from charengine.run.cast import check_cast, read_cast
from charengine.wording import name_problem, noun_problem, phrase_problem, trigger_problem


def cast_of(tmp_path: Path, text: str, name: str = "cast.yaml") -> list:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_cast(tmp_path / name)


def refused(tmp_path: Path, text: str, name: str = "cast.yaml") -> str:
    with pytest.raises(BadInput) as caught:
        cast_of(tmp_path, text, name)
    return str(caught.value)


def profile_of(tmp_path: Path, text: str, *settings: str, name: str = "mine.yaml") -> Profile:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return load_profile(str(tmp_path / name), settings)


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["no", "off", "Yes", "007", "12:30", "0x1F", "1e3", "1_000", "2026-11-29", "Null", "1.50", "0o7"]
)
def test_a_name_is_the_text_that_was_written(tmp_path: Path, name: str) -> None:
    (entry,) = cast_of(tmp_path, f"characters:\n  - name: {name}\n    prompt: an orc\n")
    assert entry.name == name


@pytest.mark.parametrize("nothing", ["", "~", "null"])
def test_a_field_without_a_value_is_left_out(tmp_path: Path, nothing: str) -> None:
    (entry,) = cast_of(tmp_path, f"- prompt: an orc\n  trigger: {nothing}\n  seed: {nothing}\n")
    assert (entry.trigger, entry.seed) == ("", 42)


def test_null_in_quotes_is_text(tmp_path: Path) -> None:
    (entry,) = cast_of(tmp_path, "- prompt: \"null\"\n  trigger: 'null'\n  class_noun: null\n")
    assert (entry.prompt, entry.trigger, entry.class_noun) == ("null", "null", "")
    assert check_cast([entry.as_parameters()]) == [entry]  # as the command hands it to its flow


def test_emoji_are_read_as_json_writes_them(tmp_path: Path) -> None:
    (entry,) = cast_of(tmp_path, f"- prompt: {json.dumps('😀 elf, 👩🏽‍🚀')}\n  name: A\n")
    assert entry.prompt == "😀 elf, 👩🏽‍🚀"
    with pytest.raises(ConfigError, match="stands for no character: write the character itself"):
        cast_of(tmp_path, '- prompt: "\\ud83d elf"\n')


@pytest.mark.parametrize("nothing", ["", "~", "null"])
def test_a_setting_that_may_be_empty_can_be_emptied_again(tmp_path: Path, nothing: str) -> None:
    """Empty leaves it to the checkpoint's files; no text at all is written ''."""
    settings = "{negative_prompt: blurry, prompt_prefix: masterpiece, zero_terminal_snr: true, sdxl: x}"
    text = f"extends: embedded\nname: mine\nmodels: {settings}\n"
    names = ("negative_prompt", "prompt_prefix", "zero_terminal_snr", "sdxl")
    models = profile_of(tmp_path, text, *(f"models.{name}={nothing}" for name in names)).models
    assert [getattr(models, name) for name in names] == [None, None, None, ""]
    assert profile_of(tmp_path, text, "models.negative_prompt=''").models.negative_prompt == ""


def test_keys_that_stand_twice_are_all_refused_with_both_lines(tmp_path: Path) -> None:
    told = refused(
        tmp_path,
        "characters:\n  - name: Grisha\n    prompt: an orc\n    name: Tin Tom\n    prompt: a robot\n  - name: Vex\n    prompt: x\n",
    )
    assert "'name' stands twice in one entry, in lines 2 and 4" in told and "'prompt'" in told and "3 and 5" in told


def test_aliases_and_merges_work_and_cannot_grow_without_end(tmp_path: Path) -> None:
    first, second = cast_of(tmp_path, "- &a {name: Aya, prompt: an orc, seed: 3}\n- {<<: *a, name: Bea}\n")
    assert (second.name, second.prompt, second.seed) == ("Bea", first.prompt, 3)
    laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    assert "at most 100,000 keys and values" in refused(tmp_path, laughs)
    assert "names nothing" in refused(tmp_path, "- *unknown\n")
    assert "names nothing" in refused(tmp_path, "&a [*a]\n")  # inside itself


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- " * 900 + "x", "nested more than 20 deep"),
        ("[" * 900 + "]" * 900, "nested more than 20 deep"),
        ("- {prompt: an orc}\n" * 150_000, "at most 100,000"),
        ("- prompt: " + "x" * 5_000_000, "at most 4.0 MB"),
        ("- prompt: !!python/name:os.system an orc", "the tag"),
        ("- prompt: !!int 3", "the tag"),
        ("- prompt: an orc\n---\n- prompt: an elf", "line 2: a second document"),
        ('- prompt: "an orc\\0"', "line 1: the control character"),
        ('- prompt: "\\e[31man orc"', "control character '\\x1b'"),
        ("- ? [a]\n  : b", "a key must be a word"),
        ("- prompt: [an, orc]", "entry 1 (character): prompt must be text"),
        ("- prompt: {an: orc}", "entry 1 (character): prompt must be text"),
        ("- {prompt: an orc, overrides: {train.steps: [[3]]}}", "overrides must be a list"),
        ("- {prompt: an orc, overrides: [{train.steps: 3}]}", "overrides must be a list"),
        ("", "list of characters"),
        ("character:\n- {prompt: an orc}", "list of characters"),
        (
            "characters: [{prompt: an orc}]\nprofile: sdxl-12gb",
            "no such section: profile (got 'sdxl-12gb'); sections are characters and defaults",
        ),
        ("charakters: [{prompt: an orc}]\ncharacters: [{prompt: an orc}]", "; did you mean characters?"),
        ("- {promt: an orc}", "no such field: promt (got 'an orc'); fields are prompt, name, "),
        ("- {prompt: an orc\n", "line"),
        ("\t- prompt: an orc", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_built(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


@pytest.mark.parametrize("seed", [".inf", "3.7", "true", "1e3", "many", "0x10", "12:30", "[1]"])
def test_a_seed_is_a_whole_number(tmp_path: Path, seed: str) -> None:
    assert "seed must be a whole number" in refused(tmp_path, f"- {{prompt: an orc, seed: '{seed}'}}\n")
    assert "seed must be a whole number" in refused(tmp_path, f"- {{prompt: an orc, seed: {seed}}}\n")


@pytest.mark.parametrize("seed", [3.7, True, float("inf"), float("nan"), [1]])
def test_a_seed_from_a_form_is_a_whole_number(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        check_cast([{"prompt": "an orc", "seed": seed}])


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_are_told_from_the_header(tmp_path: Path, mark: str) -> None:
    text = "\r\n".join(
        ["name|prompt|seed", "Grisha|an orc woman, in a blue coat|7".replace(", ", " "), "007|a spy|8", ""]
    )
    entries = cast_of(tmp_path, text.replace("|", mark), "cast.csv")
    assert [(entry.name, entry.seed) for entry in entries] == [("Grisha", 7), ("007", 8)]


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    text = '\ufeffsep=;\nName;Prompt;Overrides\nAya;"an orc; with ""tusks""";"train.steps=9;train.rank=4"\n'
    (entry,) = cast_of(tmp_path, text, "cast.csv")
    assert cast_of(tmp_path, 'prompt,refresh\nan orc,"train, sweep"\n', "b.csv")[0].refresh == ("train", "sweep")
    assert entry.prompt == 'an orc; with "tusks"' and entry.overrides == ("train.steps=9", "train.rank=4")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_empty_columns_and_rows_that_a_spreadsheet_leaves_are_passed_over(tmp_path: Path, mark: str) -> None:
    text = "name,prompt,,\nGrisha,an orc,,\n,,,\nTom,a robot\n,,\n \n"
    entries = cast_of(tmp_path, text.replace(",", mark), "cast.csv")
    assert [(entry.name, entry.prompt) for entry in entries] == [("Grisha", "an orc"), ("Tom", "a robot")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('name,prompt\nGrisha,"an orc\nTom,a robot\nVex,a woman\n', "a quote opened in line 2 is never closed"),
        ('name,prompt\nGrisha,"an orc\nTom,"a robot"\n', "a quote opened in line 2 is never closed"),
        ('name,prompt\n"Grisha,an orc\nTom,a robot"\n', "line 2, column 1 (name): a quote opened in line 2"),
        ('name,prompt\nGrisha,"an" orc\n', "line 2, column 2 (prompt)"),
        ("name,prompt\nGrisha,an orc, in blue\n", "line 2: 3 fields, the header has 2"),
        ("name,prompt\nGrisha\n", "line 2: 1 fields"),
        ("name,prompt,name\nA,an orc,B\n", "line 1: the column 'name' stands twice"),
        ("name,promt\nA,an orc\n", "line 1: no such field: 'promt'; fields are prompt, name, "),
        ("name,promt\nA,an orc\n", "; did you mean prompt?"),
        ("name|prompt\nA|an orc\n", "line 1: no such field"),
        ("name,prompt\nA,an \x1b[31morc\n", "line 2: the control character"),
        ("", "is empty"),
        ("sep=;\n", "is empty: write a header line"),
        ("sep=;", "is empty"),
        ('sep="\nname"prompt\nA"an orc\n', "line 1: '\"' separates no fields here; use a comma"),
        ("sep=e\nname,prompt\nA,an orc\n", "line 1: 'e' separates no fields"),
        ("name,,prompt\nA,x,an orc\n", "line 1: column 2 has no name"),
        ("name,prompt,,\nA,an orc,,x\n", "line 2: 4 fields, the header has 2"),
        ("name,prompt\nA," + "an orc " * 40000, "column 2 (prompt): a field has more than 131,072 characters"),
        ("prompt\n" + "an orc\n" * 15_000, "characters; 1 to 10000"),
        ("prompt,seed\nan orc,3.5\n", "seed must be a whole number"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_with_its_row(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text, "cast.csv")


@pytest.mark.parametrize("name", ["cast.csv", "cast.yaml"])
def test_a_cast_that_is_not_utf8_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("prompt\nan orc na\xefve\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"not UTF-8 text \(line 2\)"):
        read_cast(tmp_path / name)


# --- profiles and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["off", "on", "auto"])
def test_a_choice_may_be_called_on_or_off(tmp_path: Path, value: str) -> None:
    train = load_profile("embedded", [f"train.flips={value}", "train.cuda_graph=off"]).train
    assert (train.flips, train.cuda_graph) == (value, "off")
    assert profile_of(tmp_path, f"extends: embedded\nname: me\ntrain: {{flips: {value}}}\n").train.flips == value


def test_the_settings_types_decide_what_a_text_means(tmp_path: Path) -> None:
    text = "extends: embedded\nname: 007\ntrain: {steps: 12, learning_rate: 1e-3, deterministic: yes, cuda_graph: off}\nmodels: {edit: 2511, folders: [no, 1.50]}\nsweep: {strengths: [0.5, 1]}\n"
    profile = profile_of(tmp_path, text)
    assert (profile.name, profile.models.edit, profile.models.folders) == ("007", "2511", ("no", "1.50"))
    assert (profile.train.steps, profile.train.learning_rate, profile.train.deterministic) == (12, 1e-3, True)
    assert (profile.train.cuda_graph, profile.sweep.strengths) == ("off", (0.5, 1.0))


@pytest.mark.parametrize(
    "setting",
    [
        "train.learning_rate=.inf",
        "train.learning_rate=inf",
        "train.learning_rate=nan",
        "sheet.guidance=nan",
        "train.steps=true",
        "train.steps=3.5",
    ],
)
def test_numbers_are_finite_and_of_their_type(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load_profile("embedded", [setting])


@pytest.mark.parametrize(
    "empty", ["train:\n  # steps: 5\n", "train: ~\n", "train: null\n", "train: {}\n", "train: {steps: }\n"]
)
def test_an_empty_section_or_setting_is_none(tmp_path: Path, empty: str) -> None:
    profile = profile_of(tmp_path, f"extends: embedded\nname: mine\n{empty}sweep: {{seeds: 1}}\n", "train.rank=5")
    assert profile.train == load_profile("embedded", ["train.rank=5"]).train and profile.sweep.seeds == 1


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.yaml": "extends: a.yaml\nname: me\n"}, "extends itself"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "extends: c.yaml", "c.yaml": "extends: a.yaml"}, "extends itself"),
        ({"a.yaml": "extends: [embedded]"}, "extends is a list"),
        ({"a.yaml": "extends: {a: b}"}, "extends is a mapping"),
        ({"a.yaml": "extends: 5"}, "unknown profile '5'"),
        ({"a.yaml": "- train"}, "must be a mapping of sections, got a list"),
        ({"a.yaml": ""}, "must be a mapping of sections, got nothing"),
        ({"a.yaml": "name: me\ntrain: 5\n"}, "train: "),
        ({"a.yaml": "name: me\ntrain: [1]\n"}, "train: "),
        ({"a.yaml": "name: me\ntrain: {steps: 1}\ntrain: {steps: 2}\n"}, "lines 2 and 3"),
        ({"a.yaml": "name: me\nseep: {seeds: 1}\n"}, "no such setting; did you mean sweep"),
        ({"a.yaml": "name: me\n" + "x" * 300_000}, "at most 0.2 MB"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused_in_one_sentence(
    tmp_path: Path, files: dict[str, str], told: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profile(str(tmp_path / "a.yaml"), ["train.steps=5"])
    assert told in str(caught.value) and len(caught.value.problems) <= 3


def test_a_setting_says_what_was_written() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("embedded", ["train.steps=0", "train.flips=maybe", "train.rank={a: b", "models.sdxl=/caf\udce9"])
    text = str(caught.value)
    assert "got 0" in text and "got 'maybe'" in text and "--set train.rank is not valid YAML" in text
    assert "--set models.sdxl holds bytes that are no UTF-8" in text


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_words_of_users_are_text_in_a_table_and_in_a_message() -> None:
    from charengine.stages.report.cast import as_text, table

    words = "a | b\n![x](http://e.vil/x.png) <script> `c` [l](http://e.vil)"
    (row,) = table([{"name": "Aya", "prompt": "", "error": words, "result": None}]).splitlines()[2:]
    assert row.replace("\\|", "").count("|") == 5 and "\\[x\\](" in row and "\\<script" in row
    assert as_text("an orc, 2 (two)") == "an orc, 2 (two)"
    assert str(BadInput("no \x1b[31m\0 such\nfile")) == "no \\x1b[31m\\x00 such\nfile"


@pytest.mark.parametrize("text", ["", "  ", "\u200b\u200b", "\u2060 \ufeff"])
def test_a_prompt_that_shows_nothing_is_empty(text: str) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        Character(name="Ada", prompt=text)
    assert Character(name="Ada", prompt="\u200c\u65e5").prompt


@pytest.mark.parametrize(
    "field",
    ["out", "sheet", "reference", "profile", "train.continue_from=", "train.regularisation=", "models.sdxl="],
)
def test_a_path_in_nobodys_home_is_refused_with_its_entry_and_field(tmp_path: Path, field: str) -> None:
    path = "~nobody-of-this-name/x.yaml"
    fields = {"overrides": [field + path]} if "=" in field else {field: path}
    with pytest.raises(ConfigError) as caught:
        check_cast([{"name": "Ada", "prompt": "an orc", **fields}], home=Home(tmp_path))
    [problem] = caught.value.problems
    assert f"{field}{'' if '=' in field else ' '}{path}: no home folder" in problem
    assert "entry 1" in problem or "Ada" in problem


@pytest.mark.parametrize("hidden", "\u202e\u2066\u200f\u200b\xad\ufeff\u3164\U000e0041")
def test_what_nobody_sees_is_refused_wherever_words_enter(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "front.txt").write_text(text := f"an orc{hidden}woman", encoding="utf-8")
    doors = (
        lambda: Character.model_validate({"name": "Ada", "prompt": text}),
        lambda: read_caption(tmp_path / "front.txt"),
        lambda: cast_of(tmp_path, f"- prompt: {text}\n"),
        lambda: cast_of(tmp_path, f"prompt\n{text}\n", "cast.csv"),
        lambda: load_profile("embedded", [f"sweep.prompts=['{text}']"]),
    )
    for door in doors:
        with pytest.raises((ValueError, BadInput), match=re.escape(f"control character {hidden!a}")):
            door()
    for problem in (name_problem, trigger_problem, noun_problem, phrase_problem):
        assert problem(text)
    assert hidden not in str(BadInput(text)) and "\u200d" in str(BadInput("\u200d"))


@pytest.mark.parametrize("setting", ["strengths=[0.5, 1.0, 0.5]", "prompts=['{subject} runs', '{subject} runs']"])
def test_what_would_be_drawn_twice_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="twice: leave one"):
        load_profile("embedded", [f"sweep.{setting}"])


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_quoted_field_may_stand_behind_a_space(tmp_path: Path, mark: str) -> None:
    (tmp_path / "cast.csv").write_text(f'name{mark} prompt{mark} out\nAda{mark} "an orc{mark} red hair"{mark} x\n')
    [one] = read_cast(tmp_path / "cast.csv")
    assert (one.prompt, one.out) == (f"an orc{mark} red hair", "x")


@pytest.mark.parametrize("out", ["a\nb", "  ", "\u200b", "a\x1b[2J"])
def test_a_folder_that_nobody_can_read_the_name_of_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises(BadInput, match="leave out control characters"):
        check_folder(tmp_path / out, "--out")
