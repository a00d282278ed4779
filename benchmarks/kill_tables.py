"""What all batches of kills showed: the counts, the recovery table, and the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from kill_targets import STAGES

BETWEEN = "between stages"
COLUMNS = ("what", "stage", "seconds", "waited")  # of a kill in the file, whose rows are short; no stage: between two


def read_batches(path: Path) -> list[dict[str, Any]]:
    """The batches of a file, each kill with its facts by name; none where there is no file."""
    batches: list[dict[str, Any]] = json.loads(path.read_text())["batches"] if path.exists() else []
    return [batch | {"kills": [dict(zip(COLUMNS, row, strict=False)) for row in batch["kills"]]} for batch in batches]


def write_batches(path: Path, batches: list[dict[str, Any]]) -> None:
    """All batches and where they were made, a batch a line, a kill as a row of COLUMNS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        batch
        | {
            "kills": [
                [kill[name] for name in COLUMNS if name != "waited"] + [int(kill["waited"])] for kill in batch["kills"]
            ]
        }
        for batch in batches
    ]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{{"machine":{json.dumps(machine())},"columns":{json.dumps(COLUMNS)},"batches":[\n{lines}\n]}}\n')


def tables(batches: list[dict[str, Any]]) -> list[str]:
    """Counts by what was killed and in which stage, recovery, and what was wrong."""
    kills = [kill for batch in batches for kill in batch["kills"]]
    stages = [*STAGES, BETWEEN]
    counts = Counter((kill["what"], kill["stage"] if kill["stage"] in STAGES else BETWEEN) for kill in kills)
    kinds = sorted({kill["what"] for kill in kills})
    lines = ["| killed | " + " | ".join(stages) + " | all |", "| --- |" + " ---: |" * (len(stages) + 1)]
    for kind in kinds:
        row = [counts[kind, stage] for stage in stages]
        lines.append(f"| {kind} | " + " | ".join(str(count) for count in (*row, sum(row))) + " |")
    row = [sum(counts[kind, stage] for kind in kinds) for stage in stages]
    lines.append("| all | " + " | ".join(str(count) for count in (*row, sum(row))) + " |")
    lines += ["", "| killed | measured | median s | most s | not within 200 s |", "| --- | ---: | ---: | ---: | ---: |"]
    for kind in kinds:
        waited = [kill for kill in kills if kill["what"] == kind and (kill["waited"] or kind == "up")]
        found = [kill["seconds"] for kill in waited if kill["seconds"] is not None]
        if found:
            row = [len(found), f"{statistics.median(found):.1f}", f"{max(found):.1f}", len(waited) - len(found)]
            lines.append(f"| {kind} | " + " | ".join(str(value) for value in row) + " |")
    failed = [batch for batch in batches if batch["wrong"]]
    lines += ["", f"{len(kills)} kills in {len(batches)} batches; in {len(failed)} of them something was wrong"]
    return lines + [f"seed {batch['seed']}: {line}" for batch in failed for line in batch["wrong"]]


def machine() -> dict[str, Any]:
    """Where this was measured, and on which versions."""
    from importlib.metadata import version

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("prefect", "mlflow", "torch")},
    }
