"""A run's adapters say the whole request; a file that another run made goes on saying who made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_samples import sample_run

from charengine.adapter.files import load_adapter, save_adapter
from charengine.config import Character
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile
from charengine.records import Ref, SweepRecord
from charengine.run.whole_recipe import with_whole_recipe
from charengine.run.workspace import Workspace

GRISHA = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul", seed=7)
TENSORS = {"lora_unet_x.alpha": torch.tensor(8.0)}
TRAINED: dict[str, Any] = {
    "profile": {"train": {"steps": 100}},
    "dataset_digest": "d" * 64,
    "machines": [{"from_step": 0}],
    "went_on_with": {"train": {"batch": 1}},
}


def workspace(folder: Path, *overrides: str, starts_from: str = "") -> Workspace:
    return Workspace(GRISHA, load_profile("embedded", list(overrides)), Home(folder), starts_from=starts_from)


@pytest.fixture
def opened(tmp_path: Path) -> Workspace:
    return workspace(tmp_path / "home", "sheet.steps=17")


@pytest.fixture
def swept(opened: Workspace) -> SweepRecord:
    def file(name: str) -> Ref:
        metadata = {"ss_steps": "100", "a": name, "charengine.recipe": json.dumps(TRAINED)}
        return opened.store.put(save_adapter(TENSORS, metadata), name)

    sweep = sample_run(opened.store).sweep
    return sweep.model_copy(update={"adapter": file("a.safetensors"), "recommended_adapter": file("b.safetensors")})


def metadata_of(ref: Ref, workspace: Workspace) -> dict[str, str]:
    tensors, metadata = load_adapter(workspace.store.get(ref))
    assert tensors == TENSORS
    return metadata


def test_both_adapters_say_the_whole_request_beside_what_training_wrote(opened: Workspace, swept: SweepRecord) -> None:
    told = with_whole_recipe(swept, opened)
    for before, after in ((swept.adapter, told.adapter), (swept.recommended_adapter, told.recommended_adapter)):
        metadata = metadata_of(after, opened)
        assert (metadata["ss_steps"], metadata["a"]) == ("100", before.name) and after.name == before.name
        recipe = json.loads(metadata["charengine.recipe"])
        assert recipe == {**TRAINED, **opened.recipe()}
        assert recipe["profile"]["sheet"]["steps"] == 17 and recipe["character"]["class_noun"] == "orc woman"
    assert told.model_copy(update={"adapter": swept.adapter, "recommended_adapter": swept.recommended_adapter}) == swept


def test_both_say_how_the_base_models_file_is_called_in_this_run(opened: Workspace, swept: SweepRecord) -> None:
    for name in ("noob.safetensors", "renamed.safetensors"):
        opened.models.diffusion.base_names = {"ss_sd_model_name": name, "ss_sd_model_hash": "a"}
        swept = with_whole_recipe(swept, opened)
        for ref in (swept.adapter, swept.recommended_adapter):
            metadata = metadata_of(ref, opened)
            assert metadata["ss_sd_model_name"] == name and "ss_sd_model_hash" not in metadata


def test_said_again_it_is_the_same_file(opened: Workspace, swept: SweepRecord) -> None:
    once = with_whole_recipe(swept, opened)
    assert with_whole_recipe(once, opened) == once


def test_a_run_that_starts_from_an_adapter_that_it_did_not_make_leaves_its_recipe_alone(
    opened: Workspace, swept: SweepRecord, tmp_path: Path
) -> None:
    later = workspace(tmp_path / "home", "train.steps=999", starts_from="e" * 64)
    assert with_whole_recipe(swept, later) == swept
