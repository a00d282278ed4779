"""The pipeline, end to end on the random family: what it leaves, what it does again, and what it survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Fork, Forks, child_environment, last_line
from PIL import Image
from prefect_samples import at_home
from run_samples import doll

from charengine.errors import BadInput
from charengine.machine.addresses import database_uri
from charengine.machine.home import Home
from charengine.records import RunRecord

STAGES = ["sheet", "crop", "caption", "train", "sweep", "report"]
PROMPT = "an orc woman with red hair and a blue coat"


@dataclass
class Studio:
    """A home in which characters are made in this process."""

    home: Home
    folder: Path
    settings: tuple[str, ...]
    sheet: Path

    def make(self, *more_settings: str, **parameters: Any) -> dict[str, Any]:
        from flows.character import character

        given = {"prompt": PROMPT, "name": "Aya", "sheet": str(self.sheet), "out": str(self.folder / "aya")}
        made = character(**{**given, **parameters}, overrides=[*self.settings, *more_settings])
        return made.model_dump(mode="json")

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=database_uri(self.home), registry_uri=database_uri(self.home))

    def runs(self, **tags: str) -> list[Any]:
        client = self.mlflow()
        experiment = client.get_experiment_by_name("charengine")
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return list(client.search_runs([experiment.experiment_id], wanted)) if experiment else []


@pytest.fixture(scope="module")
def studio(
    prefect_api: str,
    empty_mlflow: Path,
    tiny_settings: tuple[str, ...],
    drawn_sheet: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Studio]:
    """One home for the tests of this module, in which the first character is made once."""
    folder = tmp_path_factory.mktemp("studio")
    with at_home(folder, empty_mlflow) as home:
        yield Studio(home, folder, tiny_settings, drawn_sheet)


@pytest.fixture(scope="module")
def first(studio: Studio) -> dict[str, Any]:
    return studio.make()


def test_the_result_is_what_the_command_line_promises(first: dict[str, Any]) -> None:
    assert set(first) == {
        "name",
        "trigger",
        "recommended_prompt",
        "traits",
        "sheet",
        "views",
        "captions",
        "adapter",
        "recommended_adapter",
        "checkpoint_step",
        "strength",
        "report",
        "mlflow_run_id",
        "prefect_flow_run_id",
        "cached_stages",
        "warnings",
        "seconds",
    }
    assert first["cached_stages"] == []
    assert list(first["seconds"]) == STAGES
    paths = [
        first["sheet"],
        *first["views"],
        *first["captions"],
        first["adapter"],
        first["recommended_adapter"],
        first["report"],
    ]
    assert all(Path(path).is_absolute() and Path(path).stat().st_size > 0 for path in paths)
    assert [Path(path).stem for path in first["views"]] == ["front", "side", "back"]


def test_every_caption_begins_with_the_trigger(first: dict[str, Any]) -> None:
    for path in first["captions"]:
        assert Path(path).read_text().startswith(f"{first['trigger']}, orc woman, ")


def test_the_adapter_says_how_it_was_made(first: dict[str, Any]) -> None:
    from charengine.adapter.header import read_metadata

    metadata = read_metadata(Path(first["recommended_adapter"]))
    recipe = json.loads(metadata["charengine.recipe"])
    assert recipe["character"]["prompt"] == PROMPT
    assert recipe["profile"]["train"]["steps"] == 6
    assert len(recipe["dataset_digest"]) == 64


def test_the_report_and_the_record_show_the_numbers_of_the_result(studio: Studio, first: dict[str, Any]) -> None:
    run = RunRecord.model_validate_json((studio.folder / "aya" / "run.json").read_bytes())
    assert run.sweep.pick.strength == first["strength"]
    assert run.sweep.pick.checkpoint_step == first["checkpoint_step"]
    page = Path(first["report"]).read_text()
    assert PROMPT in page and first["trigger"] in page


def losses_told(studio: Studio, run_id: str) -> dict[str, list[int]]:
    """The steps of which MLflow has a loss, of views and of lessons."""
    histories = {name: studio.mlflow().get_metric_history(run_id, name) for name in ("train/loss", "train/lesson_loss")}
    return {name: [point.step for point in history] for name, history in histories.items()}


def test_mlflow_holds_one_run_with_a_child_for_training_and_one_for_each_cell(
    studio: Studio, first: dict[str, Any]
) -> None:
    [parent] = studio.runs(**{"character": "Aya", "charengine.kind": "character"})
    assert parent.info.run_id == first["mlflow_run_id"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["prefect.flow_run_id"] == first["prefect_flow_run_id"]
    assert parent.data.tags["mlflow.note.content"] == parent.data.params["character.prompt"]
    assert parent.data.params["train.steps"] == "6"
    children = studio.runs(**{"mlflow.parentRunId": parent.info.run_id})
    assert sorted(child.info.run_name for child in children) == ["Aya sweep", "Aya train"]
    train, sweep = sorted(children, key=lambda child: child.info.run_name)[::-1]
    assert losses_told(studio, train.info.run_id) == {"train/loss": [1, 3, 5], "train/lesson_loss": [2, 4, 6]}
    assert len(train.outputs.model_outputs) == 2
    cells = studio.runs(**{"mlflow.parentRunId": sweep.info.run_id})
    assert len(cells) == 3  # strength 0, and two strengths of one checkpoint
    assert all({"identity", "adherence"} <= {key.split("/")[-1] for key in cell.data.metrics} for cell in cells)


def test_the_pick_is_registered_as_champion(studio: Studio, first: dict[str, Any]) -> None:
    version = studio.mlflow().get_model_version_by_alias("character-aya", "champion")
    # the registered file is rescaled already: obeying the tag must not apply the strength a second time
    assert version.tags["recommended_strength"] == "1.0"
    assert float(version.tags["picked_strength"]) == pytest.approx(first["strength"])
    assert version.tags["checkpoint_step"] == str(first["checkpoint_step"])


def test_a_sweep_of_an_earlier_run_or_of_its_file_is_a_later_version_of_the_same_entry(
    studio: Studio, first: dict[str, Any]
) -> None:
    from flows.sweep import sweep

    earlier = studio.mlflow().get_model_version_by_alias("character-aya", "champion").version
    for number, source in enumerate((str(studio.folder / "aya"), first["adapter"]), start=1):
        sweep(
            source,
            views=str(studio.folder / "aya" / "views") if number == 2 else "",  # a run has its own
            overrides=[*studio.settings, "sweep.strengths=[0.7]"],
            out=str(studio.folder / f"sweep-{number}"),
        )
        versions = studio.mlflow().search_model_versions("name = 'character-aya'")
        latest = max(versions, key=lambda version: int(version.version))
        assert int(latest.version) == int(earlier) + number
        assert (latest.tags["picked_strength"], latest.tags["recommended_strength"]) == ("0.7", "1.0")
    assert [model.name for model in studio.mlflow().search_registered_models()] == ["character-aya"]


def test_an_unchanged_run_is_taken_from_the_cache_and_logs_nothing_twice(studio: Studio, first: dict[str, Any]) -> None:
    before = {run.info.run_id: run.data.metrics for run in studio.runs()}
    started = time.monotonic()
    again = studio.make()
    assert time.monotonic() - started < 20
    assert again["cached_stages"] == STAGES
    assert again["mlflow_run_id"] == first["mlflow_run_id"]
    assert Path(again["adapter"]).read_bytes() == Path(first["adapter"]).read_bytes()
    assert {run.info.run_id: run.data.metrics for run in studio.runs()} == before


def test_a_new_sweep_prompt_sweeps_again_and_trains_nothing(studio: Studio, first: dict[str, Any]) -> None:
    other = studio.make("sweep.prompts=['{subject} in a forest']", out=str(studio.folder / "forest"))
    assert other["cached_stages"] == ["sheet", "crop", "caption", "train"]
    assert other["mlflow_run_id"] != first["mlflow_run_id"]
    [run] = [run for run in studio.runs() if run.info.run_id == other["mlflow_run_id"]]
    [train] = [run for run in studio.runs() if run.info.run_name == "Aya train"]
    assert run.data.tags["charengine.train_run_id"] == train.info.run_id


def test_more_views_are_a_stage_of_their_own_between_crop_and_caption(studio: Studio, first: dict[str, Any]) -> None:
    # a random embedder tells nobody apart: the wide margin keeps what the random edit model draws
    more = ("expand.count=3", "expand.kinds=[pose]", "expand.candidates=1", "expand.steps=1", "expand.margin=0.5")
    other = studio.make(*more, out=str(studio.folder / "more"))
    assert list(other["seconds"]) == ["sheet", "crop", "expand", "caption", "train", "sweep", "report"]
    assert other["cached_stages"] == ["sheet", "crop"]
    run = RunRecord.model_validate_json((studio.folder / "more" / "run.json").read_bytes())
    assert run.expansion and run.dataset.extras == run.expansion.kept
    trained = {"front", "side", "back", *(extra.view for extra in run.dataset.trained_extras)}
    assert {path.stem for path in (studio.folder / "more" / "dataset").glob("10_*/*.png")} == trained
    assert [f"held out {extra.view}" for extra in run.dataset.held_out] == list(run.training.validation[-1].by_view)[
        len(trained) :
    ]
    [mlflow] = [one for one in studio.runs() if one.info.run_id == other["mlflow_run_id"]]
    assert mlflow.data.metrics["expand/trained"] == len(run.dataset.trained_extras)
    assert mlflow.data.metrics["expand/held_out"] == len(run.dataset.held_out) == 1
    assert mlflow.data.params["expand.count"] == "3"

    assert studio.make(*more, out=str(studio.folder / "more"))["cached_stages"] == list(other["seconds"])
    assert studio.make()["cached_stages"] == STAGES  # left off again, nothing has changed


def test_another_trigger_keeps_the_sheet_and_captions_again(studio: Studio, first: dict[str, Any]) -> None:
    other = studio.make(trigger="zorvak", out=str(studio.folder / "zorvak"))
    assert other["cached_stages"] == ["sheet", "crop"]
    assert Path(other["captions"][0]).read_text().startswith("zorvak, ")


def test_an_edited_caption_is_trained_on_and_survives_a_repeat(studio: Studio, first: dict[str, Any]) -> None:
    out = studio.folder / "edited"
    shutil.copytree(studio.folder / "aya", out)
    [caption] = (out / "dataset").rglob("front.txt")
    caption.write_text(f"{first['trigger']}, orc woman, front view, smiling\n")
    other = studio.make(out=str(out))
    assert other["cached_stages"] == ["sheet", "crop", "caption"]
    assert "smiling" in caption.read_text()
    assert Path(other["adapter"]).read_bytes() != Path(first["adapter"]).read_bytes()
    assert studio.make(out=str(out))["cached_stages"] == STAGES


def test_refresh_runs_one_stage_again_and_makes_the_same_bytes(studio: Studio, first: dict[str, Any]) -> None:
    other = studio.make(refresh=["train"])
    assert "train" not in other["cached_stages"] and "caption" in other["cached_stages"]
    assert Path(other["adapter"]).read_bytes() == Path(first["adapter"]).read_bytes()


def test_a_character_with_the_same_data_has_a_training_run_of_its_own(studio: Studio, first: dict[str, Any]) -> None:
    other = studio.make(name="Bea", trigger=first["trigger"], out=str(studio.folder / "bea"))
    assert other["cached_stages"] == ["sheet", "crop", "caption"]
    [parent] = studio.runs(character="Bea", **{"charengine.kind": "character"})
    assert "Bea train" in {child.info.run_name for child in studio.runs(**{"mlflow.parentRunId": parent.info.run_id})}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    found = Forks()
    yield found
    found.close()


def asked(settings: tuple[str, ...], sheet: Path, out: Path, *more: str) -> list[object]:
    """The arguments of a `charengine run --json`."""
    sets = [part for setting in (*settings, *more) for part in ("--set", setting)]
    return ["run", PROMPT, "--name", "Aya", "--sheet", sheet, "--out", out, "--json", *sets]


def start(arguments: list[object], home: Home, api: str, forks: Forks | None) -> subprocess.Popen[str] | Fork:
    """That as a process on the session's Prefect server: a fresh interpreter, or a fork."""
    environment = child_environment(home, api)
    if forks is not None:
        return forks.start(arguments, environment, ROOT)
    command = [sys.executable, "-m", "charengine.cli", *(str(one) for one in arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, cwd=ROOT, **pipes)


def wait_for_state(home: Home, process: subprocess.Popen[str] | Fork, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not list(home.state.glob("train-*/state.safetensors")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no training state was saved"
        time.sleep(0.02)


def finish(process: subprocess.Popen[str] | Fork) -> dict[str, Any]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return last_line(subprocess.CompletedProcess([], 0, out, err))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_run_that_was_stopped_continues_to_the_same_bytes_in_the_same_mlflow_run(
    how: signal.Signals,
    prefect: str,
    home: Home,
    tiny_settings: tuple[str, ...],
    drawn_sheet: Path,
    tmp_path: Path,
    reference_adapter: bytes,
    forks: Forks,
) -> None:
    arguments = asked(tiny_settings, drawn_sheet, tmp_path / "out", *LONGER)
    process = start(arguments, home, prefect, None if how == signal.SIGKILL else forks)
    wait_for_state(home, process)
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(home.state.glob("train-*/state.safetensors"))
    studio = Studio(home, tmp_path, tiny_settings, drawn_sheet)
    if how != signal.SIGKILL:
        assert {run.info.status for run in studio.runs()} == {"KILLED"}
        assert process.returncode in (130, -signal.SIGTERM)

    if how == signal.SIGKILL:
        result = finish(start(arguments, home, prefect, forks))
    else:  # another process continues it in any case; this one has imported everything already
        result = studio.make(*LONGER, out=str(tmp_path / "out"))
    assert "caption" in result["cached_stages"] and "train" not in result["cached_stages"]
    assert Path(result["adapter"]).read_bytes() == reference_adapter
    [train] = [run for run in studio.runs() if run.info.run_name == "Aya train"]
    once = {"train/loss": list(range(1, 31, 2)), "train/lesson_loss": list(range(2, 31, 2))}
    assert losses_told(studio, train.info.run_id) == once
    assert {run.info.status for run in studio.runs()} == {"FINISHED"}


LONGER = ("train.steps=30", "train.save_state_every=3", "train.checkpoints=1")


@pytest.fixture(scope="module")
def reference_adapter(
    prefect_api: str,
    empty_mlflow: Path,
    tiny_settings: tuple[str, ...],
    drawn_sheet: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> bytes:
    """The adapter of a run that nothing disturbed, made in this process; those that are stopped are others."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with at_home(folder, empty_mlflow) as home:
        made = Studio(home, folder, tiny_settings, drawn_sheet).make(*LONGER, out=str(folder / "out"))
        return Path(made["adapter"]).read_bytes()


def test_a_picture_from_which_nobody_can_be_made_ends_the_run_in_words_and_leaves_no_folder(
    studio: Studio, tmp_path: Path
) -> None:
    two = Image.new("RGB", (300, 220), "white")
    two.paste(doll(), (20, 10))
    two.paste(doll(), (180, 10))
    two.save(tmp_path / "two.png")
    with pytest.raises(BadInput, match="it shows 2 figures"):
        studio.make(prompt="", name="", sheet="", out=str(tmp_path / "out"), reference=str(tmp_path / "two.png"))
    assert not (tmp_path / "out").exists()
