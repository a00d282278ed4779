"""From one picture to a sheet: traits and views by the shipped probe, for kinds of picture and for what is said beside it.

python benchmarks/reference_sheet.py                    # 6 held-out characters: 96 sheets, about an hour on one core
python benchmarks/reference_sheet.py --characters 40 --device cuda

Every sheet is the first that is drawn: no gate, no second candidate. A drawing that is there already (`--drawings`) is not drawn again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from charengine.config import Character
from charengine.embedded import grammar, probe, tags
from charengine.embedded.shape import PICTURE_SIZE, VIEW_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES, Traits, from_indices, sample_indices
from charengine.embedded.world import render
from charengine.figures.template import template
from charengine.models import Models, SheetEditor, load
from charengine.pictures import open_image, png
from charengine.profiles.loading import load_profile
from charengine.stages.sheet.draw import draw_sheet
from charengine.stages.sheet.prompt import full_prompt
from charengine.stages.sheet.reference import ReferenceRecord, as_taught, look_at
from charengine.store import Store

KINDS = ("front view on white", "three-quarter view on white", "pose on white", "pose in a scene")
WAYS = ("described", "sentence", "picture alone", "words alone")
MEANING = {
    "described": "no sentence: the captioner's description and the picture",
    "sentence": "a sentence of the user that leaves much out, and the picture",
    "picture alone": "no word but the kind of being",
    "words alone": "the captioner's description, and no picture",
}
SEED = 31  # of the characters
STANDING, WHITE = POSES.index("standing"), BACKGROUNDS.index("plain white background")
GOALS = {"traits": 0.85, "views": 0.95}


@dataclass(frozen=True)
class Drawn:
    """One sheet, from which picture and how, and the prompt that it was drawn with."""

    sheet: Image.Image
    prompt: str
    seconds: float


class KeptDrawings:
    """The editor, which takes a drawing that it made before from a folder."""

    prompt_style = "plain"
    pictures = 1

    def __init__(self, editor: SheetEditor, folder: Path) -> None:
        self._editor, self._folder, self.fingerprint = editor, folder, editor.fingerprint
        self.unknown_words, self.unload = editor.unknown_words, editor.unload

    def draw(self, base: Image.Image, prompt: str, *, reference: Image.Image | None = None, **how: Any) -> Image.Image:
        """The drawing, new or as it was."""
        seen = [hashlib.sha256(image.tobytes()).hexdigest() for image in (base, reference) if image is not None]
        key = hashlib.sha256(json.dumps([self.fingerprint, prompt, seen, how], sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{key[:24]}.png"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._editor.draw(base, prompt, reference=reference, **how).save(path)
        return Image.open(path).convert("RGB")


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--drawings", type=Path, default=None, help="folder of drawings, and of the overview")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reference_sheet.json"))
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(chosen.characters, chosen.device, Store(folder), chosen.drawings or Path(folder) / "drawings")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def measure(count: int, device: str, store: Store, drawings: Path) -> dict[str, Any]:
    """Scores by kind of picture and way."""
    profile = load_profile("embedded", [f"models.device={device}", "sheet.gate=false"])
    models, judge = load(profile), probe.load_judge(device=device)
    editor = KeptDrawings(models.editor, drawings)
    indices = sample_indices(count, torch.Generator().manual_seed(SEED), "heldout")
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        pictures = [_picture(indices[i : i + 1], kind, i) for i in range(count)]
        seen = [_looked_at(picture, models, store) for picture in pictures]
        for way in WAYS:
            for i, traits in enumerate(from_indices(indices)):
                drawn = _drawn(way, seen[i], traits, i, profile.sheet, editor, store)
                row = {"kind": kind, "way": way, "character": i, **_scores(judge, drawn.sheet, indices[i : i + 1])}
                rows.append(row | {"prompt": drawn.prompt, "seconds": round(drawn.seconds, 1)})
                _overview(
                    pictures[i],
                    drawn.sheet,
                    f"{kind}, {way}, {row['traits']:.2f}",
                    drawings / f"seen-{kind}-{way}-{i}.png",
                )
                print(
                    json.dumps({key: row[key] for key in ("kind", "way", "character", "traits", "views")}), flush=True
                )
        for record, traits in zip(seen, from_indices(indices), strict=True):
            rows.append({"kind": kind, "way": "description", **_told(record, traits)})
    return {
        "characters": count,
        "split": "heldout",
        "goals": GOALS,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {device}",
        "editor": models.editor.fingerprint[:16],
        "ways": MEANING,
        "table": {kind: {way: _mean(rows, kind, way) for way in (*WAYS, "description")} for kind in KINDS},
        "sheets": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Mean traits and right views, a line a kind of picture."""
    lines = [f"{'':30}" + "".join(f"{way:>22}" for way in WAYS) + f"{'description F1':>18}"]
    for kind, found in result["table"].items():
        cells = [f"{found[way]['traits']:.3f} / {found[way]['views']:.2f}" for way in WAYS]
        lines.append(f"{kind:30}" + "".join(f"{cell:>22}" for cell in cells) + f"{found['description']['f1']:18.3f}")
    return "\n".join(lines)


