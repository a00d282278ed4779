"""Is the adapter the character, and is the pick right? Characters nobody tuned to, judged picture by picture.

python benchmarks/adapter_truth.py --folder truth --characters 40 --device cuda     # draws what is not there yet, then the tables
python benchmarks/adapter_truth.py --folder truth --table                           # the tables alone
python benchmarks/adapter_truth.py --folder tune --split heldout                    # while developing: never on "untouched"

One JSON a character and recipe lies in the folder; a run that was stopped goes on with the next. Every way of choosing sees
the first half of the seeds; the best cell is chosen on that half too, and all are valued on the other half, so that regret is
not flattered by the noise it was chosen with. Which seeds are the first half is luck, so each adapter is judged in several
orders of its seeds, and a percentile is one of all adapters in all orders. The judge of a table is named in it: "shipped" is
the product's own probe.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pick_rules import RULES, true_verdict
from truth_judges import JUDGES
from truth_recipes import RECIPES, TABLED
from truth_samples import PROMPTS, Sample, draw_sample

from charengine.config import SweepSettings
from charengine.errors import BadInput
from charengine.profiles.loading import load_profile

TOLD = ("recommended", "everything", "everything_mild", "described")
NEAR = 0.02  # of the best cell's truth
ROUNDS = 4000


def main() -> None:
    """Draw what is missing, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the samples lie")
    parser.add_argument("--split", choices=("untouched", "heldout"), default="untouched")
    parser.add_argument("--first", type=int, default=0, help="index of the first character in its split")
    parser.add_argument("--characters", type=int, default=40)
    parser.add_argument("--recipes", default=",".join(TABLED), help=", ".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=8, help="an even number: half to choose with, half to judge with")
    parser.add_argument("--orders", type=int, default=20, help="of the seeds, the first as they were drawn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--judge", choices=tuple(JUDGES), default="second")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--table", action="store_true", help="draw nothing")
    parser.add_argument(
        "--draw", action="store_true", help="draw only: several processes, each with its own characters"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adapter_truth.json"))
    told = parser.parse_args()
    if told.seeds < 4 or told.seeds % 2:
        raise BadInput(
            f"--seeds is {told.seeds}; it must be even and at least 4: half to choose with, half to judge with"
        )
    told.folder.mkdir(parents=True, exist_ok=True)
    if not told.table:
        draw_missing(told)
    if told.draw:
        return
    samples = read_samples(told.folder, told.split, told.judge)
    if not samples:
        raise BadInput(f"no samples of split {told.split!r} in {told.folder}; run without --table first")
    settings = load_profile("embedded", told.set).sweep
    shuffled = [_shuffled(sample, number) for sample in samples for number in range(told.orders)]
    chosen = [_judge_rules(sample, settings) for sample in shuffled]
    result = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "split": told.split,
        "judge": told.judge,
        "pictures_a_cell": samples[0].seeds * len(PROMPTS),
        "orders": told.orders,
        "adapters": adapters(samples),
        "at_the_pick": at_the_pick(shuffled, chosen, told.orders),
        "picks": picks(chosen),
    }
    told.out.parent.mkdir(parents=True, exist_ok=True)
    told.out.write_text(json.dumps(rounded(result), separators=(",", ":")).replace(',"', ',\n"') + "\n")
    print(table(result))


def rounded(value: Any) -> Any:
    """Numbers to four digits, deep in a result: no table needs more, and results are committed."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def draw_missing(told: argparse.Namespace) -> None:
    """One sample after the other; what is there stays."""
    for index in range(told.first, told.first + told.characters):
        for recipe in told.recipes.split(","):
            path = told.folder / f"{told.split}-{index:03d}-{recipe}.json"
            if not path.exists():
                print(f"drawing {path.name}", flush=True)
                draw_sample(
                    index, recipe, split=told.split, seeds=told.seeds, device=told.device, overrides=told.set, path=path
                )


def read_samples(folder: Path, split: str, judge: str) -> list[Sample]:
    """Every sample of a split, by name, as one judge sees it."""
    return [Sample(json.loads(path.read_text()), judge) for path in sorted(folder.glob(f"{split}-*.json"))]


def adapters(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By recipe, at the last checkpoint and strength 1: traits, on view prompts and in scenes, sides, the right view, adherence."""
    found = {}
    for recipe, own in _by_recipe(samples).items():
        cells = [(sample, _full(sample)) for sample in own]
        found[recipe] = {
            "characters": len(own),
            "sheet_traits": _mean([sample.sheet_traits for sample in own]),
            "traits_on_views": _mean([sample.rate(cell, "traits", ("view",)) for sample, cell in cells]),
            "view_right": _mean([sample.rate(cell, "view", ("view",)) for sample, cell in cells]),
            **_shown(cells, range(own[0].seeds)),
            "variety_of_base_told_everything": _mean([sample.described_variety for sample in own]),
            **{
                f"{name}_{what}": value
                for name in TOLD
                if name in own[0].data
                for what, value in _told(own, name).items()
            },
        }
    return found


