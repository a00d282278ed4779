"""What a benchmark says of single functions and of a GPU's kernels."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from stages import quiet_step
from watching import Stopwatch, summary


def test_a_gpu_waits_where_no_kernel_runs_and_kernels_side_by_side_count_once() -> None:
    kernels = [("nvjet_gemm", 0, 4 * 10**8), ("Memcpy HtoD", 2 * 10**8, 4 * 10**8), ("flash_fwd", 8 * 10**8, 10**8)]
    found = summary(kernels, wall=1.0)
    assert found["waiting_s"] == pytest.approx(0.3)  # busy from 0 to .6 and from .8 to .9
    assert found["by_kind_s"] == {"matrix products": 0.4, "copies": 0.4, "attention": 0.1}


def test_a_watched_function_is_as_it_was_afterwards_and_its_seconds_are_known() -> None:
    class Model:
        def draw(self, seconds: float) -> str:
            time.sleep(seconds)
            return "drawn"

    own, one, watch = Model.draw, Model(), Stopwatch(torch.device("cpu"))
    with watch.on(drawing=(one, "draw"), any_drawing=(Model, "draw")):
        assert one.draw(0.05) == "drawn"
    assert Model.draw is own and "draw" not in one.__dict__
    assert watch.facts()["drawing_s"] == pytest.approx(0.05, abs=0.04)
    assert watch.calls["drawing"] == 1


def test_a_step_s_time_leaves_out_what_lies_between_steps() -> None:
    def report(at: float, step: int, doing: str = "") -> tuple[float, SimpleNamespace]:
        return at, SimpleNamespace(step=step, doing=doing)

    seen = [report(0, 10), report(1, 20, "validating"), report(9, 30), report(10, 40)]
    assert quiet_step(seen) == 100.0
