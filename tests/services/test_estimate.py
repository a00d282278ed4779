"""The doctor's estimate gives back what was measured, and scales as cards do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from charengine.likeness import prompts
from charengine.models.edit_loras import EditLoras
from charengine.models.locate import Inventory
from charengine.models.memory import MemoryPlan, Part, Placement
from charengine.models.survey import Survey
from charengine.models.vocabularies import Tokenizers
from charengine.profiles.loading import load_profile
from charengine.services.estimate import FULL_PROMPTS, LESSON_STEPS, QUICK_PROMPTS, card_called, describe, estimate
from charengine.stages.train import lessons

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WHOLE = Placement(Part("Qwen2.5-VL", 28, 0, 0, 0), 28)
STREAMED = Placement(Part("transformer", 60, 340_000_000, 0, 0), 25)


def survey(lightning: bool = True) -> Survey:
    loras = EditLoras(lightning=Path("Lightning-8steps.safetensors"), lightning_steps=8) if lightning else EditLoras()
    plan = MemoryPlan(12, WHOLE, STREAMED, tile_vae=False)
    return Survey(Inventory({}, {}), Tokenizers(None, None), (), (), plan, loras)


def seconds(card: str, profile: str = "sdxl-12gb", *settings: str) -> dict[str, float]:
    found = card_called(card)
    assert found is not None
    return {time.stage: time.seconds for time in estimate(load_profile(profile, settings), survey(), found)}


def test_on_the_card_it_was_fitted_to_every_stage_is_within_a_quarter_of_what_was_measured() -> None:
    measured = {
        name: stage
        for name, stage in json.loads((RESULTS / "full_pipeline.json").read_text())["stages"].items()
        if "seconds" in stage and "error" not in stage
    }
    swept = measured["sweep of at most 64 images, 832x1216, 12 steps (dpm++), CFG"]
    asked = (f"sweep.pictures={swept['images']}", "sweep.steps=12", "sweep.solver=dpm++")
    guessed = seconds("NVIDIA H200", "sdxl-12gb", *asked)
    expected = {
        "sheet": (
            "sheet 1536x1024, 8 steps, Lightning, no CFG",
            "the profile's sheet 1536x1024, 20 steps, CFG above 0",
        ),
        "caption": ("captions of three views, 120 tokens each",),
        "train": ("train 1,200 samples (400 steps of 3 views)", "encode captions and views"),
        "sweep": ("sweep of at most 64 images, 832x1216, 12 steps (dpm++), CFG",),
        "report": ("report",),
    }
    for stage, parts in expected.items():
        assert guessed[stage] == pytest.approx(sum(measured[part]["seconds"] for part in parts), rel=0.25), stage


def test_a_slower_card_takes_longer_and_fewer_steps_take_less() -> None:
    fast, slow = seconds("NVIDIA GeForce RTX 4090"), seconds("NVIDIA GeForce RTX 3060")
    assert all(slow[stage] > 1.3 * fast[stage] for stage in ("sheet", "train", "sweep"))
    assert seconds("NVIDIA GeForce RTX 4090", "sdxl-12gb", "train.steps=200")["train"] < fast["train"]


def test_a_race_is_counted_with_its_budget_and_a_grid_with_every_cell_and_reading_comes_on_top() -> None:
    card = "NVIDIA H200"
    race, grid, short, blind = (
        seconds(card, "sdxl-12gb", *more)["sweep"]
        for more in ([], ["sweep.design=grid"], ["sweep.pictures=32"], ["sweep.traits=off"])
    )
    a_picture = (race - short) / 32  # half of the budget
    assert grid - race == pytest.approx(
        a_picture * (22 * 4 * 4 - 64), rel=0.01
    )  # strength 0, seven on three checkpoints
    assert 0.4 < a_picture < 1 and 10 < race - blind < 60


def test_a_sheet_guided_in_its_noisy_steps_alone_takes_less_and_no_less_than_one_without_guidance() -> None:
    card = "NVIDIA H200"
    all_steps, noisy, none = (
        seconds(card, "sdxl-12gb", "sheet.steps=40", *more)["sheet"]
        for more in (["sheet.guided_above=0"], ["sheet.guided_above=0.7"], ["sheet.guidance=1"])
    )
    assert none < noisy < all_steps
    assert (noisy - none) / (all_steps - none) == pytest.approx(19 / 40, abs=0.03)  # of 40 steps at 1536x1024


def test_a_sheet_whose_drafts_were_to_have_more_steps_takes_the_time_of_one_without_drafts() -> None:
    plain, more = (
        seconds("NVIDIA H200", "sdxl-12gb", "sheet.steps=10", f"sheet.draft_steps={n}")["sheet"] for n in (0, 12)
    )
    assert plain == more


def test_lessons_take_the_time_of_their_pictures_and_of_larger_steps() -> None:
    card, steps = "NVIDIA H200", "train.steps=400"
    plain = seconds(card, "sdxl-12gb", steps)["train"]
    few, many = (seconds(card, "sdxl-12gb", steps, f"train.distill={count}")["train"] for count in (8, 16))
    assert many > few > plain + 200 * 0.1  # 200 steps of three square megapixels instead of three views of a third
    assert LESSON_STEPS == lessons.STEPS


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 80),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("Tiny GPU", None),
    ],
)
def test_a_card_is_known_by_the_longest_name_it_contains(name: str, tflops: float | None) -> None:
    card = card_called(name)
    assert (card and card.tflops) == tflops


def test_the_lines_say_minutes_their_sum_and_how_they_were_come_by() -> None:
    card = card_called("NVIDIA GeForce RTX 4090")
    assert card is not None
    lines = describe(estimate(load_profile("sdxl-12gb"), survey(), card), card)
    assert [line.split()[0] for line in lines[:6]] == ["sheet", "crop", "caption", "train", "sweep", "report"]
    assert "in all" in lines[6] and lines[7].startswith("an estimate") and "RTX 4090" in lines[7]


def test_the_sweep_counts_the_built_in_prompts_as_they_are() -> None:
    assert (len(prompts.QUICK), len(prompts.FULL)) == (QUICK_PROMPTS, FULL_PROMPTS)
