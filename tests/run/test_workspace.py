"""What a run works with: its recipe, its parameters, its memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from charengine.config import Character
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile
from charengine.run.request import CheckedRun
from charengine.run.workspace import Workspace, peak_rss_gib

GRISHA = Character(name="Grisha", prompt="an orc in a blue coat", class_noun="orc", trigger="zorgax", seed=7)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    profile = load_profile("embedded", ["train.steps=77"])
    return Workspace(CheckedRun(GRISHA, profile, None, tmp_path / "out"), Home(tmp_path / "home"))


def test_a_recipe_is_the_whole_config_the_dataset_and_the_engines_version(workspace: Workspace) -> None:
    dataset: Any = SimpleNamespace(digest="d" * 64)
    recipe = workspace.recipe(dataset)
    assert set(recipe) == {"character", "profile", "dataset_digest", "engine_version"}
    assert recipe["engine_version"] == "0.1.0"
    assert recipe["dataset_digest"] == "d" * 64
    assert recipe["character"] == {
        "name": "Grisha",
        "prompt": "an orc in a blue coat",
        "class_noun": "orc",
        "trigger": "zorgax",
        "seed": 7,
    }
    assert recipe["profile"]["train"]["steps"] == 77


def test_parameters_are_flat_and_leave_out_what_is_empty(workspace: Workspace) -> None:
    params = workspace.params()
    assert params["train.steps"] == 77
    assert params["character.seed"] == 7 and params["character.trigger"] == "zorgax"
    assert "train.continue_from" not in params and "sweep.prompts" not in params
    assert params["train.masked_loss"] == 0.0  # nought is a value


def test_the_highest_memory_is_told_in_gib() -> None:
    now = psutil.Process().memory_info().rss / 2**30
    peak = peak_rss_gib()
    assert peak is not None
    assert 0.9 * now < peak < 100 * now
