"""How the benchmark's adapters are made: the product's way, too short, too long, with wrong views, with more of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image as pil
from PIL.Image import Image

from charengine.adapter.merging import AdapterMerger
from charengine.config import SweepSettings
from charengine.embedded import world
from charengine.embedded.shape import PICTURE_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES, VIEWS
from charengine.language.phrases import trait_phrases
from charengine.language.traits import VIEW_TAGS
from charengine.likeness.prompts import FULL
from charengine.models import Diffusion, Models
from charengine.pictures import png
from charengine.records import AdapterRecord, ExtraView, ViewName, ViewsRecord
from charengine.stages.sweep.sample import draw, encode_cell_inputs
from charengine.store import Store


@dataclass(frozen=True)
class Recipe:
    """How an adapter is made.

    Attributes:
        settings: beside the profile's own.
        views: what becomes of the sheet's views before they are trained on.
        rendered: true pictures of the character among them, which no pipeline has: what more views could bring at best.
        redrawn: pictures by a first adapter told the description too, the best of a few each; a second adapter learns from both.
    """

    settings: tuple[str, ...] = ()
    views: Callable[[ViewsRecord], ViewsRecord] = lambda views: views
    rendered: int = 0
    redrawn: int = 0


def front_alone(views: ViewsRecord) -> ViewsRecord:
    """The front view and nothing else."""
    return views.model_copy(update={"views": tuple(view for view in views.views if view.view == "front")})


def front_for_side(views: ViewsRecord) -> ViewsRecord:
    """The front view in the side view's place too, as when a sheet shows it twice."""
    front = next(view for view in views.views if view.view == "front")
    return views.model_copy(
        update={
            "views": tuple(
                front.model_copy(update={"view": "side"}) if view.view == "side" else view for view in views.views
            )
        }
    )


RECIPES = {
    "default": Recipe(),
    "under": Recipe(("train.steps=60",)),
    "overfit": Recipe(("train.distill=0", "train.steps=1200", "train.learning_rate=0.003")),
    "one-view": Recipe(views=front_alone),
    "wrong-view": Recipe(views=front_for_side),
    "views": Recipe(("train.distill=0", "train.steps=300", "train.learning_rate=0.001")),  # no lessons
    "no-emphasis": Recipe(("train.distill_emphasis=0",)),
    "expanded": Recipe(("expand.count=8",)),
    "rendered": Recipe(rendered=12),
    "redrawn": Recipe(redrawn=12),
}
TABLED = ("default", "under", "overfit", "one-view", "wrong-view")  # of the table; the others say what may be won


UNSEEN_POSES = [place for place, pose in enumerate(POSES) if not any(pose in template for template in FULL)]
UNSEEN_SCENES = [place for place, scene in enumerate(BACKGROUNDS) if not any(scene in template for template in FULL)]
TRIES = 4
SHOWN = 0.8  # of the traits that can be told


def redrawn_views(
    training: AdapterRecord, text: str, count: int, seed: int, models: Models, settings: SweepSettings, store: Store
) -> tuple[ExtraView, ...]:
    """Pictures by an adapter that is told the description too, of poses and scenes that nobody judges; those that show most."""
    assert models.reader is not None
    rng, noun = random.Random(seed), training.class_noun
    traits = trait_phrases(text, noun)
    subject = ", ".join([f"{training.trigger} {noun}", *traits])
    views = [rng.choices(VIEWS, (4, 1, 1))[0] for _ in range(count)]
    prompts = [
        ", ".join(
            [
                subject,
                VIEW_TAGS[view][0] if view != "front" or rng.random() < 0.5 else "facing the viewer",
                POSES[rng.choice(UNSEEN_POSES)],
                "full body",
                BACKGROUNDS[rng.choice(UNSEEN_SCENES)],
            ]
        )
        for view in views
    ]
    with last_checkpoint(training, models.diffusion, 1.0, store):
        rows = draw(
            models.diffusion, encode_cell_inputs(models.diffusion, prompts, range(7000, 7000 + TRIES)), settings
        )
    found = []
    for number, (view, images) in enumerate(zip(views, rows, strict=True)):
        read = models.reader.shown(images, traits, noun)
        shares = [
            sum(map(bool, told)) / max(len(told), 1)
            for told in ([one for one in row if one is not None] for row in read)
        ]
        best = max(range(len(images)), key=lambda i: (shares[i], len([one for one in read[i] if one is not None])))
        if shares[best] >= SHOWN:
            found.append(
                extra_view(
                    f"pose-{number + 1}", view, images[best], pil.new("L", images[best].size, 255), shares[best], store
                )
            )
    return tuple(found)


@contextmanager
def last_checkpoint(training: AdapterRecord, diffusion: Diffusion, strength: float, store: Store) -> Iterator[None]:
    """The base model with the last checkpoint on it until left."""
    with AdapterMerger(diffusion.unet()) as merger:
        merger.put_on(merger.read(store.get(training.checkpoints[-1].adapter)), strength)
        yield


def extra_view(name: str, view: ViewName, image: Image, alpha: Image, identity: float, store: Store) -> ExtraView:
    """A picture in a scene as the expand stage would hand it on."""
    return ExtraView(
        view=name, kind="pose", instruction="", tags=(*VIEW_TAGS[view], "full body"), seed=0, fate="trained",
        identity=identity, threshold=0.0, copying=0.0, image=store.put(png(image), f"{name}.png"),
        alpha=store.put(png(alpha), f"{name}_mask.png"), width=image.width, height=image.height, background=None,
    )  # fmt: skip


def rendered_views(wanted: torch.Tensor, count: int, seed: int, store: Store) -> tuple[ExtraView, ...]:
    """True pictures of a character, posed, in scenes, most of them turned towards the viewer; those of the sweep are left out."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        view = rng.choices(VIEWS, (4, 1, 1))[0]
        drawn = world.render(
            wanted, yaw=torch.tensor([world.VIEW_YAW[view] + rng.gauss(0, 0.2)]), pose=torch.tensor([rng.choice(UNSEEN_POSES)]),
            background=torch.tensor([rng.choice(UNSEEN_SCENES)]), size=PICTURE_SIZE, framing=torch.tensor([0.9]),
        )  # fmt: skip
        image, alpha = (
            pil.fromarray((part[0] * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy())
            for part in (drawn.image, drawn.alpha)
        )
        found.append(extra_view(f"pose-{i + 1}", view, image, alpha, 1.0, store))
    return tuple(found)
