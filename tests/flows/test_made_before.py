"""A command said again: it is looked whether there is anything to do, before any server is reached; whatever is not plainly done is the flow's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from again_samples import CHANGES, PROMPT, Made, edit_a_caption
from command_line import child_environment, last_line
from prefect_samples import at_home

from charengine.errors import ConfigError
from charengine.machine.home import Home
from charengine.machine.locks import flocked
from charengine.machine.processes import this_process
from charengine.run.again import UNCHANGED
from charengine.run.request import RunRequest
from charengine.tracking.protocol import KEY_TAG

STAGES = ("sheet", "crop", "caption", "train", "sweep", "report")
MORE = (
    "expand.count=3",
    "expand.kinds=[pose]",
    "expand.candidates=1",
    "expand.steps=1",
    "expand.margin=0.5",
    "retrain=1",
)
SERVERS = {"torch", "transformers", "diffusers", "mlflow", "prefect"}


@pytest.fixture(scope="module")
def make(
    prefect_api: str,
    empty_mlflow: Path,
    tiny_settings: tuple[str, ...],
    drawn_sheet: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Made]]:
    """Made by the flow, each once: a plain one, one with more views that may be trained again, and one with an edited caption."""
    from flows.character import character

    folder = tmp_path_factory.mktemp("originals")
    sheet = folder / "sheet.png"
    shutil.copy(drawn_sheet, sheet)

    @cache
    def make(name: str) -> Made:
        settings = (*tiny_settings, *(MORE if name == "more" else ()))
        request = RunRequest(PROMPT, "Aya", overrides=settings, sheet=str(sheet), out=str(folder / name))
        if name == "edited":
            shutil.copytree(make("plain").out, folder / name)
            edit_a_caption(changed := replace(make("plain"), request=request))
            assert changed.again() is None  # and the flow goes on as if nobody had looked
        return Made(home, request, character(**request.as_parameters()))

    with at_home(folder, empty_mlflow) as home:
        yield make


@pytest.fixture
def original(make: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch) -> Made:
    """The plain one where it was made; nothing may change it."""
    one = make("plain")
    monkeypatch.setenv("CHARENGINE_HOME", str(one.home.root))
    return one


@pytest.fixture
def made(original: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A copy of it, home and all, which a test may change."""
    home = Home(tmp_path / "made")  # not that of the fixture `home`
    shutil.copytree(original.home.root, home.root)
    shutil.copytree(original.out, tmp_path / "aya")
    sheet = Path(shutil.copy(original.request.sheet, tmp_path))
    monkeypatch.setenv("CHARENGINE_HOME", str(home.root))
    return replace(original, home=home, request=replace(original.request, sheet=str(sheet), out=str(tmp_path / "aya")))


# --- nothing to do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["plain", "more", "edited"])
def test_what_was_made_is_given_again_and_nothing_of_it_changes(
    make: Callable[[str], Made], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(which)
    monkeypatch.setenv("CHARENGINE_HOME", str(one.home.root))
    files, told = one.files(), one.told()
    again = one.again()
    assert again is not None
    assert again.cached_stages == tuple(one.result.seconds) == tuple(again.seconds)
    assert ("expand" in again.cached_stages) == (which == "more")
    same = {name: None for name in ("cached_stages", "seconds")}
    assert again.model_dump() | same == one.result.model_dump() | same
    assert one.result.prefect_flow_run_id
    assert one.files() == files
    assert one.told() == told


def test_the_command_starts_no_server_imports_nothing_heavy_and_says_that_nothing_was_made(original: Made) -> None:
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print('heavy:', *sorted({SERVERS!r} & sys.modules.keys()), file=sys.stderr))\n"
        "from charengine.cli.main import main\n"
        "main()"
    )
    logs = {path: path.stat().st_mtime_ns for path in original.home.logs.glob("*")}
    done = subprocess.run(
        [sys.executable, "-c", code, *[word for word in original.arguments() if word != "--json"]],
        capture_output=True,
        text=True,
        env=child_environment(original.home),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "heavy:\n" in done.stderr and UNCHANGED in done.stderr
    assert f"unchanged: {', '.join(STAGES)}" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in original.home.logs.glob("*")} == logs


def test_its_json_is_the_first_commands_but_for_what_was_cached(original: Made, cli: Callable[..., Any]) -> None:
    os.environ["CHARENGINE_HOME"] = str(original.home.root)
    done = cli(*original.arguments())  # a server that starts fails this
    assert done.returncode == 0, done.stderr
    said, first = last_line(done), original.result.model_dump(mode="json")
    assert said["cached_stages"] == [*STAGES]
    assert {**said, "cached_stages": [], "seconds": {}} == {**first, "cached_stages": [], "seconds": {}}
    assert done.stderr == ""


def test_a_file_that_was_deleted_is_written_again_and_what_a_program_changed_beside_an_adapter_stays(
    made: Made,
) -> None:
    before = made.files()
    (made.out / "sheet.png").unlink()
    shutil.rmtree(made.out / "views")
    for caption in made.result.captions:
        (made.out / caption.relative_to(caption.parents[2])).unlink()
    [sidecar] = [path for path in (made.out / "adapters").glob("*.json") if "recommended" not in path.name]
    sidecar.write_text('{"notes": "mine"}')
    again = made.again()
    assert again and again.sheet == made.out.resolve() / "sheet.png"
    after = made.files()
    assert after.pop(sidecar.relative_to(made.out)) == b'{"notes": "mine"}'
    moved = {Path("result.json"), Path(".charengine-files.json"), sidecar.relative_to(made.out)}
    assert {name: data for name, data in after.items() if name not in moved} == {
        name: data for name, data in before.items() if name not in moved
    }


