"""The sweep's result: where the pick lies, what is drawn for it, recorded and exported."""

from __future__ import annotations

import json

import pytest
import sweep_samples
import torch
from run_samples import sample_cell
from sweep_samples import SETTINGS, Eye, Notebook, Painter, Unet, adapter_file, run_sweep, trained

from charengine.adapter.files import load_adapter, save_adapter
from charengine.errors import BadInput
from charengine.likeness.scoring import References
from charengine.models.usage import Usage
from charengine.stages.sweep import adapters, sweep
from charengine.stages.sweep.session import spread

pytestmark = pytest.mark.usefixtures("known_adapter")


def test_the_pick_is_where_the_character_is_whole_and_the_scene_still_there(store, dataset) -> None:
    found = run_sweep(store, dataset, Painter(), 50, 200)
    assert (found.pick.checkpoint_step, found.pick.strength) == (200, 0.5)
    assert found.pick.metrics.gain > 0.9
    assert found.pick.metrics.kept > 0.97
    assert found.pick.overbaked.kept < 0.8
    assert found.warnings == ()


def test_strength_zero_is_drawn_once_and_every_cell_has_the_same_seeds(store, dataset) -> None:
    painter = Painter()
    found = run_sweep(store, dataset, painter, 50, 100, 150, 200)
    assert [(steps, strength) for steps, strength, _ in painter.drawn] == [
        (0, 0.0),
        *((steps, strength) for steps in (100, 200) for strength in SETTINGS.strengths),
    ]
    assert {seeds for _, _, seeds in painter.drawn} == {(7, 8) * 3}
    assert len(found.images) == 9 * 3 * 2
    assert len(found.cells) == 9 and found.cells[0] == found.pick.baseline


def test_the_base_model_is_prompted_as_its_family_is_and_left_as_it_was_and_the_text_encoders_are_freed_first(
    store, dataset
) -> None:
    painter = Painter(usage=Usage("Pony", "score_9", "ugly"))
    run_sweep(store, dataset, painter, 100)
    assert painter.model == Unet()
    assert painter.freed[0] == ("text_encoders",)
    prompts = [text for text in painter.asked if text != "ugly"]
    assert len(prompts) < len(painter.asked)
    assert all(text.startswith("score_9, ") and "zorgax orc" in text for text in prompts)


def test_words_that_the_base_model_was_never_taught_are_named_before_it_draws(
    store, dataset, monkeypatch, caplog
) -> None:
    asked = SETTINGS.model_copy(
        update={"prompts": (SETTINGS.prompts[0], "{subject} in a desert, zeppelin", "{subject} in a city, tuba")}
    )
    monkeypatch.setattr(sweep_samples, "SETTINGS", asked)
    seen, painter = [], Painter(usage=Usage(negative_prompt="ugly", few_words="2"))
    found = run_sweep(store, dataset, painter, 100, on_drawn=lambda *_: seen.append(caplog.text))
    told = [line for line in found.warnings if "never taught" in line]
    assert [line.partition(":")[0] for line in told] == ["sweep.prompts", "models.negative_prompt"]
    assert told[0].endswith("ignores them: zeppelin, tuba") and all(line in seen[0] for line in told)


def test_an_overbaked_adapter_leaks_the_white_background_and_copies_the_views(store, dataset) -> None:
    found = run_sweep(store, dataset, Painter(), 200)
    mild, baked = found.cells[1], found.cells[-1]
    assert mild.background_leak == 0.0 and baked.background_leak == 1.0
    assert baked.copying > mild.copying + 0.1


def test_each_cell_is_a_child_run_with_its_numbers(store, dataset) -> None:
    notebook = Notebook()
    found = run_sweep(store, dataset, Painter(), 50, 200, tracker=notebook)
    runs = list(notebook.children.values())
    assert [(run.params["checkpoint"], run.params["strength"]) for run in runs] == [
        (cell.checkpoint_step, cell.strength) for cell in found.cells
    ]
    for run, cell in zip(runs, found.cells, strict=True):
        assert run.finished and run.pictures
        for name in ("identity", "adherence", "diversity", "copying", "score"):
            assert run.metrics[name] == getattr(cell, name)
    assert [run.kind for run in runs[:2]] == ["base model", "50 × 0.25"]
    assert runs[-1].params["final_loss"] == 1 / 200
    assert {"contact_sheet", "trade_off"} <= set(notebook.pictures)


def test_the_sweeps_own_run_holds_the_picks_numbers_and_each_cell_its_details_and_losses(store, dataset) -> None:
    notebook = Notebook()
    training = trained(store, 50, 200)
    points = tuple(point.model_copy(update={"validation_loss": 3 / point.step}) for point in training.checkpoints)
    training = training.model_copy(update={"checkpoints": points})
    found = sweep.sweep_adapter(training, dataset, SETTINGS, Painter(), Eye(), store, seed=7, tracker=notebook)
    own = {name: value for name, value in notebook.metrics.items() if name.startswith("pick/")}
    picked = found.pick.metrics
    place = {"checkpoint_step", "strength", "images", "smoothed", "mlflow_run_id"}
    numbers = picked.model_dump(exclude=place, exclude_none=True)
    assert {"identity", "adherence", "diversity", "copying", "score", "gain", "kept", "score_low"} <= set(numbers)
    smoothed = picked.smoothed.model_dump(exclude_none=True)
    assert {"gain", "kept", "score"} <= set(smoothed)
    assert own == {f"pick/{name}": value for name, value in numbers.items()} | {
        f"pick/smoothed_{name}": value for name, value in smoothed.items()
    }
    base, *runs = notebook.children.values()
    assert "final_loss" not in base.params and "validation_loss" not in base.params
    assert [(run.params["final_loss"], run.params["validation_loss"]) for run in runs] == [
        (1 / step, 3 / step) for step in (50, 200) for _ in SETTINGS.strengths
    ]
    for run, cell in zip(runs, found.cells[1:], strict=True):
        assert {name: run.metrics[name] for name in ("gain", "kept", "margin")} == {
            name: getattr(cell, name) for name in ("gain", "kept", "margin")
        }
    assert found.cells[0].ceiling == pytest.approx(References(dataset.views, Eye(), store).ceiling())


