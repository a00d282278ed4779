"""What drawing in fewer or cheaper steps costs, on the embedded family and on characters that it was never trained on.

    python benchmarks/shortcuts.py sheets --device cuda           # 48 sheets a way: gate, traits, views, difference; two minutes
    python benchmarks/shortcuts.py sweeps --device cuda           # the order of a sweep's cells against 30 steps; a minute a character
    python benchmarks/shortcuts.py sweeps --device cuda --jobs 8  # characters at once, each by a process
    python benchmarks/shortcuts.py sheets --count 2               # on a CPU

A way is a shortcut's settings. Of sheets the shipped probe reads traits and views, and the gate judges. Of sweeps every cell (15 of
an adapter trained as the profile says) is drawn by every way on the same noise and scored as the engine scores it; the order of
the cells is held against that of the slow way, and so is the cell that a way would pick. Other noise says how much of that is chance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from charengine.adapter.merging import AdapterMerger
from charengine.config import Character, SweepSettings
from charengine.embedded import grammar, probe
from charengine.embedded.making.check import without_rules
from charengine.embedded.traits import from_indices, sample_indices
from charengine.figures.template import template
from charengine.likeness import metrics
from charengine.likeness.prompts import sweep_prompts
from charengine.likeness.scoring import References, score_cell
from charengine.models import load
from charengine.pictures import open_image
from charengine.profiles.loading import load_profile
from charengine.run.workspace import complete
from charengine.stages.caption import caption_views
from charengine.stages.crop import crop_views
from charengine.stages.sheet.draw import draw_sheet
from charengine.stages.sheet.judge import judge_sheet
from charengine.stages.sheet.prompt import full_prompt
from charengine.stages.sweep.sample import draw, encode_cell_inputs
from charengine.stages.sweep.session import spread
from charengine.stages.sweep.summary import summarise
from charengine.stages.sweep.traits import TraitReading, described_traits
from charengine.stages.train.loop import train_adapter
from charengine.store import Store

SEED = 31
SHEETS: dict[
    str, tuple[int, float]
] = {  # steps, and the noise above which there is guidance; the first is the slow way
    "16 steps, guided in all": (16, 0.0),
    "12 steps, guided in all": (12, 0.0),
    "10 steps, guided in all": (10, 0.0),
    "8 steps, guided in all": (8, 0.0),
    "6 steps, guided in all": (6, 0.0),
    "16 steps, guided above 0.7": (16, 0.7),
    "12 steps, guided above 0.7": (12, 0.7),
    "10 steps, guided above 0.5": (10, 0.5),
    "8 steps, guided above 0.7": (8, 0.7),
    "16 steps, not guided": (16, 1.0),
}
INTERVAL = {"guided_above": 0.28, "guided_below": 5.42}  # of SDXL, by Kynkäänniemi et al. 2404.07724
# settings of a sweep; the first is the slow way, the second shows what chance does
SWEEPS: dict[str, dict[str, Any]] = {
    "30 steps": {"steps": 30},
    "30 steps, other noise": {"steps": 30},
    "20 steps": {"steps": 20},
    "12 steps": {"steps": 12},
    "16 steps, dpm++": {"steps": 16, "solver": "dpm++"},
    "12 steps, dpm++": {"steps": 12, "solver": "dpm++"},
    "10 steps, dpm++": {"steps": 10, "solver": "dpm++"},
    "8 steps, dpm++": {"steps": 8, "solver": "dpm++"},
    "20 steps, in an interval": {"steps": 20, **INTERVAL},
    "10 steps, dpm++, in an interval": {"steps": 10, "solver": "dpm++", **INTERVAL},
}
OTHER_NOISE = 1000  # added to the seeds
_MODELS: list[Any] = []  # profile, models and judge of this process


def main() -> None:
    """Print a table, write the JSON after every character."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sheets", "sweeps"))
    parser.add_argument("--count", type=int, default=0, help="characters; 48 and 6 by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="no further character is begun afterwards")
    parser.add_argument("--ways", nargs="*", help="only these; the first is held against")
    parser.add_argument("--seeds", type=int, default=2, help="of every prompt in every cell")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the profile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    table = sheets_table if chosen.what == "sheets" else sweeps_table
    _leave_out(chosen)
    count, started = chosen.count or {"sheets": 48, "sweeps": 6}[chosen.what], time.monotonic()
    rows: list[dict[str, Any]] = []
    chosen.out.mkdir(parents=True, exist_ok=True)
    for done, found_rows in enumerate(_each(range(count), chosen, started), 1):
        rows += found_rows
        found = {"characters": done, "torch": torch.__version__, "device": chosen.device, "table": table(rows)}
        (chosen.out / f"shortcuts_{chosen.what}.json").write_text(json.dumps(found | {"rows": rows}, indent=1) + "\n")
        print(f"--- {done} characters, {time.monotonic() - started:.0f} s", flush=True)
        for name, values in found["table"].items():
            print(f"{name:34}" + "".join(f"{key} {value:<9}" for key, value in values.items()), flush=True)


def _each(indices: range, chosen: argparse.Namespace, started: float) -> Iterator[list[dict[str, Any]]]:
    """The rows of each character, in the order of being done; no further one is begun when time is up."""
    left = (index for index in indices if time.monotonic() - started < 60 * chosen.minutes)
    if chosen.jobs == 1:
        yield from (_measured(index, chosen) for index in left)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=context, initializer=_leave_out, initargs=(chosen,)) as pool:
        waiting = {pool.submit(_measured, index, chosen) for index in itertools.islice(left, chosen.jobs)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(_measured, index, chosen) for index in itertools.islice(left, len(done))}
            yield from (one.result() for one in done)


