"""Writes the model card from the training logs and the scores: `python -m charengine.embedded.making.card`.

Scores come from `python -m charengine.embedded.making.check --json charengine/embedded/weights/training/check.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from charengine.embedded.making.family import count_parameters
from charengine.embedded.making.pack import WEIGHTS

CURVES = {
    "qwen_vae": "loss", "sdxl_vae": "loss", "qwen_decoder": "loss", "sdxl_decoder": "loss", "sheets": "flow", "images": "loss",
    "clip": "texts", "probe": "loss", "eye": "loss", "other_eye": "loss",
    "scene_eye": "loss", "other_scene_eye": "loss", "drawn": "missed",
}  # fmt: skip
LICENCE = "Apache-2.0, like the code that draws the data and trains the weights."


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of one part's log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def runs(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """A log split where training started again."""
    out: list[list[dict[str, Any]]] = []
    for row in rows:
        if row.get("event") == "start" or not out:
            out.append([])
        out[-1].append(row)
    return [run for run in out if any("step" in row for row in run)]


def curve(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, loss) over all runs of a part, steps counted on."""
    points, before = [], 0
    for run in runs(rows):
        steps = [(before + row["step"], row[key]) for row in run if key in row and "step" in row]
        points += steps
        before = steps[-1][0] if steps else before
    return points


