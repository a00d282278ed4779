"""Stages of a benchmark, run one after another: seconds, GPU peak, host peak; written to JSON after each."""

from __future__ import annotations

import gc
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

GIB = 2**30
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "lycoris-lora")


class Bench:
    """Runs stages one after another, measures each, and writes what is known after every one."""

    def __init__(self, arguments: Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.path = arguments.out / f"full_pipeline{'-tiny' if arguments.tiny else ''}.json"
        self.started, self.limit = time.perf_counter(), arguments.minutes * 60
        self.results: dict[str, Any] = {
            "budget_gib": arguments.budget,
            "tiny": arguments.tiny,
            "machine": machine(self.device),
            "stages": {},
        }

    def group(self, name: str, stages: Callable[[], None]) -> None:
        """Run stages that need each other; what fails between them ends this group alone."""
        try:
            stages()
        except Exception as error:  # the other groups still have something to say
            self.results["stages"][name] = failure(error)
            self._save(name)

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return self.limit - (time.perf_counter() - self.started)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Run and measure one stage; a failure is recorded and shown, and the others still run."""
        if self.left < 5:
            return self.skip(name, "no time left")
        before = self._settle()
        try:
            facts = work()
        except Exception as error:  # the point of a benchmark is to report what happened, whatever it was
            facts = failure(error)
        self._wait()
        facts = {"seconds": round(time.perf_counter() - before, 3), **facts, **self._memory()}
        self.results["stages"][name] = facts
        return self._save(name)

    def skip(self, name: str, reason: str) -> bool:
        """Record that a stage was not run, and why."""
        self.results["stages"][name] = {"skipped": reason}
        return self._save(name)

    def _settle(self) -> float:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._wait()
        return time.perf_counter()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory(self) -> dict[str, float]:
        host = {"host_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
        if self.device.type != "cuda":
            return host
        peak, reserved = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        return {"gpu_peak_gib": round(peak / GIB, 2), "gpu_reserved_gib": round(reserved / GIB, 2), **host}

    def _save(self, name: str) -> bool:
        facts = self.results["stages"][name]
        self.results["elapsed_seconds"] = round(time.perf_counter() - self.started, 1)
        self.path.write_text(json.dumps(self.results, indent=1))
        shown = {key: value for key, value in facts.items() if key != "traceback"}
        print(f"[{self.results['elapsed_seconds']:6.1f} s] {name}: {json.dumps(shown)}", flush=True)
        return "error" not in facts and "skipped" not in facts


def failure(error: Exception) -> dict[str, Any]:
    """A failure as a stage's facts; it is printed too."""
    told = "".join(traceback.format_exception(error))
    print(told, file=sys.stderr, flush=True)
    return {"error": f"{type(error).__name__}: {str(error)[:300]}", "traceback": told[-6000:]}


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        **{name: _version(name) for name in LIBRARIES},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_gib": round(properties.total_memory / GIB, 1),
            "cuda": torch.version.cuda,
        }
        facts["host_to_gpu_gb_per_s"] = copy_rate(device)
    return facts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def copy_rate(device: torch.device) -> float:
    """GB/s of a page-locked 512 MiB buffer to the GPU, median of five."""
    source = torch.empty(2**29, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    rates = []
    for _ in range(6):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        rates.append(source.numel() / (time.perf_counter() - start) / 1e9)
    return round(statistics.median(rates[1:]), 1)


def table(results: dict[str, Any]) -> str:
    """The stages as a Markdown table."""
    lines = [f"machine: {results['machine']}", f"budget: {results['budget_gib']:g} GiB", *results.get("plan", []), ""]
    lines += [
        "| stage | seconds | GPU peak GiB | reserved GiB | host peak GiB | detail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shown = ("seconds", "gpu_peak_gib", "gpu_reserved_gib", "host_peak_gib")
    left_out = (*shown, "plan", "traceback")
    for name, facts in results["stages"].items():
        detail = "; ".join(f"{key} {value}" for key, value in facts.items() if key not in left_out)
        lines.append(f"| {name} | " + " | ".join(str(facts.get(key, "")) for key in shown) + f" | {detail} |")
    lines += ["", f"prompt to report: {results.get('prompt_to_report_s')}"]
    return "\n".join(lines)


def prompt_to_report(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds of what a run does, one sheet included, without making up weights; `measured` unless a stage was cut."""
    parts = ("the profile's sheet", "crop", "captions", "encode captions", "train 1,200", "sweep", "report")
    total, missing, measured = 0.0, [], True
    for part in parts:
        facts = next((facts for name, facts in stages.items() if name.startswith(part) and "seconds" in facts), {})
        rest = facts.get("extrapolated_rest_seconds", 0.0)
        if "error" in facts or not facts:
            missing.append(part)
            continue
        measured &= not rest and "extrapolated_seconds" not in facts
        total += facts.get("extrapolated_seconds", facts["seconds"]) + rest - facts.get("making_up_s", 0.0)
    return {"seconds": round(total, 1), "measured": measured, "missing": missing}


def quiet_step(seen: Sequence[tuple[float, Any]]) -> float:
    """Milliseconds of a training step, the median of those reported with nothing between them but steps.

    Args:
        seen: when a report came, and its `Progress`.
    """
    pairs = [(a, b) for a, b in itertools.pairwise(seen) if not a[1].doing]
    each = [1000 * (b[0] - a[0]) / (b[1].step - a[1].step) for a, b in pairs if b[1].step > a[1].step]
    return round(statistics.median(each or [0.0]), 1)


class Drawing:
    """A `Diffusion` that counts the images it draws and the seconds of each call; all else is the model's own."""

    def __init__(self, diffusion: Any) -> None:
        self._diffusion, self.images, self.stopped = diffusion, 0, False
        self.seconds: list[float] = []

    def sample(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The model's own, timed."""
        start = time.perf_counter()
        images = self._diffusion.sample(*args, **kwargs)
        self.seconds.append(time.perf_counter() - start)
        self.images += len(images)
        return images

    def __getattr__(self, name: str) -> Any:
        return getattr(self._diffusion, name)
