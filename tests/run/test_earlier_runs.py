"""A sweep of an earlier run, or of a file, knows what the character looks like, if they say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_samples import sample_run

from charengine.adapter.files import save_adapter
from charengine.run.earlier_runs import character_name, description
from charengine.store import Store


def file_with(recipe: str, folder: Path) -> Path:
    path = folder / "adapter.safetensors"
    path.write_bytes(save_adapter({"lora_unet_x.alpha": torch.tensor(8.0)}, {"charengine.recipe": recipe}))
    return path


def test_a_run_and_a_file_of_ours_say_what_the_character_looks_like(tmp_path: Path) -> None:
    run = sample_run(Store(tmp_path / "store"))
    (tmp_path / "run.json").write_text(run.model_dump_json())
    assert description(tmp_path) == description(tmp_path / "run.json") == run.prompt
    assert character_name(tmp_path) == run.name
    recipe = json.dumps({"character": {"name": "Zorga", "prompt": "an orc in a blue coat"}})
    assert description(file_with(recipe, tmp_path)) == "an orc in a blue coat"
    assert character_name(file_with(recipe, tmp_path)) == "Zorga"


@pytest.mark.parametrize(
    "recipe",
    ["", "not json", "[]", '{"character": 7}', '{"character": {"prompt": ["an orc"]}}', '{"character": {"prompt": ""}}',
     json.dumps({"character": {"prompt": "an orc " * 1000}}), json.dumps({"character": {"prompt": "an\x1b[2Jorc"}})],
)  # fmt: skip
def test_a_file_that_says_nothing_usable_is_swept_without(recipe: str, tmp_path: Path) -> None:
    assert description(file_with(recipe, tmp_path)) == ""


@pytest.mark.parametrize(
    "recipe",
    ["", "not json", "[]", "7", '{"character": 7}', '{"character": {"name": ["Zorga"]}}',
     '{"character": {"name": "../zorga"}}', json.dumps({"character": {"name": "zo\x1b[2Jrga"}})],
)  # fmt: skip
def test_a_file_whose_character_has_no_name_that_a_character_can_have_is_named_by_its_trigger(
    recipe: str, tmp_path: Path
) -> None:
    assert character_name(file_with(recipe, tmp_path)) == ""
