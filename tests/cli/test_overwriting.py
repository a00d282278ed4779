"""Nothing that the user owns is ever overwritten without a word: every command is refused before it works, and names the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from run_samples import doll, sample_run, write_views

import charengine as ce
from charengine.adapter.files import save_adapter
from charengine.config import Character
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import OWN_FILES, Home
from charengine.machine.ledger import write_own
from charengine.run.cast import read_cast
from charengine.run.outputs import check_run, run_files
from charengine.run.request import RunRequest, check
from charengine.stages.report.cast import gallery_page
from charengine.store import Store

Cli = Callable[..., CompletedProcess[str]]
ORC = ("an orc", "--name", "Zorga")
SWEEP = "--views V --trigger zorgax --class-noun orc --out ."
TRAIN = "train V --trigger zorgax --class-noun orc --out ."
COMMANDS = (  # and a file that each would write, which is the user's
    ("sheet orc --out mine.png", "mine.png"),
    ("sheet orc --reference mine.png --out mine.png", "mine.png"),
    ("crop drawn.png --out .", "front.png"),
    ("crop drawn.png --out cut", "cut/side.alpha.png"),
    ("crop front.png --out .", "front.png"),
    ("expand V --prompt orc", "V/pose-1.png"),
    ("expand V --prompt orc", "V/held_out/close-up-1.alpha.png"),
    ("caption V --name Zorga --prompt orc", "V/side.txt"),
    (TRAIN, "zorgax.safetensors"),
    (f"{TRAIN} --set train.steps=100 --set train.checkpoints=2", "zorgax-000050.safetensors"),
    (f"sweep a.safetensors {SWEEP}", "adapters/zorgax.safetensors"),
    (f"sweep adapters/zorgax_recommended.safetensors {SWEEP}", "adapters/zorgax_recommended.safetensors"),
    (f"sweep a.safetensors {SWEEP}", "contact_sheet.png"),
    (f"sweep a.safetensors {SWEEP}", "sweep.json"),
    ("report RUN --out page.html", "page.html"),
    ("compare RUN RUN --out page.html", "page.html"),
    *(
        ("run orc --name Zorga --trigger zorgax --class-noun orc --out .", name)
        for name in (
            "sheet.png",
            "views/front.png",
            "report.html",
            "run.json",
            "adapters/README.md",
            "adapters/zorgax.safetensors",
            "dataset/10_zorgax orc/front.txt",
            "dataset/masks/side.png",
        )
    ),
)


@pytest.fixture
def folder(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are given that must not begin to work."""

    def begin(*_: object) -> None:
        raise RuntimeError("it works")

    monkeypatch.setattr("charengine.run.running.run", begin)
    monkeypatch.setattr("charengine.services.prefect_server.reach_prefect", begin)
    return tmp_path


def given(folder: Path, home: Home) -> None:
    """Pictures, an adapter and a run."""
    for path in write_views(folder / "V", "zorgax, orc, {view} view").glob("*.txt"):
        path.unlink()
    for view in ("front", "side", "back"):
        (folder / "V" / f"{view}.txt").write_text(f"zorgax, orc, {view} view")
    doll().save(folder / "drawn.png")
    (folder / "RUN").mkdir()
    (folder / "RUN" / "run.json").write_text(sample_run(Store(home.store)).model_dump_json())


def adapter() -> bytes:
    import torch

    stem = "lora_unet_mid_block_attentions_0_proj_in"  # of the embedded family
    parts = {f"{stem}.lora_down.weight": torch.ones(1, 128), f"{stem}.lora_up.weight": torch.ones(128, 1)}
    return save_adapter(parts, {"ss_steps": "4"})


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "home" not in path.parts}


@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_a_file_of_the_users_is_named_before_anything_runs_and_stays(
    cli: Cli, folder: Path, home: Home, command: str, name: str
) -> None:
    given(folder, home)
    if command.startswith("caption"):
        for view in ("front", "back"):
            (folder / "V" / f"{view}.txt").unlink()
    (folder / "a.safetensors").write_bytes(adapter())
    (mine := folder / name).parent.mkdir(parents=True, exist_ok=True)
    if mine.suffix == ".safetensors":
        mine.write_bytes(adapter() if "_recommended" in name else b"mine")
    elif mine.suffix == ".png":
        doll().save(mine)
    elif not mine.exists():
        mine.write_text('{"name": "mine"}')
    before = content(folder)
    done = cli(*command.split())
    assert done.returncode == 2, done.stderr
    assert mine.name in done.stderr and "would be overwritten" in done.stderr, done.stderr
    assert "move it away" in done.stderr and done.stderr.count("would be overwritten") == 1
    assert content(folder) == before, "nothing else is left there either"


