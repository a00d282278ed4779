"""A stage's key changes with what the stage reads, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from charengine.config import SweepSettings, TrainSettings
from charengine.run.keys import digest, file_digest, folder_digest, stage_key

BASE = {
    "character": {"name": "Aya", "trigger": "ohwaya"},
    "settings": TrainSettings(),
    "inputs": ["a" * 64, "b" * 64],
    "models": ["sdxl-1"],
    "seed": 42,
}


@pytest.mark.parametrize(
    "change",
    [
        {"character": {"name": "Bea", "trigger": "ohwaya"}},
        {"settings": TrainSettings(steps=301)},
        {"settings": SweepSettings()},
        {"inputs": ["a" * 64, "c" * 64]},
        {"inputs": ["b" * 64, "a" * 64]},
        {"inputs": ["a" * 64]},
        {"models": ["sdxl-2"]},
        {"seed": 43},
        {"seed": None},
    ],
)
def test_each_part_changes_the_key(change: dict) -> None:
    assert stage_key("train", 1, **{**BASE, **change}) != stage_key("train", 1, **BASE)


def test_the_stage_version_changes_the_key() -> None:
    assert stage_key("train", 2, **BASE) != stage_key("train", 1, **BASE)


def test_two_stages_with_the_same_inputs_never_collide() -> None:
    assert len({stage_key(stage, 1, **BASE) for stage in ("sheet", "crop", "caption", "train", "sweep", "report")}) == 6


def test_the_order_of_dict_keys_does_not_matter() -> None:
    turned = {**BASE, "character": {"trigger": "ohwaya", "name": "Aya"}}
    assert stage_key("train", 1, **turned) == stage_key("train", 1, **BASE)


def test_a_default_spelt_out_is_the_same_setting() -> None:
    assert stage_key("train", 1, **{**BASE, "settings": TrainSettings(steps=300)}) == stage_key("train", 1, **BASE)


def test_a_file_counts_by_content_not_by_path_or_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "deeper" / "two.png"
    two.parent.mkdir()
    one.write_bytes(b"pixels")
    two.write_bytes(b"pixels")
    assert file_digest(one) == file_digest(two)
    two.write_bytes(b"other pixels")
    assert file_digest(one) != file_digest(two)


def test_a_folder_counts_by_names_and_contents(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"a")
    assert folder_digest(tmp_path / "here") == folder_digest(tmp_path / "there")
    (tmp_path / "there" / "a.png").rename(tmp_path / "there" / "b.png")
    assert folder_digest(tmp_path / "here") != folder_digest(tmp_path / "there")


def test_another_process_makes_the_same_key() -> None:
    code = (
        "from charengine.keys import stage_key; from charengine.config import TrainSettings; "
        "print(stage_key('train', 1, character={'trigger': 'ohwaya', 'name': 'Aya'}, settings=TrainSettings(), "
        "inputs=['a' * 64, 'b' * 64], models=['sdxl-1'], seed=42))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == stage_key("train", 1, **BASE)


def test_the_key_is_one_that_other_versions_of_the_code_made_too() -> None:
    assert digest({"b": [1, 2.5, None], "a": "é"}) == "d764fee2563da33e3d57334755404e635da33c995824b0adfabc4b6e1af4f608"