def _measured(index: int, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """One character; models are loaded once a process."""
    if not _MODELS:
        if chosen.device == "cpu":
            torch.set_num_threads(1)
        profile = load_profile("embedded", [f"models.device={chosen.device}", *chosen.set])
        _MODELS.extend((profile, load(profile), probe.load_judge(device=chosen.device)))
    measure: Callable[..., list[dict[str, Any]]] = sheets_of if chosen.what == "sheets" else sweeps_of
    return measure(index, *_MODELS, chosen.seeds)


def _leave_out(chosen: argparse.Namespace) -> None:
    """The ways that nobody asked for."""
    ways: dict[str, Any] = SHEETS if chosen.what == "sheets" else SWEEPS
    for name in [name for name in ways if chosen.ways and name not in chosen.ways]:
        del ways[name]


# --- sheets -----------------------------------------------------------------------------------------------------------


def sheets_of(index: int, profile: Any, models: Any, judge: probe.Probe, _seeds: int) -> list[dict[str, Any]]:
    """A character's sheet by every way: no second candidate."""
    wanted = _character(index)
    traits, settings = from_indices(wanted)[0], profile.sheet
    described = grammar.describe(traits, rng=random.Random(f"sheet {index}"), style="prompt", keep=1.0)
    prompt = full_prompt(described, traits.species, models.editor, pictured=False)
    rows: list[dict[str, Any]] = []
    slow: np.ndarray | None = None
    for name, (steps, guided_above) in SHEETS.items():
        started = time.monotonic()
        sheet = models.editor.draw(
            template(settings.width, settings.height), prompt, negative_prompt=settings.negative_prompt, seed=SEED + index,
            steps=steps, guidance=settings.guidance, guided_above=guided_above, conditioning=settings.conditioning,
        )  # fmt: skip
        seconds, pixels = time.monotonic() - started, np.asarray(sheet, dtype=float)
        slow = pixels if slow is None else slow
        reading = probe.score_sheets(judge, without_rules(probe.to_tensor([sheet])))
        truth, mask = wanted[:, None].expand(-1, 3, -1), probe.sheet_mask(wanted)
        verdict, items = judge_sheet(sheet), probe.side_item_accuracy(reading.traits, truth, mask)
        rows.append(
            {
                "way": name,
                "character": index,
                "traits": probe.trait_accuracy(reading.traits, truth, mask),
                "views": probe.view_accuracy(reading.views),
                "items": None if items != items else items,
                "gate": float(verdict.accepted),
                "score": verdict.score,
                "off": float(np.abs(pixels - slow).mean()),
                "most_off": float(np.abs(pixels - slow).max()),
                "seconds": seconds,
            }
        )
    return rows


def sheets_table(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over characters, a line a way; the standard error of traits lost against the slow way."""
    slow = {row["character"]: row["traits"] for row in rows if row["way"] == next(iter(SHEETS))}
    found = {}
    for name in SHEETS:
        own = [row for row in rows if row["way"] == name]
        keys = ("traits", "views", "items", "gate", "score", "off", "most_off", "seconds")
        found[name] = {key: round(_mean([row[key] for row in own]), 4) for key in keys}
        lost = [slow[row["character"]] - row["traits"] for row in own]
        found[name] |= {"lost": round(_mean(lost), 4), "lost_error": _error(lost)}
    return found


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweeps_of(index: int, profile: Any, models: Any, _judge: probe.Probe, seeds: int) -> list[dict[str, Any]]:
    """An adapter of one character, every cell of its sweep drawn and scored by every way."""
    text = grammar.describe(from_indices(_character(index))[0], rng=random.Random(index), style="prompt")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        character = complete(Character(name=f"character {index}", prompt=text, seed=42 + index), models)
        sheet = draw_sheet(character, profile.sheet, models.editor, store, captioner=models.captioner)
        views = crop_views(sheet, profile.crop, store)
        dataset = caption_views(views, character, profile.caption, models.captioner, store)
        state = Path(folder) / "state"
        training = train_adapter(
            dataset, profile.train, models.diffusion, store, seed=character.seed, state_dir=state, description=text
        )
        references = References(views, models.embedder, store)
        reading = TraitReading(
            models.reader, described_traits(text, training.trigger, training.class_noun), training.class_noun
        )
        shown = reading.of_views([open_image(store.get(view.image)) for view in views.views])
        cells = [
            (step.step, strength) for step in spread(training.checkpoints, 3) for strength in profile.sweep.strengths
        ]
        rows, slow = [], None
        for name, changes in SWEEPS.items():
            settings = profile.sweep.model_copy(update=changes)
            first = 42 + index + (OTHER_NOISE if "other noise" in name else 0)
            started = time.monotonic()
            drawn = _every_cell(training, cells, settings, models, store, range(first, first + seeds))
            seconds = time.monotonic() - started
            scores = _scores(drawn, cells, settings, training, references, reading, shown)
            pixels = np.stack([np.asarray(image, dtype=float) for rows_ in drawn for row in rows_ for image in row])
            slow = slow or (scores, pixels)
            rows.append(_compared(name, index, cells, scores, pixels, *slow) | {"seconds": seconds})
    return rows


def _every_cell(
    training: Any, cells: list[tuple[int, float]], settings: SweepSettings, models: Any, store: Store, seeds: range
) -> list[list[list[Image.Image]]]:
    """Pictures of strength 0 and then of every cell."""
    texts = [prompt.to_draw(training.trigger, training.class_noun) for prompt in sweep_prompts(settings)]
    inputs = encode_cell_inputs(models.diffusion, texts, tuple(seeds))
    drawn = [draw(models.diffusion, inputs, settings)]
    checkpoints = {one.step: one for one in training.checkpoints}
    with AdapterMerger(models.diffusion.unet()) as merger:
        for step, strength in cells:
            merger.put_on(merger.read(store.get(checkpoints[step].adapter)), strength)
            drawn.append(draw(models.diffusion, inputs, settings))
    return drawn


def _scores(
    drawn: list[list[list[Image.Image]]], cells: list[tuple[int, float]], settings: SweepSettings, training: Any,
    references: References, reading: TraitReading, shown: float | None,
) -> list[float]:  # fmt: skip
    """The engine's score of every cell."""
    prompts = sweep_prompts(settings)
    found = [
        replace(score_cell(images, prompts, training.class_noun, references), shown=reading.of_cell(images, prompts))
        for images in drawn
    ]
    scale = metrics.Scale(found[0], references.ceiling(), shown)
    return [summarise(own, scale, *cell).score for own, cell in zip(found[1:], cells, strict=True)]


def _compared(
    name: str, index: int, cells: list[tuple[int, float]], scores: list[float], pixels: np.ndarray,
    slow: list[float], slow_pixels: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """A way's cells against the slow way's."""
    from scipy.stats import spearmanr

    picked = int(np.argmax(scores))
    return {
        "way": name,
        "character": index,
        "rank": float(spearmanr(scores, slow).statistic),
        "lost": max(slow) - slow[picked],
        "score_off": float(np.abs(np.array(scores) - np.array(slow)).mean()),
        "score": max(scores),
        "off": float(np.abs(pixels - slow_pixels).mean()),
        "picked": list(cells[picked]),
        "scores": [round(score, 5) for score in scores],
    }


def sweeps_table(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over characters, a line a way."""
    found = {}
    for name in SWEEPS:
        own = [row for row in rows if row["way"] == name]
        keys = ("rank", "lost", "score_off", "score", "off", "seconds")
        found[name] = {key: round(_mean([row[key] for row in own]), 4) for key in keys}
        found[name]["least_rank"] = round(min(row["rank"] for row in own), 4)
    return found


def _character(index: int) -> torch.Tensor:
    return sample_indices(index + 1, torch.Generator().manual_seed(SEED), "heldout")[index:]


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else float("nan")


def _error(values: list[float]) -> float:
    return round(statistics.stdev(values) / len(values) ** 0.5, 4) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
