from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_runs_every_stage_of_the_pipeline_on_tiny_models(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/full_pipeline.py", "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = json.loads((tmp_path / "full_pipeline-tiny.json").read_text())["stages"]
    assert [name for name, facts in stages.items() if "error" in facts or "skipped" in facts] == []
    for words in (
        "the profile's sheet 192x96, 10 steps",
        "captions of three views",
        "crop",
        "sweep of at most 64 images",
        "train 1,200 samples",
        "report",
    ):
        assert any(name.startswith(words) for name in stages), words
    passes = {name.split(", ")[-1]: facts["passes"] for name, facts in stages.items() if "passes" in facts}
    assert passes["CFG in all"] == passes["CFG above 0"] == 20 and passes["no CFG"] < 10, passes
    assert all(f"| {name} |" in done.stdout for name in stages)
