"""sd-scripts beside this project: which interpreter runs it, and what a result says about where it came from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.sd_scripts import TOKENIZERS, interpreter, measure_sd_scripts

LIBRARY = """
class LossRecorder:
    def add(self, **values):
        pass
"""
TRAINER = """
import json, sys, time
from pathlib import Path
from library import train_util
recorder = train_util.LossRecorder()
Path("seen.json").write_text(json.dumps(sys.argv[1:]))
for step in range(int(next(flag.split("=")[1] for flag in sys.argv if flag.startswith("--max_train_steps=")))):
    time.sleep(0.7 if step < 3 else 0.05)
    recorder.add(epoch=0, step=step, loss=0.1)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder shaped as a copy of sd-scripts, whose trainer is slow for three steps, then takes 50 ms each."""
    folder = tmp_path / "sd-scripts"
    (folder / "library").mkdir(parents=True)
    for name in ("__init__", "model_util", "sdxl_model_util"):
        (folder / "library" / f"{name}.py").write_text("")
    (folder / "library" / "train_util.py").write_text(LIBRARY)
    (folder / "sdxl_train_network.py").write_text(TRAINER)
    (folder / "COMMIT").write_text("abc123\n")
    (folder / "CHANGES").write_text("cv2 is a stand-in\n")
    return folder


def test_a_result_has_the_median_step_without_warm_up_and_names_commit_and_stand_ins(
    checkout: Path, tmp_path: Path
) -> None:
    found = measure_sd_scripts(checkout, None, (64, 32), tmp_path / "work", 11.5, steps=7)
    assert 40 < found["step_ms"] < 500, found
    assert found["commit"] == "abc123"
    assert found["stand_ins"] == ["cv2 is a stand-in", "random weights", "byte-level tokenizers"]
    flags = json.loads((checkout / "seen.json").read_text())
    assert (
        "--resolution=64,32" in flags and "--optimizer_type=Adafactor" in flags and "--gradient_checkpointing" in flags
    )


def test_its_stand_in_tokenizers_end_where_clips_do(checkout: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    measure_sd_scripts(checkout, None, (64, 32), tmp_path / "work", 11.5, steps=1)
    for name in TOKENIZERS:
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "work" / "tokenizers" / name)
        ids = tokenizer("zorgal, woman").input_ids
        assert (ids[0], ids[-1], tokenizer.model_max_length) == (49406, 49407, 77)


def test_a_trainer_that_fails_is_an_error_with_its_last_words(checkout: Path, tmp_path: Path) -> None:
    (checkout / "sdxl_train_network.py").write_text("raise SystemExit('NaN detected in latents')")
    found = measure_sd_scripts(checkout, None, (64, 32), tmp_path / "work", 11.5)
    assert "NaN detected" in found["error"]


def test_the_interpreter_is_the_one_named_then_the_checkouts_own_then_this_one(tmp_path: Path) -> None:
    assert interpreter(tmp_path, None) == Path(sys.executable)
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert interpreter(tmp_path, None) == own
    assert interpreter(tmp_path, Path("other")) == Path("other")
