"""What a run works with: its recipe, its parameters, its key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from charengine.config import Character
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.models import Models
from charengine.profiles.loading import load_profile
from charengine.run import steps
from charengine.run.workspace import Workspace, complete

GRISHA = Character(name="Grisha", prompt="an orc in a blue coat", class_noun="orc", trigger="zorgax", seed=7)


MODELS = [field.name for field in fields(Models)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return opened(tmp_path)


def opened(home: Path, *overrides: str, character: Character = GRISHA, given: Path | None = None) -> Workspace:
    """A workspace with models that are fingerprints alone."""
    made = Workspace(character, load_profile("embedded", ["train.steps=77", *overrides]), Home(home), given=given)
    made.__dict__["models"] = SimpleNamespace(**{name: SimpleNamespace(fingerprint=name) for name in MODELS})
    return made


def test_a_recipe_is_the_whole_config_and_the_engines_version(workspace: Workspace) -> None:
    recipe = workspace.recipe()
    assert set(recipe) == {"character", "profile", "engine_version"}
    assert recipe["engine_version"] == "0.1.0"
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


def test_a_runs_key_follows_character_settings_models_and_the_given_file(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"pixels")
    drawn, given = opened(tmp_path / "home").key, opened(tmp_path / "home", given=sheet).key
    others = {name: opened(tmp_path / "home") for name in MODELS}
    for name, other in others.items():
        getattr(other.models, name).fingerprint = "another"
    keys = {
        drawn,
        given,
        *(other.key for other in others.values()),
        opened(tmp_path / "home", "sweep.seeds=3").key,
        opened(tmp_path / "home", character=GRISHA.model_copy(update={"seed": 8})).key,
    }
    assert len(MODELS) == 6 and len(keys) == 4 + len(MODELS)
    moved = tmp_path / "moved.png"
    moved.write_bytes(b"pixels")
    assert opened(tmp_path / "elsewhere", given=moved).key == given
    assert opened(tmp_path / "elsewhere").key == drawn
    moved.write_bytes(b"others")
    assert opened(tmp_path / "elsewhere", given=moved).key != given


@pytest.mark.parametrize("happens", ["replaced", "removed"])
def test_a_run_keeps_its_key_when_the_sheet_that_it_has_read_is_replaced_or_removed(
    tmp_path: Path, happens: str
) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"pixels")
    workspace = opened(tmp_path / "home", given=sheet)
    before = workspace.key
    sheet.write_bytes(b"others") if happens == "replaced" else sheet.unlink()
    assert workspace.key == before


def test_a_sheet_that_is_replaced_before_a_run_has_read_it_is_refused(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"pixels")
    workspace = opened(tmp_path / "home", given=sheet)
    asked: list[object] = []

    def runner(*stage: object) -> object:
        asked.append(stage)
        return "made"

    assert steps.sheet(runner, workspace) == "made"  # type: ignore[arg-type,comparison-overlap]
    sheet.write_bytes(b"others")
    with pytest.raises(BadInput, match=r"sheet\.png was changed or removed .*give the same command again"):
        steps.sheet(runner, workspace)  # type: ignore[arg-type]
    assert len(asked) == 1


def test_what_was_left_open_is_filled_in_and_what_was_said_is_kept() -> None:
    models = SimpleNamespace(diffusion=SimpleNamespace(count_tokens=len))
    open_ended = Character(name="Grisha", prompt="an orc woman in a blue coat")
    found = complete(open_ended, models)  # type: ignore[arg-type]
    assert found.class_noun == "orc woman" and len(found.trigger) == 5  # the shortest, as this model counts tokens
    assert complete(GRISHA, models) == GRISHA  # type: ignore[arg-type]
