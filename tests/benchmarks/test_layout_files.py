"""The benchmark of layouts: its files are those that people have, and every layout is found, loaded and drawn with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import layout_files as files  # noqa: E402
from layouts import BASELINE, LAYOUTS, compared  # noqa: E402

from charengine.models.classes import packaged_config  # noqa: E402
from charengine.models.files import read_header  # noqa: E402
from charengine.models.identify import identify_path  # noqa: E402
from charengine.models.reading import read_state, unpacked  # noqa: E402


@pytest.mark.slow
def test_every_layout_is_written_found_and_drawn_with_on_tiny_models(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/layouts.py", "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "layouts-tiny.json").read_text())["layouts"]
    assert [row["layout"] for row in rows] == [layout.name for layout in LAYOUTS]
    assert all(row["step_s"] and not row["error"] and f"| {row['layout']} |" in done.stdout for row in rows)


@pytest.mark.parametrize("kind", sorted(files.FACTORS))
def test_random_blocks_are_finite_weights_of_the_size_that_weights_have(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("gguf")
    contents = files.packed({"x.weight": torch.empty(64, 512)}, files.Values(torch.device("cpu")).gguf(kind))
    share = files.write_gguf(tmp_path / "x.gguf", contents, "qwen_image", 60)
    weight = unpacked(read_state(tmp_path / "x.gguf")["x.weight"])
    assert share == 1 and weight.shape == (64, 512)
    assert 0.015 < float(weight.float().std()) < 0.025 and abs(float(weight.float().mean())) < 0.003


def test_a_full_size_file_is_what_people_have_though_nothing_large_was_written_in_time(tmp_path: Path) -> None:
    shapes = files.edit_transformer(packaged_config("qwen-image-edit"))
    few = {name: tensor for name, tensor in shapes.items() if ".attn." in name or "blocks.0." in name or "norm" in name}
    path = tmp_path / "qwen_image_edit_2511_int8_convrot.safetensors"
    share = files.write_safetensors(path, files.packed(few, files.Values(torch.device("cpu")).convrot(256)), 0)
    header = read_header(path)
    assert len(shapes) == 1933 and header.tensors["transformer_blocks.0.attn.to_q.weight"].dtype == "I8"
    assert share < 0.01 and path.stat().st_blocks * 512 < 200e6 < path.stat().st_size
    assert identify_path(path).note == "2511"


def test_steps_are_compared_with_those_of_streamed_bf16_and_checkpoints_of_sdxl_with_nothing() -> None:
    rows = compared([{"layout": name, "step_s": step} for name, step in (("fp8", 0.9), (BASELINE, 0.6), ("SDXL", 0.1))])
    assert [row.get("step_of_streamed_bf16") for row in rows] == [1.5, 1.0, None]
