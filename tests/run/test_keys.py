"""A stage's key changes with what the stage declares, and with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from charengine.adapter.files import save_adapter
from charengine.config import Character
from charengine.profiles.loading import load_profile
from charengine.run.keys import digest, path_digest, stage_key
from charengine.stages.sweep.stage import SWEEP
from charengine.stages.train.stage import TRAIN

GRISHA = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul")
MODELS: Any = SimpleNamespace(diffusion=SimpleNamespace(fingerprint="sdxl-1", sampling_fingerprint="sdxl-1"))
ONE = torch.ones(1, 1)


def key(*overrides: str, character: Character = GRISHA, models: Any = MODELS, inputs: tuple[Path, ...] = ()) -> str:
    return stage_key(TRAIN, character, load_profile("embedded", list(overrides)), models, inputs)


def test_how_a_base_is_prompted_counts_for_what_is_drawn_with_it_and_not_for_what_is_trained_on_it() -> None:
    def models(usage: str) -> Any:
        base = SimpleNamespace(fingerprint="sdxl-1", sampling_fingerprint=f"sdxl-1|{usage}")
        embedder, reader = SimpleNamespace(fingerprint="clip-1"), SimpleNamespace(fingerprint="probe-1")
        return SimpleNamespace(diffusion=base, embedder=embedder, reader=reader)

    def sweep_key(usage: str) -> str:
        return stage_key(SWEEP, GRISHA, load_profile("embedded"), models(usage), ())

    assert sweep_key("score_9") != sweep_key("masterpiece")
    views_alone = "train.distill=0"
    assert key(views_alone, models=models("score_9")) == key(views_alone, models=models("masterpiece"))
    assert key(models=models("score_9")) != key(models=models("masterpiece"))  # lessons are drawn


def test_a_default_spelt_out_is_the_same_setting() -> None:
    assert key("train.steps=400", "train.rank=16") == key()
    assert key("train.steps=601") != key()


def test_what_peft_wrote_beside_an_adapter_of_its_own_counts_with_it(tmp_path: Path) -> None:
    def started(stem: str, alpha: int) -> str:
        folder = tmp_path / stem
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        (path := folder / "adapter_model.safetensors").write_bytes(save_adapter({f"{stem}.lora_A.weight": ONE}, {}))
        return key(f"train.continue_from={path}")

    assert started("base_model.model.to_k", 8) != started("base_model.model.to_k", 16)
    assert started("unet.to_k", 8) == started("unet.to_k", 16)  # diffusers' keys: nobody reads the file beside them


def test_a_file_counts_by_content_not_by_path_or_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "deeper" / "two.png"
    two.parent.mkdir()
    one.write_bytes(b"pixels")
    two.write_bytes(b"pixels")
    assert path_digest(one) == path_digest(two)
    assert key(inputs=(one,)) == key(inputs=(two,))
    assert key(f"train.continue_from={one}") == key(f"train.continue_from={two}")
    two.write_bytes(b"other pixels")
    assert path_digest(one) != path_digest(two)
    assert key(f"train.continue_from={one}") != key(f"train.continue_from={two}")


def test_a_folder_counts_by_names_and_contents(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"a")
    assert path_digest(tmp_path / "here") == path_digest(tmp_path / "there")
    (tmp_path / "there" / "a.png").rename(tmp_path / "there" / "b.png")
    assert path_digest(tmp_path / "here") != path_digest(tmp_path / "there")


def test_what_lies_deeper_in_a_folder_counts_with_its_place(tmp_path: Path) -> None:
    for name in ("here", "there", "flat"):
        (tmp_path / name / "10_woman").mkdir(parents=True)
        (tmp_path / name / "10_woman" / "a.png").write_bytes(b"a")
    digests = [path_digest(tmp_path / name) for name in ("here", "there")]
    assert digests[0] == digests[1]
    (tmp_path / "there" / "10_woman" / "a.png").write_bytes(b"b")
    (tmp_path / "flat" / "10_woman" / "a.png").rename(tmp_path / "flat" / "a.png")
    assert len({digests[0], path_digest(tmp_path / "there"), path_digest(tmp_path / "flat")}) == 3


def test_a_file_of_ones_home_may_be_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.png").write_bytes(b"pixels")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert key("train.continue_from=~/one.png") == key(f"train.continue_from={tmp_path / 'one.png'}")


def test_another_process_makes_the_same_key() -> None:
    code = (
        "from types import SimpleNamespace as N; from charengine.config import Character; "
        "from charengine.profiles.loading import load_profile; from charengine.run.keys import stage_key; "
        "from charengine.stages.train.stage import TRAIN; "
        "who = Character(name='Grisha', prompt='an orc woman', class_noun='orc woman', trigger='griqul'); "
        "print(stage_key(TRAIN, who, load_profile('embedded'), N(diffusion=N(fingerprint='sdxl-1', sampling_fingerprint='sdxl-1')), []))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == key()


def test_the_digest_is_one_that_other_versions_of_the_code_made_too() -> None:
    assert digest({"b": [1, 2.5, None], "a": "é"}) == "d764fee2563da33e3d57334755404e635da33c995824b0adfabc4b6e1af4f608"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    from charengine.errors import BadInput

    with pytest.raises(BadInput, match="nofile"):
        key(f"train.continue_from={tmp_path / 'nofile.safetensors'}")
