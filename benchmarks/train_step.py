"""Training speed and memory of a full-size SDXL LoCon: this engine against LyCORIS' and transformers' usual ways.

    python benchmarks/train_step.py --out results/            # on a CUDA GPU: everything, about eight minutes
    python benchmarks/train_step.py --tiny --device cpu       # a minute: checks that every case runs
    python benchmarks/train_step.py --sd-scripts DIR   # also kohya's trainer, from a checkout of it

Weights are random (speed and memory do not depend on their values). Every case is a process of its own; the JSON is
written after each, so that a time limit loses nothing; under "earlier" it keeps what older runs measured and this one
did not (ratios are meant within one run). Recipe: LoCon rank 32 / conv 16, Adafactor, min-SNR 5, bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.sd_scripts import measure_sd_scripts
from benchmarks.train_cases import CASES
from benchmarks.train_machine import CAP_GIB, LARGE, VIEW, Machine

RESULTS = Path(__file__).resolve().parent / "results"
os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")


def main() -> None:
    """Run the cases in order, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny U-Net and few steps")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    parser.add_argument("--minutes", type=float, default=7.5, help="no case is started after this")
    parser.add_argument("--only", nargs="*", default=[], choices=CASES, metavar="CASE", help="cases, by name, in order")
    parser.add_argument("--earlier", type=Path, help="results to keep; default: the file in benchmarks/results")
    parser.add_argument("--sd-scripts", type=Path, help="a checkout of kohya's sd-scripts")
    parser.add_argument(
        "--sd-scripts-python", type=Path, help="what runs it; default: .venv of the checkout, else this interpreter"
    )
    parser.add_argument(
        "--sdxl", type=Path, help="the SDXL .safetensors file sd-scripts loads; default: random weights"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print("RESULT " + json.dumps(CASES[arguments.case](Machine(arguments))))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"train_step{'-tiny' if arguments.tiny else ''}.json"
    before = earlier_runs(arguments.earlier or RESULTS / path.name)
    started = time.perf_counter()
    results: dict[str, Any] = {"machine": describe_machine(arguments.device), "cases": {}}
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.only or CASES:
            left = arguments.minutes * 60 - (time.perf_counter() - started)
            if left < 5:
                results["cases"][name] = {"skipped": "no time left"}
                continue
            results["cases"][name] = run_case(name, arguments, Path(work), left + 20, arguments.out)
            write(path, results, before)
            print(f"[{time.perf_counter() - started:5.0f} s] {name}: {summary(results['cases'][name])}", flush=True)
        if arguments.sd_scripts:
            for size in (LARGE, VIEW):
                name, left = f"sd-scripts-{size[0]}", arguments.minutes * 60 - (time.perf_counter() - started)
                results["cases"][name] = (
                    {"skipped": "no time left"} if left < 5 else run_sd_scripts(arguments, size, Path(work), left + 20)
                )
                write(path, results, before)
                print(f"[{time.perf_counter() - started:5.0f} s] {name}: {summary(results['cases'][name])}", flush=True)
    write(path, results, before)
    print(table(results))


def earlier_runs(file: Path) -> list[dict[str, Any]]:
    """What was measured before, newest first: machine and cases of each run."""
    if not file.is_file():
        return []
    newest = json.loads(file.read_text())
    return [{"machine": newest["machine"], "cases": newest["cases"]}, *newest.get("earlier", [])]


def write(path: Path, results: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """This run's results, and of each older run the cases that no newer one measured."""
    known = {name for name, case in results["cases"].items() if measured(case)}
    kept = []
    for run in before:
        cases = {name: case for name, case in run["cases"].items() if measured(case) and name not in known}
        known |= cases.keys()
        kept += [{"machine": run["machine"], "cases": cases}] if cases else []
    path.write_text(json.dumps(results | ({"earlier": kept} if kept else {}), indent=1))


def measured(case: dict[str, Any]) -> bool:
    """Whether a case ran to its end."""
    return "error" not in case and "skipped" not in case


def run_case(name: str, arguments: argparse.Namespace, work: Path, limit: float, out: Path) -> dict[str, Any]:
    """One case in a process of its own; its result, or the end of its error."""
    command = [sys.executable, __file__, "--case", name, "--device", arguments.device, "--work", str(work)]
    command += ["--out", str(out)] + (["--tiny"] if arguments.tiny else [])
    environment = os.environ | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if name == "check" else {})
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}
    (out / f"{name}.log").write_text(done.stdout[-20_000:] + done.stderr[-20_000:])
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"error": done.stderr.strip()[-1500:]}
    return {**json.loads(lines[-1].removeprefix("RESULT ")), "case_seconds": round(time.perf_counter() - started, 1)}


def run_sd_scripts(arguments: argparse.Namespace, size: tuple[int, int], work: Path, limit: float) -> dict[str, Any]:
    """sd-scripts at a size, under the same cap as our step."""
    began = time.perf_counter()
    found = measure_sd_scripts(
        arguments.sd_scripts,
        arguments.sdxl,
        size,
        work,
        CAP_GIB,
        python=arguments.sd_scripts_python,
        limit=limit,
        log=arguments.out / f"sd-scripts-{size[0]}.log",
    )
    return {**found, "case_seconds": round(time.perf_counter() - began, 1)}


def summary(case: dict[str, Any]) -> str:
    """One line about a case."""
    if "error" in case or "skipped" in case:
        return str(case.get("error", case.get("skipped")))[-300:].replace("\n", " ")
    words = [
        f"{case['step_ms'] / case.get('samples', 1):.1f} ms a sample"
        if "step_ms" in case and case.get("samples", 1) < 100
        else ""
    ]
    for key in (
        "step_ms",
        "peak_gib",
        "seconds",
        "graph_ms",
        "transformers_ms",
        "budget_gib",
        "plan",
        "graph_from_eager",
    ):
        if key in case:
            value = case[key]
            words.append(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}")
    flags = [f"{key}={case[key]}" for key in ("graph_equals_eager", "resumed_equals_uninterrupted") if key in case]
    return ", ".join(filter(None, words + flags))


def table(results: dict[str, Any]) -> str:
    """All cases, as text."""
    lines = ["", json.dumps(results["machine"]), ""]
    lines.append(f"{'case':26} {'ms/sample':>10} {'ms/step':>9} {'GiB':>6}  notes")
    for name, case in results["cases"].items():
        if "error" in case or "skipped" in case:
            lines.append(f"{name:26} {summary(case)[:110]}")
            continue
        step, samples = case.get("step_ms", 0.0), case.get("samples", 1)
        each = step / samples if samples < 100 else 1000 * case.get("loop_seconds", 0) / samples
        notes = [
            f"{k} {case[k]}"
            for k in ("plan", "seconds", "ready_s", "budget_gib", "graph_ms", "transformers_ms", "commit", "stand_ins")
            if k in case
        ]
        notes += [
            f"{k} {case[k]}"
            for k in ("graph_equals_eager", "resumed_equals_uninterrupted", "optimizer_graph_ms")
            if k in case
        ]
        lines.append(
            f"{name:26} {each:10.2f} {step:9.2f} {case.get('peak_gib', 0):6.2f}  {'; '.join(map(str, notes))[:170]}"
        )
    return "\n".join(lines)


def describe_machine(device: str) -> dict[str, Any]:
    """Where this was measured."""
    import diffusers
    import torch
    import transformers

    facts = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    facts["transformers"] = transformers.__version__
    facts["device"] = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    return facts


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