def draw_curves(logs: Path, path: Path) -> None:
    """One small panel a part, logarithmic loss over steps."""
    import math

    from PIL import Image, ImageDraw

    width, height, pad = 260, 150, 14
    image = Image.new("RGB", (3 * width, -(-len(CURVES) // 3) * height), "white")
    pen = ImageDraw.Draw(image)
    for i, (part, key) in enumerate(CURVES.items()):
        x0, y0 = (i % 3) * width, (i // 3) * height
        points = [(step, math.log10(max(loss, 1e-6))) for step, loss in curve(read_log(logs / f"{part}.jsonl"), key)]
        pen.rectangle((x0 + 4, y0 + 4, x0 + width - 5, y0 + height - 5), outline="#bbbbbb")
        if len(points) < 2:
            pen.text((x0 + pad, y0 + 8), f"{part}: no log", fill="black")
            continue
        last, low, high = points[-1][0], min(p[1] for p in points), max(p[1] for p in points)
        scaled = [
            (
                x0 + pad + (width - 2 * pad) * step / last,
                y0 + height - pad - (height - 3 * pad) * (loss - low) / max(high - low, 1e-9),
            )
            for step, loss in points
        ]
        pen.line(scaled, fill="#1f5fa8", width=2)
        title = f"{part}: {key} {10 ** points[0][1]:.3g} to {10 ** points[-1][1]:.3g}, {last} steps"
        pen.text((x0 + pad, y0 + 7), title, fill="black")
    image.quantize(16).save(path, optimize=True)


def card(weights: Path) -> str:
    """The card's text, from what lies under `weights`."""
    logs = weights / "training"
    counts = count_parameters(weights)
    lines = [
        "# The embedded family",
        "",
        "Tiny models of the real classes, trained from scratch on characters that `charengine/embedded/world.py` draws.",
        "They draw small toy figures from a closed vocabulary (`charengine/embedded/lexicon.py`), nothing else. "
        "They exist so that the whole pipeline runs anywhere, offline; they say nothing about the quality of SDXL.",
        "",
        f"Licence: {LICENCE}",
        "",
        "## Parts",
        "",
        "| file | parameters | MB |",
        "|---|---:|---:|",
    ]
    sizes = {name: (weights / name).stat().st_size / 1e6 for name in counts}
    lines += [f"| {name} | {count:,} | {sizes[name]:.1f} |" for name, count in counts.items()]
    total, size = sum(counts.values()), sum(sizes.values())
    lines += [f"| all | {total:,} | {size:.1f} |", "", *_data(), "## Training", "", *_training(logs), ""]
    lines += ["![loss curves](training/curves.png)", "", "## Scores", "", *_scores(logs / "check.json"), ""]
    return "\n".join(lines)


def _data() -> list[str]:
    return [
        "## Data",
        "",
        "Rendered while training, nothing stored and nothing from anywhere else: characters of the training split (one in ten "
        "combinations of species, hair colour, top and top colour is held out), sheets of three views at 384×384, pictures of "
        "128×384 to 256×256 from any side, in twelve poses before twelve backgrounds; texts from `grammar.py` with synonyms, "
        "dropped parts, filler words and nonsense words. Where no view is named, the figure is turned towards the viewer. The sheet "
        "model is also shown a view or a picture of a character and asked for its sheet, or for the same one elsewhere. In the last "
        "runs of sheets, images and decoders, details of the figure weigh more: their losses are not those of the runs before. "
        "In later ones SDXL's decoder also keeps what an eye reads in pictures: a second reader of traits, which is not shipped and judges "
        "nothing (`making/eye.py`). In the last two of images held things weigh four times as much; the second went on from the mean of the first and of what was before. "
        "Last, U-Net and text encoders learnt from pictures of their own: two such eyes, trained anew, read what is missing in them "
        "(`making/drawn.py`); .6 of that and .4 of what was before went on so for a second time, where two readers of pose, scenery and place "
        "(`making/scene_eye.py`) looked too, and from there for a third time, with the variety of each scenery counted for itself; "
        "the result is shipped whole. The probe saw renders only. The onlooker (is anybody there, how many, how much of them) saw pictures composed of rendered figures and "
        "scenery, and was trained on one processor core.",
        "",
    ]


def _training(logs: Path) -> list[str]:
    lines = ["| part | runs | steps | minutes | start | end |", "|---|---:|---:|---:|---:|---:|"]
    for part, key in CURVES.items():
        rows = read_log(logs / f"{part}.jsonl")
        points = curve(rows, key)
        if not points:
            lines.append(f"| {part} | 0 | not trained | | | |")
            continue
        minutes = sum(run[-1]["seconds"] - run[0]["seconds"] for run in runs(rows)) / 60
        lines.append(
            f"| {part} ({key}) | {len(runs(rows))} | {points[-1][0]} | {minutes:.1f} | {points[0][1]:.4g} | {points[-1][1]:.4g} |"
        )
    said = ("done", "captions", "measured")
    finals = [(part, row) for part in CURVES for row in read_log(logs / f"{part}.jsonl") if row.get("event") in said]
    lines += ["", "Measured on held-out renders at the end of each run:", ""]
    for part, row in finals:
        facts = {k: v for k, v in row.items() if k not in ("seconds", "event", "by_trait", "steps")}
        if facts:
            lines.append(f"- {part}: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
    return [*lines, "", "One command per part: `python -m charengine.embedded.making.train --help`. Seeds are fixed; the number "
            "of steps depends on the GPU, for training is boxed by wall-clock time."]  # fmt: skip


def _scores(path: Path) -> list[str]:
    if not path.is_file():
        return ["Not measured yet: run `python -m charengine.embedded.making.check --json` with this file's folder."]
    from charengine.embedded.making.check import GOALS

    scores = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"On {scores['characters']:.0f} held-out characters ({scores.get('image_characters', scores['characters']):.0f} for single "
        "images), by the probe (`python -m charengine.embedded.making.check`):",
        "", "| score | value | goal |", "|---|---:|---:|",
    ]  # fmt: skip
    for goal in GOALS:
        if goal.name in scores:
            value = scores[goal.name]
            verdict = "" if value >= goal.least else " (below)"
            lines.append(f"| {goal.meaning} | {value:.3f}{verdict} | {goal.least or '–'} |")
    traits = {k: v for k, v in scores.items() if k.endswith("_by_trait")}
    if traits:
        lines += ["", "| trait | " + " | ".join(k.removesuffix("_by_trait") for k in traits) + " |"]
        lines.append("|---|" + "---:|" * len(traits))
        lines += [
            f"| {t} | " + " | ".join(f"{v[t]:.2f}" for v in traits.values()) + " |" for t in next(iter(traits.values()))
        ]
    return lines


def main() -> int:
    """Write the card and its picture."""
    (WEIGHTS / "training").mkdir(parents=True, exist_ok=True)
    draw_curves(WEIGHTS / "training", WEIGHTS / "training" / "curves.png")
    (WEIGHTS / "MODEL_CARD.md").write_text(card(WEIGHTS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
