"""What MLflow shows of a character: tags to search by, series of pictures, views, and a model that can be loaded."""

from __future__ import annotations

import base64
import json
import time
import warnings
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

import charengine.embedded
from charengine.machine.addresses import database_uri
from charengine.machine.home import Home
from charengine.tracking.open_tracker import open_tracker
from charengine.tracking.pages import Pages


def opened(home: Home) -> Any:
    return open_tracker(home, project="charengine", name="aya", key="run-1", params={"seed": 42}, tags={})


def client(home: Home) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=database_uri(home), registry_uri=database_uri(home))


def steps(home: Home, run_id: str, metric: str) -> list[int]:
    return [point.step for point in client(home).get_metric_history(run_id, metric)]


CHARACTER = {"character": "aya", "trigger": "ohwaya", "profile": "embedded"}


def whole_run(home: Home, key: str = "run-1") -> Any:
    return open_tracker(home, project="charengine", name="aya", key=key, params={}, tags=CHARACTER)


def test_a_search_for_a_character_finds_its_trainings_and_cells_too(home: Home) -> None:
    run = whole_run(home)
    cell = run.child("sweep", key="sweep-1").child("cell", key="300/0.8", tags={"charengine.kind": "cell"})
    run.finish()
    tags = client(home).get_run(cell.run_id).data.tags
    assert {name: tags[name] for name in CHARACTER} == CHARACTER
    [found] = client(home).search_runs(["1"], "tags.`charengine.kind` = 'cell' and tags.character = 'aya'")
    assert found.info.run_id == cell.run_id


def test_a_description_that_the_user_changed_stays_when_the_run_goes_on(home: Home) -> None:
    def note(run: Any) -> str:
        return str(client(home).get_run(run.run_id).data.tags["mlflow.note.content"])

    def begun() -> Any:
        tags = {**CHARACTER, "mlflow.note.content": "an orc woman"}
        return open_tracker(home, project="charengine", name="aya", key="run-1", params={}, tags=tags)

    run = begun()
    run.finish()
    assert note(run) == "an orc woman"
    client(home).set_tag(run.run_id, "mlflow.note.content", "for the second act")
    begun().finish()
    assert note(run) == "for the second act"


def test_pictures_of_a_series_have_one_key_and_their_steps_zero_included(home: Home) -> None:
    run = opened(home)
    for step in (0, 100):
        run.log_image(Image.new("RGB", (8, 8), "red"), "samples", step)
    run.finish()
    names = [Path(item.path).name for item in client(home).list_artifacts(run.run_id, "images")]
    assert sorted({name.split("+timestamp")[0] for name in names}) == ["samples+step+0", "samples+step+100"]


def test_a_checkpoints_numbers_keep_their_names_and_are_logged_once(home: Home) -> None:
    run = opened(home)
    assert run.log_checkpoint(b"adapter", 300, {"checkpoint/loss": 0.1})
    run.log_metrics({"checkpoint/loss": 0.1}, 300)
    run.finish()
    assert set(client(home).get_run(run.run_id).data.metrics) == {"checkpoint/loss"}
    assert steps(home, run.run_id, "checkpoint/loss") == [300]


