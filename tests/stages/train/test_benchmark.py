"""The benchmark runs everywhere, tiny, and writes what it measured after every case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.train_step import earlier_runs, write

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "train_step.py"


def test_the_benchmark_measures_adafactor_and_a_whole_run_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--only", "adafactor", "run-1200-samples"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "train_step-tiny.json").read_text())["cases"]
    assert cases["adafactor"]["difference"] < 1e-5
    assert cases["adafactor"]["tensors"] == 336
    assert cases["run-1200-samples"]["samples"] == 18
    assert cases["run-1200-samples"]["file_mib"] > 0.1
    assert "adafactor" in done.stdout.splitlines()[-2]


def test_a_run_keeps_what_older_runs_measured_and_it_did_not(tmp_path):
    older = {
        "machine": {"device": "old"},
        "cases": {"check": {"losses": [1]}, "adafactor": {"step_ms": 9.0}, "ours-320": {"skipped": "no time left"}},
        "earlier": [
            {"machine": {"device": "older"}, "cases": {"check": {"losses": [2]}, "ours-320": {"step_ms": 7.0}}}
        ],
    }
    (tmp_path / "old.json").write_text(json.dumps(older))
    path = tmp_path / "new.json"
    write(path, {"machine": {}, "cases": {"adafactor": {"step_ms": 1.0}}}, earlier_runs(tmp_path / "old.json"))
    assert json.loads(path.read_text()) == {
        "machine": {},
        "cases": {"adafactor": {"step_ms": 1.0}},
        "earlier": [
            {"machine": {"device": "old"}, "cases": {"check": {"losses": [1]}}},
            {"machine": {"device": "older"}, "cases": {"ours-320": {"step_ms": 7.0}}},
        ],
    }