def test_a_repeated_sweep_gives_the_same_record_and_reopens_the_same_child_runs(store, dataset) -> None:
    notebook = Notebook()
    first = run_sweep(store, dataset, Painter(), 50, 200, tracker=notebook)
    second = run_sweep(store, dataset, Painter(), 50, 200, tracker=notebook)
    assert first == second
    assert len(notebook.children) == 9


def test_two_adapters_are_exported_as_trained_and_rescaled_to_the_pick(store, dataset) -> None:
    found = run_sweep(store, dataset, Painter(), 100, 200, recipe={"seed": 7})
    assert store.get(found.adapter) == adapter_file(200)
    tensors, metadata = load_adapter(store.get(found.recommended_adapter))
    assert tensors["lora_unet_x.alpha"].item() == pytest.approx(8.0 * found.pick.strength)
    assert metadata["ss_steps"] == str(found.pick.checkpoint_step)
    assert json.loads(metadata["charengine.pick"])["strength"] == found.pick.strength
    assert json.loads(metadata["charengine.recipe"]) == {"class_noun": "orc", "seed": 7}  # its own, and ours
    assert found.adapter.name == "zorgax.safetensors"
    assert found.recommended_adapter.name == "zorgax_recommended.safetensors"


def test_the_recommended_file_is_the_picked_checkpoint_with_the_picks_strength_as_its_one() -> None:
    exported, doubts = adapters.recommended(adapter_file(100), sample_cell(100, 0.6), None)
    tensors, metadata = load_adapter(exported)
    assert tensors["lora_unet_x.alpha"].item() == pytest.approx(4.8) and metadata["charengine.strength"] == "0.6"
    assert doubts == ()


def test_an_adapter_that_cannot_be_rescaled_is_exported_as_it_is_with_a_warning() -> None:
    data = adapter_file(100, "lora_unet_x.dora_scale")
    exported, doubts = adapters.recommended(data, sample_cell(100, 0.6), None)
    assert load_adapter(exported)[0]["lora_unet_x.dora_scale"].item() == 8.0
    assert len(doubts) == 1 and "use it at strength 0.6" in doubts[0]


def test_any_adapter_file_can_be_swept_if_it_names_its_character(store, dataset, tmp_path) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes(adapter_file(200))
    training = adapters.training_from_file(path, store).model_copy(update={"warnings": ("of the file",)})
    assert (training.trigger, training.class_noun, training.steps) == ("zorgax", "orc", 200)
    found = sweep.sweep_adapter(training, dataset, SETTINGS, Painter(), Eye(), store, seed=7)
    assert found.pick.checkpoint_step == 200 and "of the file" in found.warnings


def test_an_adapter_file_without_a_trigger_asks_for_it(store, tmp_path) -> None:
    path = tmp_path / "nameless.safetensors"
    path.write_bytes(save_adapter({"lora_unet_x.alpha": torch.tensor(1.0)}, {}))
    with pytest.raises(BadInput, match="trigger and class noun"):
        adapters.training_from_file(path, store)
    assert adapters.training_from_file(path, store, trigger="ohwx", class_noun="man").trigger == "ohwx"


def test_what_a_single_seed_cannot_measure_is_said(store, dataset) -> None:
    settings = SETTINGS.model_copy(update={"seeds": 1})
    found = sweep.sweep_adapter(trained(store, 200), dataset, settings, Painter(), Eye(), store, seed=7)
    assert any("variety between seeds was not measured" in warning for warning in found.warnings)
    assert found.pick.strength == 0.5


def test_an_embedder_that_sees_no_one_is_found_out(store, dataset) -> None:
    class Blind(Eye):
        def embed_images(self, images):
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    found = sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Painter(), Blind(), store, seed=7)
    assert any("identity says little" in warning for warning in found.warnings)
    assert any("barely moves" in warning for warning in found.warnings)


def test_checkpoints_are_spread_evenly_and_the_last_is_always_among_them(store) -> None:
    checkpoints = trained(store, *range(10, 110, 10)).checkpoints
    assert [c.step for c in spread(checkpoints, 3)] == [30, 70, 100]
    assert [c.step for c in spread(checkpoints, 1)] == [100]
    assert len(spread(checkpoints, 40)) == 10


def test_the_picks_numbers_are_told_at_the_step_that_was_picked(store, dataset) -> None:
    class Steps(Notebook):
        def log_metrics(self, metrics, step):
            told.update({step: set(metrics)} if any(name.startswith("pick/") for name in metrics) else {})
            super().log_metrics(metrics, step)

    told: dict[int, set[str]] = {}
    found = run_sweep(store, dataset, Painter(), 100, 200, tracker=Steps())
    assert list(told) == [found.pick.checkpoint_step] and found.pick.checkpoint_step > 0