def _picture(row: torch.Tensor, kind: str, i: int) -> Image.Image:
    """One picture of the character; its pose, place and side come from its number."""
    rng = random.Random(f"{kind} {i}")
    posed, square = kind.startswith("pose"), kind.startswith("pose")
    pose = rng.choice([k for k in range(len(POSES)) if k != STANDING]) if posed else STANDING
    scene = rng.choice([k for k in range(len(BACKGROUNDS)) if k != WHITE]) if kind.endswith("scene") else WHITE
    yaw = {"front view on white": 0.0, "three-quarter view on white": 0.75}.get(kind, rng.uniform(-0.5, 0.7))
    drawn = render(
        row, yaw=torch.tensor([yaw]), pose=torch.tensor([pose]), background=torch.tensor([scene]),
        size=PICTURE_SIZE if square else VIEW_SIZE, framing=0.95,
    )  # fmt: skip
    return probe.to_images(drawn.image)[0]


def _looked_at(picture: Image.Image, models: Models, store: Store) -> ReferenceRecord:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.png"
        path.write_bytes(png(picture))
        return look_at(path, models.onlooker, store)


def _drawn(
    way: str, seen: ReferenceRecord, traits: Traits, i: int, settings: Any, editor: KeptDrawings, store: Store
) -> Drawn:
    """The sheet as the stage draws it; "picture alone", which the stage never does, as the editor does."""
    started = time.monotonic()
    if way == "picture alone":
        prompt = full_prompt("", traits.species, editor, pictured=True).rstrip(": ,")
        sheet = editor.draw(
            template(settings.width, settings.height), prompt, reference=as_taught(seen, store),
            negative_prompt=settings.negative_prompt, seed=SEED + i, steps=settings.steps, guidance=settings.guidance,
            conditioning=settings.conditioning, redraw=None,
        )  # fmt: skip
        return Drawn(sheet, prompt, time.monotonic() - started)
    said = seen.description
    if way == "sentence":
        said = grammar.describe(traits, rng=random.Random(f"sentence {i}"), style="prompt", keep=0.4)
    noun = grammar.parse_prompt(said).get("species", seen.class_noun)
    who = Character(name="held out", prompt=said, class_noun=noun, trigger="heldoutix", seed=SEED + i)
    record = draw_sheet(who, settings, editor, store, reference=None if way == "words alone" else seen)
    return Drawn(open_image(store.get(record.image)), record.prompt, time.monotonic() - started)


def _scores(judge: probe.Probe, sheet: Image.Image, row: torch.Tensor) -> dict[str, Any]:
    """Share of the visible traits, of right views, and of side-bound items on their side (None without any)."""
    from charengine.embedded.making.check import without_rules

    reading = probe.score_sheets(judge, without_rules(probe.to_tensor([sheet])))
    truth, mask = row[:, None].expand(-1, 3, -1), probe.sheet_mask(row)
    items = probe.side_item_accuracy(reading.traits, truth, mask)
    wrong = [name for name, share in probe.trait_accuracies(reading.traits, truth, mask).items() if share < 0.5]
    return {
        "traits": round(probe.trait_accuracy(reading.traits, truth, mask), 4),
        "views": round(probe.view_accuracy(reading.views), 4),
        "items": None if items != items else round(items, 4),
        "wrong": wrong,
    }


def _told(record: ReferenceRecord, traits: Traits) -> dict[str, Any]:
    """How right the description is: F1 over the stated traits; a build that is not named is average."""
    told = {"build": "average", **grammar.parse_prompt(record.description)}
    truth = tags.canonical_dict(traits, view=None)
    hits = sum(truth.get(name) == value for name, value in told.items())
    return {
        "f1": round(2 * hits / (len(told) + len(truth)), 4),
        "description": record.description,
        "noun": record.class_noun,
    }


def _mean(rows: list[dict[str, Any]], kind: str, way: str) -> dict[str, float]:
    chosen = [row for row in rows if row["kind"] == kind and row["way"] == way]
    return dict(_means(chosen))


def _means(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for name in ("traits", "views", "items", "f1"):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            yield name, round(statistics.fmean(values), 4)
        if name == "traits" and len(values) > 1:
            yield "traits_error", round(statistics.stdev(values) / len(values) ** 0.5, 4)


def _overview(picture: Image.Image, sheet: Image.Image, said: str, path: Path) -> None:
    """Reference and sheet side by side, for people."""
    page = Image.new("RGB", (384 * 2, 404), "white")
    small = picture.copy()
    small.thumbnail((384, 384))
    page.paste(small, ((384 - small.width) // 2, 20))
    page.paste(sheet, (384, 20))
    ImageDraw.Draw(page).text((4, 4), said, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


if __name__ == "__main__":
    main()
