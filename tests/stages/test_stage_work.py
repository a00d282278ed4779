"""Each stage's work hands the engine its own settings, models, seed and recipe, and no one else's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from charengine.config import Character, Profile
from charengine.stage import Given, Stage, only_character, only_models
from charengine.stages import caption, crop
from charengine.stages.expand import expand
from charengine.stages.expand.stage import EXPAND
from charengine.stages.report import page
from charengine.stages.sheet import draw, given
from charengine.stages.sweep import stage as sweep_stage
from charengine.stages.sweep import sweep, words
from charengine.stages.train import loop
from charengine.stages.train import stage as train_stage
from charengine.tracking.protocol import NullTracker

GRISHA = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul", seed=7)
PROFILE = Profile(name="sample")
MODELS: Any = SimpleNamespace(
    editor="editor", captioner="captioner", diffusion="diffusion", embedder="embedder", reader="reader"
)
DATASET: Any = SimpleNamespace(
    digest="d" * 64, trigger="griqul", class_noun="orc woman", views=SimpleNamespace(added=("green skin",))
)
RECIPE = {
    "engine_version": "0.1.0",
    "character": {"trigger": "griqul", "class_noun": "orc woman"},
    "dataset_digest": "d" * 64,
}
TOLD = "an orc woman, green skin"  # the prompt, and what the sheet was told beside it


def files_read() -> None:
    """What a stage is handed to say that it has read its files."""


class Calls:
    """Stands in for an engine function and remembers how it was called."""

    def __init__(self) -> None:
        self.positional: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}

    def __call__(self, *positional: Any, **named: Any) -> str:
        self.positional, self.named = positional, named
        return "made"


def handed(stage: Stage[Any], profile: Profile = PROFILE, tracker: Any = None) -> Given:
    settings = getattr(profile, stage.settings) if stage.settings else None
    store: Any = "store"
    return Given(
        stage=stage,
        character=only_character(GRISHA, stage),
        settings=settings,
        models=only_models(MODELS, stage, settings),
        store=store,
        tracker=tracker or NullTracker(),
        recipe={"engine_version": "0.1.0"},
        state=Path("state"),
        should_stop=lambda: True,
        files_read=files_read,
    )


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_a_sheet_is_drawn_by_the_edit_model_and_shown_to_the_captioner_only_if_asked(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "draw_sheet", calls)
    assert draw.DRAWN_SHEET.work(handed(draw.DRAWN_SHEET)) == "made"
    character, *rest = calls.positional
    assert (character.prompt, character.class_noun, character.seed) == ("an orc woman", "orc woman", 7)
    assert (rest, calls.named) == ([PROFILE.sheet, "editor", "store"], {"captioner": None, "reference": None})
    asking = Profile.model_validate({"name": "sample", "sheet": {"ask_model": True}})
    draw.DRAWN_SHEET.work(handed(draw.DRAWN_SHEET, asking))
    assert calls.named == {"captioner": "captioner", "reference": None}


def test_a_sheet_of_a_run_with_a_reference_is_drawn_from_it(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "draw_sheet", calls)
    draw.DRAWN_SHEET.work(handed(draw.DRAWN_SHEET), "seen")
    assert calls.named == {"captioner": None, "reference": "seen"}


def test_a_given_sheet_is_read_from_its_file(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "take_sheet", calls)
    given.GIVEN_SHEET.work(handed(given.GIVEN_SHEET), Path("sheet.png"))
    assert calls.positional == (Path("sheet.png"), "store")


def test_the_crop_has_its_own_settings(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop, "crop_views", calls)
    crop.CROP.work(handed(crop.CROP), "sheet")
    assert calls.positional == ("sheet", PROFILE.crop, "store")


def test_more_views_are_drawn_by_the_edit_model_and_judged_by_the_embedder(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expand, "expand_views", calls)
    EXPAND.work(handed(EXPAND), "views")
    views, character, *rest = calls.positional
    assert (views, character.prompt, character.seed) == ("views", "an orc woman", 7)
    assert rest == [PROFILE.expand, "editor", "embedder", "store"]


def test_captions_are_made_of_the_views_and_all_further_ones(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "caption_views", calls)
    caption.CAPTION.work(handed(caption.CAPTION), "views", "pose-1", "pose-2")
    views, character, *rest = calls.positional
    assert (views, character.trigger) == ("views", "griqul")
    assert rest == [PROFILE.caption, "captioner", "store", ("pose-1", "pose-2")]


def test_training_has_the_seed_the_state_and_the_recipe_and_its_run_the_data_set(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (loop, train_stage):
        monkeypatch.setattr(module, "train_adapter", calls, raising=False)
    logged: list[Any] = []
    tracker = SimpleNamespace(log_dataset=lambda *told: logged.append(told))
    train_stage.TRAIN.work(handed(train_stage.TRAIN, tracker=tracker), DATASET)
    assert calls.positional == (DATASET, PROFILE.train, "diffusion", "store")
    assert (calls.named["seed"], calls.named["state_dir"]) == (7, Path("state"))
    assert calls.named["recipe"] == RECIPE
    assert calls.named["description"] == TOLD
    assert calls.named["tracker"] is tracker and calls.named["should_stop"]()
    assert calls.named["files_read"] is files_read
    assert logged == [("griqul", "d" * 64, {"trigger": "griqul", "class_noun": "orc woman"})]


def test_the_sweep_has_the_seed_and_writes_the_data_set_into_its_recipe(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Calls()
    monkeypatch.setattr(sweep, "sweep_adapter", calls)
    monkeypatch.setattr(words, "find_words", found)
    sweep_stage.SWEEP.work(handed(sweep_stage.SWEEP), "training", DATASET)
    assert calls.positional == ("training", DATASET, PROFILE.sweep, "diffusion", "embedder", "store")
    assert calls.named["seed"] == 7 and calls.named["should_stop"]()
    assert (calls.named["reader"], calls.named["description"]) == ("reader", TOLD)
    assert calls.named["recipe"] == RECIPE
    pick = words.Pick("training", "made", PROFILE.sweep, "diffusion", "store", 7)  # type: ignore[arg-type]
    assert found.positional == (pick, TOLD, "reader")
    assert found.named["should_stop"]()


def test_the_report_is_made_of_the_record_alone(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "write_report", calls)
    page.REPORT.work(handed(page.REPORT), "run")
    assert calls.positional == ("run", "store")