def test_the_experiment_has_views_of_strengths_and_losses_and_what_a_user_changed_is_never_overwritten(
    home: Home,
) -> None:
    opened(home).finish()
    found = client(home)
    tags = found.get_experiment_by_name("charengine").tags
    views = {name: json.loads(value) for name, value in tags.items() if name.startswith("mlflow.sharedViewState.")}
    assert [view["name"] for view in views.values()] == ["Strength against identity and adherence", "Training losses"]
    states = [
        json.loads(zlib.decompress(base64.b64decode(view["state"][len("deflate;") :]))) for view in views.values()
    ]
    assert all(state["isAccordionReordered"] for state in states)  # else MLflow's own sections come first
    charts = [chart for state in states for chart in state["compareRunCharts"]]
    axes = {(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in charts if chart["type"] == "SCATTER"}
    assert {("strength", "identity"), ("strength", "adherence")} <= axes
    assert {"train/loss", "validation/loss"} <= {chart.get("metricKey") for chart in charts}
    [differing] = [chart for chart in states[1]["compareRunCharts"] if chart["type"] == "DIFFERENCE"]
    assert differing["compareGroups"] == ["Parameters"] and differing["showDifferencesOnly"]  # MLflow's own words
    assert not any(chart["deleted"] for chart in charts)
    assert [state["searchFilter"] for state in states] == [f"tags.`charengine.kind` = '{k}'" for k in ("cell", "train")]

    changed, old = views
    users = json.dumps({**views[changed], "updatedAt": views[changed]["updatedAt"] + 1})
    found.set_experiment_tag("1", changed, users)
    found.set_experiment_tag("1", old, json.dumps({**views[old], "state": "deflate;of an earlier version"}))
    opened(home).finish()
    seen = found.get_experiment_by_name("charengine").tags
    assert seen[changed] == users and seen[old] == tags[old]  # a home of an earlier version gets the views of this one


def test_links_open_the_page_they_mean() -> None:
    run = Pages("http://127.0.0.1:5000/", "7")
    run.run_id, run._known_tags = "abc", {"charengine.pick": "m-1/adapter_weights/aya.safetensors"}
    assert run.url == "http://127.0.0.1:5000/#/experiments/7/runs/abc?workflowType=machine_learning"  # not the chats'
    assert run.runs_url == "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning"
    assert run.strengths_url.startswith(run.runs_url) and "viewStateShareKey=charengine-strength" in run.strengths_url
    assert run.adapter_url.endswith(
        "logged-models/m-1/artifacts/files?artifact_file_path=adapter_weights/aya.safetensors"
    )


def test_the_machine_is_watched_while_an_adapter_trains(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run = opened(home)
    train = run.child("train", key="train-1", tags={"charengine.kind": "train"})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not steps(home, train.run_id, "system/system_memory_usage_percentage"):
        time.sleep(0.2)
    train.finish()
    run.finish()
    assert "system/cpu_utilization_percentage" in client(home).get_run(train.run_id).data.metrics


FACTS = {"prompt": "an orc woman", "trigger": "ohwaya", "dataset": "ohwaya " + "d" * 64}


def test_the_registered_pick_says_what_it_is_and_is_loaded_by_mlflow(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from safetensors.torch import save
    from torch import ones

    weights = save({"lora_unet_x.alpha": ones(1)})
    run = whole_run(home)
    run.log_dataset("ohwaya", "d" * 64, {})
    run.register_pick(
        "character-aya", weights, 300, 0.8, {"identity": 0.9}, facts={**FACTS, "base_model": str(tmp_path)}
    )
    run.finish()
    found = client(home)
    version = found.get_model_version_by_alias("character-aya", "champion")
    assert "- Trigger: ohwaya" in version.description
    assert "- Strength to load this file at: 1.0" in version.description
    model = found.get_logged_model(version.source.rstrip("/").split("/")[-2])
    assert model.tags["mlflow.note.content"].count("an orc woman") == 1
    assert (model.tags["trigger"], model.tags["recommended_strength"]) == ("ohwaya", "1.0")
    assert model.metrics[0].dataset_name == "ohwaya"
    metrics = found.get_run(run.run_id).data.metrics
    assert (metrics["strength"], metrics["identity"]) == (0.8, 0.9)

    # not by set_tracking_uri: it puts the address into the environment too, where every later test would log
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(home))
    loaded = mlflow.diffusers.load_model("models:/character-aya@champion")
    mlflow.pyfunc.load_model("models:/character-aya@champion")
    assert loaded.base_model == str(tmp_path)
    assert (Path(loaded.adapter_path) / loaded.weight_name).read_bytes() == weights


def test_the_champion_is_drawn_with_by_mlflow_as_the_manual_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import numpy as np
    from safetensors.torch import save
    from torch import Generator, full, ones, tensor

    base = Path(charengine.embedded.__file__).parent / "weights" / "sdxl"
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"
    with safe_open(base / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        rows, columns = file.get_slice(f"{layer}.weight").get_shape()
    parts = {"lora_down.weight": full((1, columns), 0.3), "lora_up.weight": ones(rows, 1), "alpha": tensor(1.0)}
    weights = save({f"lora_unet_{layer.replace('.', '_')}.{part}": value for part, value in parts.items()})
    run = whole_run(home)
    run.register_pick("character-aya", weights, 300, 0.8, {}, facts={**FACTS, "base_model": str(base)})
    run.finish()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(home))
    with warnings.catch_warnings(action="ignore"):  # MLflow's, of how it calls diffusers
        draw = mlflow.diffusers.load_model("models:/character-aya@champion").load_pipeline()

    def drawn() -> Any:
        how = {"width": 64, "height": 64, "num_inference_steps": 1, "generator": Generator().manual_seed(1)}
        return np.asarray(draw("ohwaya woman", **how).images[0]).astype(int)

    with_the_adapter = drawn()
    draw.disable_lora()
    assert abs(with_the_adapter - drawn()).max() > 0


def test_a_logged_adapter_asks_for_versions_that_pypi_has_and_nothing_is_said_of_the_build_of_torch(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow
    from safetensors.torch import save
    from torch import ones

    of = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+rocm6.4" if name == "torch" else of(name))
    run = whole_run(home)
    facts = {**FACTS, "base_model": str(tmp_path)}
    run.register_pick("character-aya", save({"lora_unet_x.alpha": ones(1)}), 300, 0.8, {}, facts=facts)
    run.finish()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("mlflow")] == []
    place = client(home).get_model_version_by_alias("character-aya", "champion").source
    asked = Path(mlflow.artifacts.download_artifacts(f"{place}/requirements.txt", dst_path=str(tmp_path))).read_text()
    assert {line.partition("==")[0] for line in asked.split()} == {
        "mlflow",
        "diffusers",
        "transformers",
        "torch",
        "peft",
        "safetensors",
        "accelerate",
    }
    assert "torch==2.13.0\n" in asked and "+" not in asked


OTHER_VIEWS = {"dataset": "ohwaya " + "e" * 64}


@pytest.mark.parametrize(
    ("score", "said", "champion"),
    [
        (0.4, {}, 1),
        (0.6, {}, 2),
        (0.4, {"prompt": "orc woman, from aya"}, 1),  # a later sweep of the same run
        (0.6, {"prompt": "orc woman, from aya"}, 2),
        (0.4, {"prompt": "a robot", **OTHER_VIEWS}, 2),
        (0.4, OTHER_VIEWS, 2),
        (0.4, {"trigger": "ohwbot"}, 2),
    ],
)
def test_the_champion_is_the_best_pick_of_the_same_character(
    home: Home, score: float, said: dict[str, str], champion: int
) -> None:
    for key, own, more in (("run-1", 0.5, {}), ("run-2", score, said)):
        run = whole_run(home, key)
        run.register_pick("character-aya", b"adapter", 300, 0.8, {"score": own}, facts={**FACTS, **more})
        run.finish()
    version = client(home).get_model_version_by_alias("character-aya", "champion").version
    assert int(version) == champion
    assert len(client(home).search_registered_models()) == 1