@pytest.mark.parametrize("name", OWN_FILES)
@pytest.mark.parametrize("command", ["report RUN --out", "compare RUN RUN --out", "export RUN --to"])
def test_the_files_of_the_home_itself_are_no_place_for_a_page(
    cli: Cli, folder: Path, home: Home, command: str, name: str
) -> None:
    given(folder, home)
    (home.root / name).write_text("the home's")
    done = cli(*command.split(), home.root / name)
    assert done.returncode == 2 and "is one of the home's own" in done.stderr, done.stderr
    (home.root / name).unlink()
    assert cli(*command.split(), home.root / name).returncode == 2 and not (home.root / name).exists()


def test_a_run_names_the_file_when_its_trigger_is_known_and_the_folder_is_nobodys_still(
    folder: Path, home: Home
) -> None:
    """What is named after a trigger that nobody gave is known once the models are found, and still before any work."""
    run = check(RunRequest(*ORC[:1], name="Zorga", out=str(folder / "out")), home)
    whole = run.character.model_copy(update={"trigger": "zorgax", "class_noun": "orc"})
    check_run(run, whole)
    for name in ("adapters/zorgax.safetensors", "dataset/10_zorgax orc/back.png"):
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name} is not as Character Engine wrote it"):
            check_run(run, whole)
        (folder / "out" / name).unlink()


def test_python_is_refused_before_the_first_step(folder: Path, home: Home) -> None:
    who = ce.Studio("embedded").character("an orc", "Zorga", trigger="zorgax", class_noun="orc", out=folder / "out")
    (folder / "out").mkdir()
    (folder / "out" / "sheet.png").write_text("mine")
    with pytest.raises(BadInput, match=r"sheet\.png is not as Character Engine wrote it"):
        who.save()
    assert [path.name for path in (folder / "out").iterdir()] == ["sheet.png"]


def test_edits_in_a_runs_captions_are_no_reason_to_refuse_it_and_a_picture_painted_over_is(
    folder: Path, home: Home
) -> None:
    out, store = folder / "out", Store(home.store)
    from charengine.run.folder import write_dataset, write_views

    record = sample_run(store)
    run = check(RunRequest(record.prompt, record.name, "orc", "zorgax", out=str(out)), home)
    captions = write_dataset(record.dataset, out, store, "caption-1")
    write_views(record.dataset.views, out / "views", store)
    captions[0].write_text("zorgax, orc, in my own words")
    check_run(run, run.character)
    (out / "views" / "front.png").write_bytes(b"painted over")
    with pytest.raises(ConfigError, match=r"views/front\.png is not as"):
        check_run(run, run.character)


def test_all_files_of_a_finished_run_are_among_those_that_are_looked_at(home: Home, tmp_path: Path) -> None:
    """A name that is written and was not looked at would be found only after the work."""
    from charengine.run import folder as runs

    store, out = Store(home.store), tmp_path / "out"
    record = sample_run(store)
    character = Character(name="Zorga", prompt="an orc", class_noun=record.class_noun, trigger=record.trigger)
    runs.write_sheet(record.sheet, out, store)
    runs.write_views(record.dataset.views, out / "views", store)
    runs.write_dataset(record.dataset, out, store, "caption-1")
    runs.write_adapters(record.sweep, record.trigger, out, store)
    runs.write_pictures(record.sweep, out, store)
    from charengine.records import ReportRecord

    runs.write_report(ReportRecord(html=store.put(b"page", "report.html")), record, out, store)
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    known = set(run_files(check(RunRequest("an orc"), home).profile, character, False))
    told = tuple(f"{end}" for end in (".preview.png", ".civitai.info", "zorgax.json", "zorgax_recommended.json"))
    rest = {name for name in written - known if not Path(name).name.startswith(".")}
    assert {name for name in rest if not (name.startswith("adapters/") and name.endswith(told))} == set()


