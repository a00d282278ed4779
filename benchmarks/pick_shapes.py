"""How likeness and adherence rose on adapters of the tuning split: the numbers of `charengine/stages/sweep/shapes.py`.

python benchmarks/adapter_truth.py --folder tune --split heldout --draw --recipes default,under,overfit,one-view --device cuda
python benchmarks/pick_shapes.py tune                                               # prints them; every recipe weighs alike
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from truth_samples import QUICK_ROWS, Sample

from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores
from charengine.stages.sweep.surface import places, polynomial

RIDGE = 1e-4


def main() -> None:
    """Fit a polynomial to each adapter, print their mean and a root of their covariance."""
    samples = [Sample(json.loads(path.read_text())) for path in sorted(Path(sys.argv[1]).glob("heldout-*.json"))]
    counts = Counter(sample.data["recipe"] for sample in samples)
    weights = torch.tensor([1 / counts[sample.data["recipe"]] for sample in samples], dtype=torch.float64)
    weights /= weights.sum()
    print(f"{len(samples)} adapters: {dict(counts)}")
    for axis in ("GAIN", "KEPT"):
        found = torch.stack([coefficients(sample, axis) for sample in samples])
        mean = weights @ found
        apart = found - mean
        covariance = apart.T @ (weights[:, None] * apart) + RIDGE * torch.eye(found.shape[1], dtype=torch.float64)
        print(f"{axis} = Shape(")
        print(f"    {tuple(round(value, 3) for value in mean.tolist())},")
        print("    (")
        for row in torch.linalg.cholesky(covariance).tolist():
            print(f"        {tuple(round(value, 3) for value in row)},")
        print("    ),\n)")


def coefficients(sample: Sample, axis: str) -> Tensor:
    """(5,) coefficients of an axis, from every seed of the sweep's own prompts."""
    seeds, scale = range(sample.seeds), sample.scale(QUICK_ROWS, range(sample.seeds))
    margin = max(metrics.mean(scale.base.margin), metrics.MIN_SPAN)

    def value(scores: CellScores) -> float:
        if axis == "GAIN":
            return float(metrics.progress(scores, scale).nanmean())
        return metrics.mean(scores.margin) / margin - 1

    cells = range(1, len(sample.grid))
    values = torch.tensor([value(sample.scores(cell, QUICK_ROWS, seeds)) for cell in cells], dtype=torch.float64)
    rises = polynomial(places(sample.grid))[1:]
    return torch.linalg.solve(rises.T @ rises + RIDGE * torch.eye(rises.shape[1]).double(), rises.T @ values)


if __name__ == "__main__":
    main()