def at_the_pick(
    samples: Sequence[Sample], chosen: Sequence[dict[str, Any]], orders: int
) -> dict[str, dict[str, float]]:
    """By recipe, the cell that the product picks on the first half of the seeds (`chosen`, of each sample), read on the other half.

    Each adapter comes in `orders` orders of its seeds, one after the other.
    """
    picked = {
        id(sample): sample.grid.index(row["rules"]["ours"]["cell"]) for sample, row in zip(samples, chosen, strict=True)
    }
    found = {}
    for recipe, own in _by_recipe(samples).items():
        seeds = range(own[0].seeds // 2, own[0].seeds)
        cells = [(sample, picked[id(sample)]) for sample in own]
        traits = torch.tensor([sample.rate(cell, "traits", seeds=seeds) for sample, cell in cells])
        each = traits.reshape(-1, orders).mean(dim=1)  # orders of one adapter are no adapters of their own
        error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("nan")
        found[recipe] = {"characters": len(each), "traits_standard_error": error, **_shown(cells, seeds)}
    return found


def _shown(cells: Sequence[tuple[Sample, int]], seeds: Sequence[int]) -> dict[str, float]:
    """What one cell of each sample shows with these seeds, by the trigger alone."""
    sides = [sample.sides(cell, seeds) for sample, cell in cells]
    return {
        "traits": _mean([sample.rate(cell, "traits", seeds=seeds) for sample, cell in cells]),
        "traits_in_scenes": _mean([sample.rate(cell, "traits", ("scene",), seeds) for sample, cell in cells]),
        "sides_right": sum(right for right, _ in sides) / max(sum(there for _, there in sides), 1),
        "face_in_scenes": _mean([sample.rate(cell, "faces", ("scene",), seeds) for sample, cell in cells]),
        "adherence_kept": _mean([sample.kept(cell, seeds) for sample, cell in cells]),
        "adherence_of_renders": _mean([sample.adheres(cell, seeds) for sample, cell in cells]),
        "variety_kept": _mean([sample.variety_kept(cell, seeds) for sample, cell in cells]),
        "copying": _mean([sample.copying(cell, seeds) for sample, cell in cells]),
    }


def _told(samples: Sequence[Sample], name: str) -> dict[str, float]:
    """What a prompt with words brings: traits, in scenes, items on their side, faces in scenes."""
    own = [sample.told(name) for sample in samples]
    sides = [sample.sides(-1) for sample in own]
    return {
        "traits": _mean([sample.rate(-1, "traits") for sample in own]),
        "traits_in_scenes": _mean([sample.rate(-1, "traits", ("scene",)) for sample in own]),
        "sides_right": sum(right for right, _ in sides) / max(sum(there for _, there in sides), 1),
        "face_in_scenes": _mean([sample.rate(-1, "faces", ("scene",)) for sample in own]),
    }


def picks(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By recipe and over all: each rule's regret with its interval, what it took, and how often the verdict is right."""
    found: dict[str, Any] = {}
    for recipe, own in [("all", rows), *_by_recipe_rows(rows).items()]:
        verdicts = [(row["rules"]["ours"]["verdict"], row["verdict"]) for row in own]
        found[recipe] = {
            "samples": len({(row["index"], row["recipe"]) for row in own}),
            "rules": {name: _summary(own, name) for name in RULES},
            "verdict_right": sum(said == true for said, true in verdicts) / len(verdicts),
            "verdicts": {
                f"{said} said, {true} true": verdicts.count((said, true)) for said, true in sorted(set(verdicts))
            },
        }
    return found


def table(result: dict[str, Any]) -> str:
    """Both tables in words and columns."""
    lines = [
        f"split {result['split']}, judge {result['judge']}, {result['pictures_a_cell']} pictures a cell, "
        f"{result['orders']} orders of the seeds",
        "",
    ]
    for recipe, row in result["adapters"].items():
        lines.append(f"{recipe:10} " + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    lines.append("at the pick:")
    for recipe, row in result["at_the_pick"].items():
        lines.append(f"{recipe:10} " + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    for recipe, block in result["picks"].items():
        lines += [
            "",
            f"{recipe}: {block['samples']} samples; verdict right {block['verdict_right']:.0%} {block['verdicts']}",
        ]
        lines.append(
            f"  {'chosen by':26} {'regret':>7}  {'95 % interval':>16} {'95th':>6} {'worst':>6} {'near':>5} {'pictures':>8}"
        )
        for name, row in block["rules"].items():
            low, high = row["interval"]
            lines.append(
                f"  {name:26} {row['regret']:7.3f}  {low:7.3f} to {high:5.3f} {row['p95']:6.3f} {row['worst']:6.3f} "
                f"{row['near']:5.0%} {row['pictures']:8.1f}"
            )
    return "\n".join(lines)


def _shuffled(sample: Sample, number: int) -> Sample:
    """The sample with its seeds in another order, the same for each number; 0: as they were drawn."""
    order = list(range(sample.seeds))
    if number:
        random.Random(number).shuffle(order)
    return replace(sample, order=tuple(order))


def _judge_rules(sample: Sample, settings: SweepSettings) -> dict[str, Any]:
    """What each rule chose and what that is worth on the seeds that it did not see."""
    half = sample.seeds // 2
    settings = settings.model_copy(update={"seeds": min(settings.seeds, half)})
    first, second = range(half), range(half, sample.seeds)
    cells = range(1, len(sample.grid))
    best = max(cells, key=lambda cell: sample.truth(cell, first))
    rules = {}
    for name, rule in RULES.items():
        chosen = rule(sample, settings)
        regret = sample.truth(best, second) - sample.truth(chosen.cell, second)
        rules[name] = {
            "cell": sample.grid[chosen.cell], "regret": regret, "pictures": chosen.pictures, "verdict": chosen.verdict,
        }  # fmt: skip
    return {
        "recipe": sample.data["recipe"],
        "index": sample.data["index"],
        "best": sample.grid[best],
        "verdict": true_verdict(sample, settings),
        "rules": rules,
    }


def _summary(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """A rule over samples; the interval is a bootstrap over characters, each with all of its recipes."""
    regrets = torch.tensor([row["rules"][name]["regret"] for row in rows], dtype=torch.float64)
    ahead = regrets - torch.tensor([row["rules"]["ours"]["regret"] for row in rows], dtype=torch.float64)
    return {
        "regret": float(regrets.mean()),
        "interval": _interval(regrets, rows),
        "p95": float(regrets.quantile(0.95)),
        "worst": float(regrets.max()),
        "near": float((regrets <= NEAR).double().mean()),
        "pictures": _mean([row["rules"][name]["pictures"] for row in rows]),
        "above_ours": float(ahead.mean()),
        "above_ours_interval": _interval(ahead, rows),
    }


def _interval(values: torch.Tensor, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    characters = sorted({row["index"] for row in rows})
    sums = torch.zeros(len(characters), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for value, row in zip(values, rows, strict=True):
        sums[characters.index(row["index"])] += value
        counts[characters.index(row["index"])] += 1
    draws = torch.randint(0, len(characters), (ROUNDS, len(characters)), generator=torch.Generator().manual_seed(0))
    means = sums[draws].sum(dim=1) / counts[draws].sum(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _full(sample: Sample) -> int:
    """The last checkpoint at strength 1."""
    return sample.grid.index((max(step for step, _ in sample.grid), 1.0))


def _by_recipe(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    names = dict.fromkeys(sample.data["recipe"] for sample in samples)
    return {name: [sample for sample in samples if sample.data["recipe"] == name] for name in names}


def _by_recipe_rows(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(row["recipe"] for row in rows)
    return {name: [row for row in rows if row["recipe"] == name] for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
