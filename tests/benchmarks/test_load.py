"""The load: no-op characters are whole characters of their own, and what the script says of a night is true."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT
from PIL import Image
from quick_settings import QUICK

sys.path.append(str(ROOT / "benchmarks"))

from load import flat, spread
from load_grown import _mapped
from load_noop import Recorder, _tell_again, signed

from charengine.tracking.protocol import NullTracker


class Heard(NullTracker):
    """What a tracker and its children were told."""

    def __init__(self, heard: list[Any], run_id: str = "own") -> None:
        self.heard, self.run_id = heard, run_id

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.heard.append((self.run_id, metrics, step))

    def log_bytes(self, data: bytes, name: str) -> None:
        self.heard.append((self.run_id, data, name))

    def log_image(self, image: Any, name: str, step: int | None = None) -> None:
        self.heard.append((self.run_id, image.size, name, step))

    def child(self, name: str, **given: Any) -> Any:
        self.heard.append((self.run_id, name, given["key"]))
        return Heard(self.heard, f"own {name}")


def test_what_a_stage_told_mlflow_is_told_again_to_runs_of_ones_own() -> None:
    told: list[dict[str, Any]] = []
    recorder = Recorder(told)
    assert recorder.last_step("train/loss") == -1
    recorder.log_metrics({"loss": 0.5}, step=3)
    cell = recorder.child("cell", key="k/1", params={"strength": 1.0})
    cell.log_image(Image.new("RGB", (3, 2)), "cell", 0)
    recorder.log_bytes(b"\x00\xff", "curve.csv")
    heard: list[Any] = []
    ids = _tell_again(Heard(heard), json.loads(json.dumps(told)))
    assert heard == [
        ("own", {"loss": 0.5}, 3),
        ("own", "cell", "k/1"),
        ("own cell", (3, 2), "cell", 0),
        ("own", b"\x00\xff", "curve.csv"),
    ]
    assert ids == {recorder.run_id: "own", cell.run_id: "own cell"}


def test_two_characters_share_no_picture_and_both_are_the_same_picture() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(buffer, "PNG")
    first, second = (signed(buffer.getvalue(), by) for by in ("one", "two"))
    assert first != second
    pixels = [Image.open(io.BytesIO(data)).tobytes() for data in (buffer.getvalue(), first, second)]
    assert pixels[0] == pixels[1] == pixels[2]


def test_growth_of_memory_is_told_by_the_hour_and_the_first_minutes_are_left_out() -> None:
    begins = [(second, 100.0 + 5 * second) for second in range(0, 60, 5)]
    grows = [(second, 400 + second / 60) for second in range(600, 3600, 5)]
    assert flat([*begins, *grows], 3600) == [410, 460, 60, 460]


def test_the_slowest_calls_are_told_beside_the_usual_ones() -> None:
    assert spread([0.01] * 94 + [0.4] * 5 + [2.0]) == [0.01, 0.4, 2.0, 100]


@pytest.mark.slow
def test_a_small_cast_goes_through_a_real_up_and_nothing_is_stuck(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    settings = [word for setting in QUICK for word in ("--set", setting)]
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "--characters", "3", "--first-port", "23100"]
    command += ["--folder", str(tmp_path / "load"), "--out", str(out), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    found = json.loads(out.read_text()) if out.exists() else {}
    assert done.returncode == 0, f"{found.get('stuck')}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    assert found["characters"] == 3 and None not in found["visible_s"].values()
    assert found["seconds"]["run_p50"] > 0 and found["cached_seconds"]["run_p50"] > 0
    assert found["here_seconds"]["p50"] > 0 and found["api_s"]["all"][3] > 0
    assert {"Prefect", "MLflow", "gallery", "worker", "flow"} <= found["memory_mib"].keys()
    assert out.stat().st_size < 8000


def test_a_copied_character_has_its_own_name_and_ids_and_the_files_of_the_first() -> None:
    run, flow, file = "ab" * 16, "12345678-aaaa-bbbb-cccc-123456789abc", "cd" * 32
    text = f"Noop 0003 noop-0003 {run} {flow} {file}"
    copies = [_mapped(text, None, number, 12) for number in (1, 2)]
    assert copies[0].startswith("Noop 0015 noop-0015 ") and copies[1].startswith("Noop 0027 ")
    assert all(file in copy and run not in copy and flow not in copy for copy in copies)
    assert copies[0].split()[2:4] != copies[1].split()[2:4]
    assert _mapped(run, set(), 1, 12) == run  # of nobody's that is copied
