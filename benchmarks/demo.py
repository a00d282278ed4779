"""Time and peak memory of each stage of `charengine demo`.

python benchmarks/demo.py                      # runs the demo in a fresh home: about three minutes on two cores
python benchmarks/demo.py --run runs/grisha    # reads a run that was just made on this machine
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
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run, all stages of which were made (not cached)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo.json"))
    arguments = parser.parse_args()
    if arguments.run:
        result = measure(arguments.run, None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder) / "run", run_demo(Path(folder)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for stage in result["stages"]:
        print(f"{stage['stage']:<10} {stage['seconds']:>8.1f} s {stage['peak_rss_gib']:>6.2f} GiB")
    print(f"{'all':<10} {result['seconds_in_stages']:>8.1f} s")


def run_demo(folder: Path) -> float:
    """Wall-clock seconds of the whole command, start-up included."""
    environment = {**os.environ, "CHARENGINE_HOME": str(folder / "home")}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "charengine.cli", "demo", "--out", str(folder / "run")], check=True, env=environment
    )
    return time.perf_counter() - started


def measure(run: Path, wall: float | None) -> dict[str, object]:
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
