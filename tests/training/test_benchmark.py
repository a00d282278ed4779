"""The benchmark runs everywhere, tiny, and writes what it measured after every case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


def test_the_benchmark_measures_adafactor_and_a_whole_run_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--only", "adafactor", "run-1200-samples"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "train_step-tiny.json").read_text())["cases"]
    assert cases["adafactor"]["difference"] < 1e-5
    assert cases["adafactor"]["tensors"] == 514
    assert cases["run-1200-samples"]["samples"] == 18
    assert cases["run-1200-samples"]["file_mib"] > 0.1
    assert "adafactor" in done.stdout.splitlines()[-2]