def test_results_that_are_taken_count_as_used_now_so_that_they_are_not_cleared_away(made: Made) -> None:
    results = made.home.store / "results"
    for path in results.glob("*.json"):
        os.utime(path, (1, 1))
    assert made.again()
    used = {path.name.partition("-")[0] for path in results.glob("*.json") if path.stat().st_mtime > 1}
    assert {"sheet", "crop", "caption", "train", "sweep", "report", "run"} <= used


def test_a_character_that_another_living_process_makes_meanwhile_is_in_nobodys_way(made: Made) -> None:
    made.open_run(this_process())
    assert made.again()


# --- something to do: the flow's --------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_not_plainly_done_is_the_flows(made: Made, change: Callable[[Made], object]) -> None:
    change(made)
    assert made.again() is None


ASKED: dict[str, dict[str, Any]] = {
    "another seed": {"seed": 43},
    "another trigger": {"trigger": "zorvak"},
    "another class noun": {"class_noun": "orc"},
    "a stage to refresh": {"refresh": ("report",)},
    "a stage to refresh that it has not": {"refresh": ("expand",)},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_what_was_not_asked_before_is_the_flows(original: Made, asked: dict[str, Any]) -> None:
    files = original.files()
    assert original.again(**asked) is None
    assert original.files() == files


@pytest.mark.parametrize("setting", ["train.steps=8", "sweep.guidance=5.5", "retrain=1", "budget_gib=9"])
def test_another_setting_is_the_flows(original: Made, setting: str) -> None:
    assert original.again(overrides=(*original.request.overrides, setting)) is None


def test_a_trigger_that_was_given_is_not_taken_for_the_one_that_is_derived(original: Made) -> None:
    assert original.again(trigger=original.result.trigger)  # the same word, the same run
    assert original.again(name="AYA") is None  # derives another


def test_a_model_file_that_has_changed_is_the_flows(made: Made, tiny_family: Path, tmp_path: Path) -> None:
    family = tmp_path / "family"
    shutil.copytree(tiny_family, family)
    settings = tuple(text.replace(str(tiny_family), str(family)) for text in made.request.overrides)
    assert made.again(overrides=settings) is None  # other paths: another record
    same = replace(made, request=replace(made.request, overrides=settings))
    for name in ("run.json", "result.json"):  # as made with the copy
        text = (made.out / name).read_text().replace(str(tiny_family), str(family))
        (made.out / name).write_text(text)
    (made.out / ".charengine-files.json").unlink()
    assert same.again() is None  # MLflow holds no run with its key


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"),
        ("CHARENGINE_LOCKS", "lease"),
        ("CHARENGINE_STORE", "memory://shared"),
    ],
)
def test_what_other_machines_or_servers_know_is_asked_by_the_flow(
    original: Made, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert original.again() is None


def test_a_run_that_another_process_makes_now_is_waited_for_by_the_flow(original: Made) -> None:
    [key] = {path.stem for path in (original.home.store / "results").glob("run-*.json")} & _run_keys(original)
    with flocked(original.home.locks / f"{key}.lock", "the test"):
        began = time.monotonic()
        assert original.again() is None
        assert time.monotonic() - began < 30
    assert original.again()


def _run_keys(made: Made) -> set[str]:
    run = made.mlflow().get_run(made.result.mlflow_run_id)
    return {run.data.tags[KEY_TAG]}


def test_a_users_file_in_the_folder_is_told_in_the_same_words_as_ever(made: Made) -> None:
    (made.out / "views" / "front.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="views/front.png is not as Character Engine wrote it there"):
        made.again()
    assert (made.out / "views" / "front.png").read_bytes() == b"mine"


# --- stopped, and two at once -----------------------------------------------------------------------------------------


def test_two_at_once_end_as_one(made: Made, prefect_api: str) -> None:
    command = [sys.executable, "-m", "charengine.cli", *made.arguments()]
    environment = child_environment(made.home, prefect_api)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment, cwd=made.out.parent, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    results = [json.loads(out.splitlines()[-1]) for out, _ in said]
    for result in results:
        assert result["cached_stages"] == [*STAGES]
        assert result["mlflow_run_id"] == made.result.mlflow_run_id
    assert made.again()


def test_ctrl_c_ends_it_with_a_word_and_leaves_what_there_was(
    made: Made, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARENGINE_HOME", str(made.home.root))
    before = made.files()

    def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("charengine.run.folder.write_pictures", stopped)
    done = cli(*made.arguments())
    assert done.returncode == 130
    assert done.stderr.startswith("error: run was stopped; what is done is kept")
    assert {name: data for name, data in made.files().items() if name.name != ".charengine-files.json"} == {
        name: data for name, data in before.items() if name.name != ".charengine-files.json"
    }
    monkeypatch.undo()
    monkeypatch.setenv("CHARENGINE_HOME", str(made.home.root))
    assert made.again()
