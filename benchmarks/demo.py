"""Time and peak memory of each stage of `charengine demo`, and of the same command once more, when all of it is in the cache.

python benchmarks/demo.py                      # runs the demo in a fresh home: about three minutes on two cores
python benchmarks/demo.py --run runs/grisha    # reads a run that was just made on this machine
python benchmarks/demo.py --beside ../other    # the cached command by another checkout too, in turns
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TURNS = 5  # of the cached command


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run, all stages of which were made (not cached)")
    parser.add_argument("--beside", type=Path, help="another checkout, whose stages have the same keys")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo.json"))
    arguments = parser.parse_args()
    if arguments.run:
        result = measure(arguments.run, None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder) / "run", run_demo(Path(folder)))
            others = [arguments.beside.resolve()] if arguments.beside else []
            result["cached"] = run_again(Path(folder), [ROOT, *others])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for stage in result["stages"]:
        print(f"{stage['stage']:<10} {stage['seconds']:>8.1f} s {stage['peak_rss_gib']:>6.2f} GiB")
    print(f"{'all':<10} {result['seconds_in_stages']:>8.1f} s")
    for of, seconds in result.get("cached", {}).items():
        print(f"cached, {of}: {seconds['median']:.1f} s")


def run_demo(folder: Path, checkout: Path = ROOT) -> float:
    """Wall-clock seconds of the whole command, start-up included."""
    environment = {**os.environ, "CHARENGINE_HOME": str(folder / "home"), "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-P", "-m", "charengine.cli", "demo", "--out", str(folder / "run")]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - started


def run_again(folder: Path, checkouts: list[Path]) -> dict[str, dict[str, object]]:
    """The same command, nothing of which is made anew, by each checkout in turns; by its commit."""
    for checkout in checkouts:  # what is noted at a first run of a version
        run_demo(folder, checkout)
    found = [[run_demo(folder, checkout) for checkout in checkouts] for _ in range(TURNS)]
    return {
        commit(checkout): {"seconds": [*seconds], "median": statistics.median(seconds)}
        for checkout, seconds in zip(checkouts, zip(*found, strict=True), strict=True)
    }


def commit(checkout: Path) -> str:
    """Its short name."""
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def measure(run: Path, wall: float | None) -> dict[str, Any]:
    """What the run's own record says, with the machine it was made on."""
    record = json.loads((run / "run.json").read_text())
    cached = [stage["stage"] for stage in record["stages"] if stage["cached"]]
    if cached:
        raise SystemExit(f"{run}: {', '.join(cached)} came from the cache; measure a run in a fresh CHARENGINE_HOME")
    keys = ("stage", "seconds", "peak_rss_gib")
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "prefect", "mlflow")},
        },
        "stages": [{key: stage[key] for key in keys} for stage in record["stages"]],
        "seconds_in_stages": sum(stage["seconds"] for stage in record["stages"]),
        "seconds_wall": wall,
        "training": record["training"]["facts"],
    }


if __name__ == "__main__":
    main()