def test_captions_that_nobody_edited_are_written_again_and_edited_ones_are_not(
    cli: Cli, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from charengine.records import CaptionRecord
    from charengine.run import running

    write_views(tmp_path / "V", "{view}")
    for path in (tmp_path / "V").glob("*.txt"):
        path.unlink()
    said = ["one"]

    def captioned(stage: object, workspace: object, views: object, *_: object) -> object:
        dataset = sample_run(Store(home.store)).dataset
        texts = [CaptionRecord(view=view, text=said[0]) for view in ("front", "side", "back")]
        return dataset.model_copy(update={"captions": tuple(texts)})

    monkeypatch.setattr(running, "run", captioned)
    command = ("caption", "V", "--name", "Zorga", "--prompt", "an orc")
    for text in ("one", "one", "two"):
        said[0] = text
        assert cli(*command).returncode == 0
        assert (tmp_path / "V" / "side.txt").read_text() == f"{text}\n"
    (tmp_path / "V" / "side.txt").write_text("mine")
    done = cli(*command)
    assert done.returncode == 2 and "side.txt is not as Character Engine wrote it" in done.stderr
    assert "`charengine train` takes edited captions as they are" in done.stderr
    assert (tmp_path / "V" / "side.txt").read_text() == "mine"


def test_the_page_of_a_cast_goes_beside_a_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "batch.html").write_text("mine")
    outcome = {"name": "Ada", "prompt": "an orc", "error": "no", "result": None}
    for _ in range(2):
        assert gallery_page([outcome], tmp_path / "batch.html").name == "batch-2.html"
    assert (tmp_path / "batch.html").read_text() == "mine"


def test_what_appears_while_a_command_works_is_not_overwritten_either(tmp_path: Path, store: Store) -> None:
    ref = store.put(b"new", "front.png")
    (tmp_path / "front.png").write_bytes(b"mine")
    with pytest.raises(BadInput, match="what was made until now is kept"):
        write_own(tmp_path, {tmp_path / "front.png": ref}, store)
    assert (tmp_path / "front.png").read_bytes() == b"mine" and store.get(ref) == b"new"


def test_a_run_does_not_lie_among_the_files_of_another(folder: Path, home: Home) -> None:
    given(folder, home)
    for name in ("views", "dataset/deeper", "adapters"):
        with pytest.raises(ConfigError, match="has its own files there; give a folder of another name"):
            check(RunRequest("an orc", name="Zorga", out=str(folder / "RUN" / name)), home)
    check(RunRequest("an orc", name="Zorga", out=str(folder / "RUN" / "another")), home)


@pytest.mark.parametrize(
    "command",
    ["crop drawn.png", TRAIN.removesuffix(" --out ."), "report RUN", "compare RUN RUN", f"sweep a.safetensors {SWEEP}"],
)
def test_a_home_folder_that_nobody_has_is_no_name_of_a_folder(cli: Cli, folder: Path, home: Home, command: str) -> None:
    given(folder, home)
    (folder / "a.safetensors").write_bytes(adapter())
    done = cli(*command.removesuffix(" --out .").split(), "--out", "~nobody-of-this-name/x")
    assert done.returncode == 2 and "no home folder is known for it" in done.stderr, done.stderr
    assert not list(folder.glob("~*"))


@pytest.mark.parametrize("command", ["report RUN", "compare RUN RUN", "sheet orc"])
def test_a_name_that_no_file_can_have_is_told_before_anything_runs(
    cli: Cli, folder: Path, home: Home, command: str
) -> None:
    given(folder, home)
    done = cli(*command.split(), "--out", "n" * 234 + ".png")
    assert done.returncode == 2 and "at most 180 bytes" in done.stderr, done.stderr


def test_a_changed_file_in_one_characters_folder_stops_that_one_alone(
    folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "cast.yaml").write_text("characters: [{name: Tin Tom, prompt: a robot}, {name: Green, prompt: an orc}]")
    (folder / "runs" / "tin-tom").mkdir(parents=True)
    (folder / "runs" / "tin-tom" / "report.html").write_text("mine")
    tom, _ = read_cast(folder / "cast.yaml", home=home)
    with pytest.raises(ConfigError, match=r"report\.html is not as Character Engine wrote it there"):
        check(tom, home)
