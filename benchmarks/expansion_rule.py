"""How well the rule of `charengine/stages/expand/` tells the character from others: rendered truth, the embedded embedder.

python benchmarks/expansion_rule.py                   # 12 characters that no model was trained on: minutes on one core
python benchmarks/expansion_rule.py --characters 40

Prints which share of correct pictures is kept, and of wrong ones; writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from charengine.embedded.traits import BACKGROUNDS, COLUMN, POSES, VIEWS, sample_indices
from charengine.embedded.world import VIEW_YAW, render
from charengine.models import Embedder, load
from charengine.pictures import png
from charengine.profiles.loading import load_profile
from charengine.records import ViewRecord, ViewsRecord
from charengine.stages.expand.identity_rule import IdentityRule
from charengine.stages.expand.requests import CLOSE_UP, FULL_BODY
from charengine.store import Store

SQUARE, TALL = (192, 192), (128, 384)
CLOSE = 3.2  # zoom at which head and shoulders fill the picture
QUARTERS = {"three-quarter": math.pi / 4, "three-quarter from behind": 3 * math.pi / 4}
WHITE = (255, 255, 255)


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expansion_rule.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.characters, Store(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"characters": arguments.characters, "torch": torch.__version__, "pictures": result}
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    for name, row in result.items():
        print(
            f"{name:<32} {row['kept']:>4} of {row['pictures']:<4} identity {row['identity']:.3f}, at least {row['least']:.3f}"
        )


def measure(count: int, store: Store) -> dict[str, dict[str, float]]:
    """What is kept of each sort of picture, with mean identity and mean threshold."""
    characters = sample_indices(count, torch.Generator().manual_seed(5), "heldout")
    embedder = load(load_profile("embedded")).embedder
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i in range(count):
        rule = rendered_rule(characters[i], embedder, store)
        least = {framing: rule.least(framing) for framing in (FULL_BODY, CLOSE_UP)}
        for name, framing, image in pictures(characters, i):
            found[name].append((rule.identity(image, framing), least[framing]))
    return {
        name: {
            "kept": sum(identity >= least for identity, least in rows),
            "pictures": len(rows),
            "identity": round(sum(identity for identity, _ in rows) / len(rows), 4),
            "least": round(sum(least for _, least in rows) / len(rows), 4),
        }
        for name, rows in found.items()
    }


def pictures(characters: torch.Tensor, i: int) -> Iterator[tuple[str, str, Image.Image]]:
    """(sort, framing, picture) of the character, of itself with one colour changed, and of three others."""
    own = characters[i]
    for name, yaw in QUARTERS.items():
        yield name, FULL_BODY, picture(own, yaw)[0]
    for pose in range(1, len(POSES)):
        yield "another pose", FULL_BODY, picture(own, 0.0, pose=pose)[0]
    for scene in range(1, len(BACKGROUNDS)):
        yield "before a scene", FULL_BODY, picture(own, 0.0, scene=scene)[0]
    for yaw in (0.0, math.pi / 4):
        yield "close-up", CLOSE_UP, picture(own, yaw, zoom=CLOSE)[0]
    for shift in (2, 4, 6):
        altered = own.clone()
        altered[COLUMN["top_colour"]] = (altered[COLUMN["top_colour"]] + shift) % 10
        yield "WRONG: one garment recoloured", FULL_BODY, picture(altered, 0.0)[0]
    for k in (1, 2, 3):
        other = characters[(i + k) % len(characters)]
        yield "WRONG: somebody else", FULL_BODY, picture(other, 0.0)[0]
        yield "WRONG: somebody else, turned", FULL_BODY, picture(other, math.pi / 4)[0]
        yield "WRONG: somebody else, close-up", CLOSE_UP, picture(other, 0.0, zoom=CLOSE)[0]


def rendered_rule(character: torch.Tensor, embedder: Embedder, store: Store) -> IdentityRule:
    """What the rule measures with, from a perfect sheet."""
    records = []
    for view in VIEWS:
        image, alpha = picture(character, VIEW_YAW[view], size=TALL)
        refs = store.put(png(image), f"{view}.png"), store.put(png(alpha), f"{view}_mask.png")
        fields = {"view": view, "image": refs[0], "alpha": refs[1], "width": TALL[0], "height": TALL[1]}
        records.append(ViewRecord.model_validate({**fields, "source_box": (0, 0, *TALL)}))
    views = ViewsRecord(views=tuple(records), background=WHITE, overlay=records[0].image)
    return IdentityRule(views, embedder, store)


def picture(
    character: torch.Tensor,
    yaw: float,
    *,
    size: tuple[int, int] = SQUARE,
    pose: int = 0,
    scene: int = 0,
    zoom: float = 1.0,
) -> tuple[Image.Image, Image.Image]:
    """The character as the embedded world renders it, and its mask."""
    made = render(
        character[None],
        yaw=torch.tensor([yaw]),
        pose=torch.tensor([pose]),
        background=torch.tensor([scene]),
        size=size,
        framing=zoom,
    )
    pixels = (made.image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(pixels), Image.fromarray((made.alpha[0, 0] * 255).round().byte().numpy())


if __name__ == "__main__":
    main()
