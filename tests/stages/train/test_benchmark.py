"""The benchmark runs everywhere, tiny, and writes what it measured after every case."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import train_step
from benchmarks.train_cases import CASES
from benchmarks.train_machine import Machine
from benchmarks.train_step import earlier_runs, write

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "train_step.py"


def test_the_benchmark_measures_adafactor_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "adafactor"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "train_step-tiny.json").read_text())["cases"]
    assert cases["adafactor"]["difference"] < 1e-5
    assert cases["adafactor"]["tensors"] == 158
    assert "adafactor" in done.stdout.splitlines()[-1]


def test_the_benchmark_measures_a_whole_run_on_a_cpu(tmp_path):
    """The case itself; in a process of its own it is like the other."""
    given = argparse.Namespace(tiny=True, device="cpu", out=tmp_path, work=tmp_path)
    case = CASES["run-1200-samples"](Machine(given))
    assert case["samples"] == 18
    assert case["file_mib"] > 0.1


def test_cases_are_written_beside_each_other_and_told_in_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_step, "run_case", lambda name, *_: {"step_ms": float(len(name))})
    chosen = ["adafactor", "run-1200-samples"]
    monkeypatch.setattr(
        "sys.argv", ["train_step.py", "--tiny", "--device", "cpu", "--out", str(tmp_path), "--only", *chosen]
    )
    train_step.main()
    assert json.loads((tmp_path / "train_step-tiny.json").read_text())["cases"] == {
        name: {"step_ms": len(name)} for name in chosen
    }
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == chosen


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
