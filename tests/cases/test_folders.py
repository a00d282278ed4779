"""A run's folder stays with its first prompt, whoever comes next; edited captions are never lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from run_samples import doll, png, sample_dataset

from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home
from charengine.machine.ledger import LEDGER
from charengine.run.cast import check_cast
from charengine.run.claim import CLAIM, claim, claimed
from charengine.run.folder import says_nothing, take_edits, write_dataset
from charengine.run.request import CheckedRun, RunRequest, check, name_from_prompt, usual_name
from charengine.store import Store

COAT, DRESS = "an orc woman in a blue coat", "an orc woman in a blue dress with a lantern"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(prompt: str, **more: str) -> CheckedRun:
    return check(RunRequest(prompt, **more), Home(Path("home").absolute()))


# --- whose folder it is -----------------------------------------------------------------------------------------------


def test_another_prompt_of_the_same_name_gets_a_folder_of_its_own(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = claim(checked(COAT))
    assert first.out == work / "runs" / "orc-woman-blue"
    second = claim(checked(DRESS))
    assert second.out == work / "runs" / "orc-woman-blue-2" and "goes to" in caplog.text
    assert claim(checked(f"  {COAT} ")).out == first.out and claim(checked(DRESS)).out == second.out
    assert claim(checked("an orc woman with blue hair")).out == work / "runs" / "orc-woman-blue-3"
    assert json.loads((first.out / CLAIM).read_text())["prompt"] == COAT


def test_a_folder_that_was_named_is_refused_to_another_prompt(work: Path) -> None:
    claim(checked(COAT, out="mine"))
    claim(checked(COAT, out="mine"))
    with pytest.raises(
        ConfigError, match=r"--out .*mine: holds the run of 'orc-woman-blue', 'an orc woman in a blue coat'"
    ):
        checked(DRESS, out="mine")
    with pytest.raises(ConfigError, match="holds the run of"):
        checked(COAT, out="mine", name="Another")


def test_a_finished_run_without_a_claim_keeps_its_folder(work: Path) -> None:
    folder = work / "runs" / "orc-woman-blue"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": "orc-woman-blue", "prompt": COAT}))
    assert checked(COAT).out == folder and checked(DRESS).out == work / "runs" / "orc-woman-blue-2"


@pytest.mark.parametrize("record", ["", "{", "[]", '{"prompt": 3}', "\0"])
def test_a_damaged_claim_is_nobodys(work: Path, record: str) -> None:
    folder = work / "runs" / "orc-woman-blue"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record)
    assert claim(checked(COAT)).out == folder
    assert says_nothing(folder / "run.json")


def test_whoever_comes_second_meanwhile_moves_on_or_is_refused(work: Path) -> None:
    first, second = checked(COAT), checked(DRESS)  # both looked before either began
    assert first.out == second.out
    assert claim(first).out != claim(second).out
    named, late = checked(COAT, out="mine"), checked(DRESS, out="mine")
    claim(named)
    with pytest.raises(BadInput, match="holds the run of"):
        claim(late)


def test_two_processes_at_once_get_two_folders(work: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from charengine.machine.home import Home\n"
        "from charengine.run.claim import claim; from charengine.run.request import RunRequest, check\n"
        "run = check(RunRequest(sys.argv[1]), Home(Path('home').absolute())); print('ready', flush=True); input()\n"
        "print(claim(run).out.name)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, prompt], stdin=-1, stdout=-1, text=True)
        for prompt in (COAT, DRESS)
    ]
    assert [process.stdout.readline().strip() for process in started] == ["ready", "ready"]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    names = {process.communicate()[0].strip() for process in started}
    assert names == {"orc-woman-blue", "orc-woman-blue-2"}
    assert sorted(path.name for path in (work / "runs" / "orc-woman-blue").iterdir()) == [LEDGER, CLAIM]


def test_a_run_that_fails_before_it_made_anything_leaves_nothing(work: Path) -> None:
    with pytest.raises(RuntimeError), claimed(checked(COAT)):
        raise RuntimeError
    assert not (work / "runs" / "orc-woman-blue").exists()
    with pytest.raises(RuntimeError), claimed(checked(COAT)) as run:
        (run.out / "sheet.png").write_bytes(b"made")
        raise RuntimeError
    assert (work / "runs" / "orc-woman-blue" / CLAIM).exists()


def test_a_cast_moves_on_as_one_run_does(work: Path) -> None:
    claim(checked(COAT, name="Aya"))
    (entry,) = check_cast([{"name": "Aya", "prompt": DRESS}])
    assert entry.out == str(work / "runs" / "aya-2")
    (entry,) = check_cast([{"name": "Aya", "prompt": COAT}])
    assert entry.out == str(work / "runs" / "aya")


def test_one_stage_alone_may_write_beside_another_run(work: Path) -> None:
    out = claim(checked(COAT)).out
    request = RunRequest(DRESS, out=str(out))
    assert check(request, Home(work / "home"), whole=False).character.prompt == DRESS


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("an orc woman in blue", "orc-woman-blue"),
        ("une sorcière âgée", "une-sorciere-agee"),
        ("???", "character"),
        ("Zoë Müller, Straße", "zoe-muller-strasse"),
        ("SØREN and Łukasz", "soren-lukasz"),
    ],
)
def test_a_name_comes_from_the_prompt(prompt: str, name: str) -> None:
    assert name_from_prompt(prompt) == name


def test_a_folder_that_was_named_without_such_letters_goes_on_being_found(work: Path) -> None:
    prompt, picture = "Søren, a smith", work / "Zoë.png"
    picture.write_bytes(png(doll()))
    before = f"s-ren-smith-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"
    assert usual_name(prompt) == "soren-smith" and usual_name("", str(picture)) == "zoe"
    claim(checked(prompt, name=before))
    assert checked(prompt).out.name == before and usual_name("Søren, a smith in red") == "soren-smith-red"
    [entry] = check_cast([{"prompt": prompt}])
    assert entry.out == str(work / "runs" / before)
    claim(checked("", name="zo", reference=str(picture)))
    assert usual_name("", str(picture)) == "zo"
    picture.write_bytes(png(doll((200, 300))))
    assert usual_name("", str(picture)) == "zoe"


def test_a_name_with_accents_is_told_as_it_may_be_written(work: Path) -> None:
    with pytest.raises(ConfigError, match="letters a to z.*, such as 'Zoe'"):
        checked(COAT, name="Zoë")


def test_prompts_in_other_scripts_have_names_of_their_own() -> None:
    prompts = [
        "женщина-орк",
        "робот с фонарём",
        "オークの女性",
        "赤いロボット",
        "امرأة",
        "an オーク woman",
        "an орк woman",
    ]
    names = [name_from_prompt(prompt) for prompt in prompts]
    assert len(set(names)) == len(prompts) and names == [name_from_prompt(prompt) for prompt in prompts]
    for prompt, name in zip(prompts, names, strict=True):
        assert checked_name(prompt, name)


def checked_name(prompt: str, name: str) -> bool:
    from charengine.config import Character

    return Character(name=name, prompt=prompt).name.isascii()


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_edited_back_and_forth_are_all_kept(tmp_path: Path) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    dataset = sample_dataset(store)
    for turn in range(6):
        key = f"caption-{'ab'[turn % 2] * 12}"
        taken = take_edits(dataset, out, key)
        assert taken.captions == dataset.captions  # the edits of the other version are not of this one
        write_dataset(taken, out, store, key)
        (sidecar,) = (out / "dataset").rglob("front.txt")
        sidecar.write_text(f"zorgax, orc, edited {turn}\n")
        assert take_edits(dataset, out, key).captions[0].text == f"zorgax, orc, edited {turn}"
        write_dataset(take_edits(dataset, out, key), out, store, key)
    kept = sorted(path.read_text().strip()[-1] for path in out.rglob("front.txt"))
    assert kept == list("012345")


def test_another_trigger_leaves_no_second_set_of_pictures(tmp_path: Path) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    write_dataset(sample_dataset(store), out, store, "caption-1")
    write_dataset(sample_dataset(store, class_noun="orc woman"), out, store, "caption-2")
    subsets = [path.name for path in (out / "dataset").iterdir() if path.is_dir()]
    assert sorted(subsets) == ["10_zorgax orc woman", "masks"]
    own = out / "dataset" / "10_zorgax orc woman"
    (own / "front.txt").write_text("zorgax, orc woman, mine\n")
    (own / "notes.md").write_text("mine")
    write_dataset(sample_dataset(store), out, store, "caption-3")
    assert (own / "front.txt").read_text() == "zorgax, orc woman, mine\n" and (own / "notes.md").exists()
    assert (own / "front.png").exists() and not (own / "back.png").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    store, out, foreign = Store(tmp_path / "store"), tmp_path / "out", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "front.txt").write_text("somebody's")
    out.mkdir()
    (out / "dataset").symlink_to(foreign)
    for call in (
        lambda: take_edits(sample_dataset(store), out, "k"),
        lambda: write_dataset(sample_dataset(store), out, store, "k"),
    ):
        with pytest.raises(BadInput, match="is a link"):
            call()
    assert [path.name for path in foreign.iterdir()] == ["front.txt"]


@pytest.mark.parametrize(
    ("odd", "words"), [("link", "is a link"), ("damaged", "is damaged"), ("folder", "is not a file")]
)
def test_what_captions_cannot_be_written_over_is_said_before_anything_is_drawn(
    work: Path, odd: str, words: str
) -> None:
    place = work / "out" / "dataset"
    (work / "foreign").mkdir()
    (place if odd == "damaged" else place.parent if odd == "link" else place / "expansion.json").mkdir(parents=True)
    if odd == "link":
        place.symlink_to(work / "foreign")
    elif odd == "damaged":
        (place / "expansion.json").write_text("{")
    with pytest.raises(ConfigError, match=words):
        checked(COAT, out="out")


def test_a_marker_that_names_other_files_removes_none(tmp_path: Path) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    (out / "keep").mkdir(parents=True)
    (out / "keep" / "front.txt").write_text("x")
    (out / "dataset").mkdir()
    names = {"../keep/front.txt": "x", "10_a b/../../keep/front.txt": "x", "10_a/..": "x"}
    (out / "dataset" / ".charengine.json").write_text(json.dumps({"caption_key": "../../etc", "captions": names}))
    write_dataset(sample_dataset(store), out, store, "k")
    assert (out / "keep" / "front.txt").exists()


def test_a_checked_run_says_whether_its_folder_was_named(work: Path) -> None:
    run = checked(COAT)
    assert not run.out_is_given and checked(COAT, out="x").out_is_given
    assert replace(run, out=work / "y").parameters()["out"] == str(work / "y")


@pytest.mark.parametrize("name", ["con", "PRN", "Aux", "nul", "com1", "LPT9"])
def test_a_character_named_like_a_device_of_windows_has_a_folder_that_windows_can_have(home: Home, name: str) -> None:
    run = check(RunRequest("an orc", name=name), home)
    assert run.character.name == name and run.out.name == f"{name.lower()}-1"
    assert check(RunRequest("an orc", name="Conan"), home).out.name == "conan"
    [request] = check_cast([{"name": name, "prompt": "an orc"}])
    assert Path(request.out).name == f"{name.lower()}-1"
