"""What the trigger alone brings of a character at the pick, trait by trait, and the prompt that says the rest.

The traits are those that the description names. They are read off the pictures that the pick was judged on, with a few more of
the same prompts where these are few; then four scenes are drawn twice, by the pick and by the base model told the same words.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.adapter.header import with_metadata
from charengine.adapter.merging import AdapterMerger
from charengine.adapter.parts import Parts
from charengine.config import SweepSettings
from charengine.errors import Interrupted
from charengine.language.phrases import fitting, without_repeats
from charengine.likeness.prompts import SHOWN, classify
from charengine.machine.attention import unplanned_attention
from charengine.models import Diffusion, TraitReader
from charengine.pictures import open_image, webp
from charengine.records import AdapterRecord, Ref, SweepRecord, Words, picture_name
from charengine.stages.sweep.ahead import Ahead
from charengine.stages.sweep.sample import CellInputs, draw, encode_cell_inputs
from charengine.stages.sweep.scoring_aside import coders
from charengine.stages.sweep.traits import described_traits
from charengine.store import Store
from charengine.tracking.protocol import NullTracker, Tracker

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

ENOUGH = 8  # pictures with the trigger alone; four more, where the pick had one seed, take 4 s on two cores
SAID_BELOW = 0.7  # share of the pictures: a trait shown in fewer is missing
FEWER = 0.1  # of the traits: less is no difference


@dataclass(frozen=True)
class Pick:
    """The picked adapter, and how to draw with it.

    Attributes:
        training: with the picked checkpoint.
        swept: with the pick.
        settings: of the sweep's pictures.
        seed: of the four scenes; the first of the sweep's.
    """

    training: AdapterRecord
    swept: SweepRecord
    settings: SweepSettings
    diffusion: Diffusion
    store: Store
    seed: int

    @property
    def subject(self) -> str:
        """Trigger and class noun."""
        return f"{self.training.trigger} {self.training.class_noun}"

    @contextmanager
    def merging(self) -> Iterator[Callable[[], None]]:
        """What puts the pick on the base model, until left; it is got ready while something else is drawn."""
        step = self.swept.pick.checkpoint_step
        chosen = next(one for one in self.training.checkpoints if one.step == step)
        with AdapterMerger(self.diffusion.unet(), merge=self.settings.merge) as merger:

            def ready(ref: Ref) -> dict[str, Parts]:
                layers = merger.read(self.store.get(ref))
                merger.prepare(layers)
                return layers

            with Ahead(ready, self.diffusion.device) as coming:
                coming.begin(chosen.adapter)
                yield lambda: merger.put_on(coming.get(chosen.adapter), self.swept.pick.strength)

    def encode(self, subjects: Sequence[str], templates: Sequence[str], seeds: Sequence[int]) -> CellInputs:
        """Every template about the first subject, then about the next; the text encoders are loaded once for all."""
        texts = [template.replace("{subject}", subject) for subject in subjects for template in templates]
        return encode_cell_inputs(self.diffusion, texts, seeds)

    def draw(self, inputs: CellInputs, column: int = 0) -> list[Image]:
        """A picture a prompt with one of the seeds, by the model as it stands."""
        return [row[0] for row in draw(self.diffusion, inputs, self.settings, [column])]


@unplanned_attention()
def find_words(
    pick: Pick,
    prompt: str,
    reader: TraitReader,
    *,
    tracker: Tracker = NullTracker(),
    should_stop: Callable[[], bool] = lambda: False,
) -> SweepRecord:
    """The sweep's record with what the trigger brings and what must be said; the recommended adapter says it too.

    Args:
        pick: whose pictures are read.
        prompt: the character's description.
        reader: reads traits off pictures; the diffusion model is unloaded before it works.
        tracker: gets the shares and the prompt.
        should_stop: asked before anything is drawn.

    Raises:
        Interrupted: `should_stop` said so.
    """
    traits = described_traits(prompt, pick.training.trigger, pick.training.class_noun)
    shares, pictures = _shares(pick, traits, reader, should_stop)
    said = said_of(shares, pick.subject, pick.diffusion.count_tokens)
    told = pick.diffusion.usage.known(", ".join([pick.training.class_noun, *said]))
    text = f"{pick.training.trigger} {told}" if said else pick.subject
    _go_on(should_stop)
    scenes = pick.encode((told, text), SHOWN, (pick.seed,))
    with pick.merging() as put_on:
        base = pick.draw(scenes.of(0, len(SHOWN)))
        put_on()
        drawn = pick.draw(scenes.of(len(SHOWN), 2 * len(SHOWN)))
    pick.diffusion.unload()
    read = reader.shown([*drawn, *base], traits, pick.training.class_noun) if traits else []
    reader.unload()
    words = Words(
        shares=shares,
        pictures=pictures,
        said=said,
        recommended_prompt=text,
        scenes=SHOWN,
        drawn=_kept(drawn, "scene", pick.store),
        base=_kept(base, "scene-base", pick.store),
        shown=_mean(read[: len(drawn)]),
        base_shown=_mean(read[len(drawn) :]),
    )
    log.info("recommended prompt: %s", text)
    _tell(tracker, words, pick.swept.pick.checkpoint_step)
    adapter = pick.store.put(
        with_words(pick.store.get(pick.swept.recommended_adapter), words), pick.swept.recommended_adapter.name
    )
    warned = (*pick.swept.warnings, *doubts_of(words))
    return pick.swept.model_copy(update={"words": words, "recommended_adapter": adapter, "warnings": warned})


def doubts_of(words: Words) -> tuple[str, ...]:
    """A warning where the base model, told the same, shows more of the character."""
    shown, base = words.shown, words.base_shown
    if shown is None or base is None or base - shown < FEWER:
        return ()
    return (f"the scenes show {shown:.0%} of the traits with the adapter, {base:.0%} without: look, and train on",)


def with_words(data: bytes, words: Words) -> bytes:
    """An adapter file whose metadata says the recommended prompt and the traits that the trigger brings."""
    return with_metadata(
        data,
        {
            "charengine.recommended_prompt": words.recommended_prompt,
            "charengine.traits": json.dumps(words.shares),
            "modelspec.usage_hint": f"begin the prompt with {words.recommended_prompt!r}",
        },
    )


def _shares(
    pick: Pick, traits: Sequence[str], reader: TraitReader, should_stop: Callable[[], bool]
) -> tuple[dict[str, float], int]:
    """`shares_of` the pick's pictures, with a few more where these are few; and how many were read."""
    images = [open_image(pick.store.get(ref)) for ref in _judged(pick.swept)]
    if not traits:
        return {}, len(images)
    templates = [one for one in pick.swept.prompts if classify(one).kind != "class"]
    if templates and len(images) < ENOUGH:
        _go_on(should_stop)
        first, rounds = max(pick.swept.seeds) + 1, -(-(ENOUGH - len(images)) // len(templates))
        more = pick.encode((pick.subject,), templates, range(first, first + rounds))
        with pick.merging() as put_on:
            put_on()
            for column in range(rounds):
                images += pick.draw(more.of(0, min(len(templates), ENOUGH - len(images))), column)
    pick.diffusion.unload()
    read = reader.shown(images, traits, pick.training.class_noun)
    reader.step_aside()
    return shares_of(read, traits), len(images)


def shares_of(read: Sequence[Sequence[bool | None]], traits: Sequence[str]) -> dict[str, float]:
    """Of each trait that more than half of the pictures can tell, the share of these that show it.

    Args:
        read: a row a picture, as `TraitReader.shown` gives them.
        traits: their columns.
    """
    shares = {}
    for i, words in enumerate(traits):
        told = [row[i] for row in read if row[i] is not None]
        # hair under a hood: said, the model takes the hood off (lab notes, 2026-11-29)
        if 2 * len(told) > len(read):
            shares[words] = sum(map(bool, told)) / len(told)
    return shares


def _judged(swept: SweepRecord) -> list[Ref]:
    """The pick's own pictures that say its trigger."""
    rows = [row for row, template in enumerate(swept.prompts) if classify(template).kind != "class"]
    names = [
        picture_name(swept.pick.checkpoint_step, swept.pick.strength, row, seed) for seed in swept.seeds for row in rows
    ]
    return [swept.images[name] for name in names if name in swept.images]


def said_of(shares: Mapping[str, float], subject: str, count_tokens: Callable[[str], int]) -> tuple[str, ...]:
    """What to say beside the trigger: nothing where every trait is shown often enough, else all of them, once, in the description's order.

    Words for some traits alone weaken the others: with all of them said, more of the character is shown (lab notes, 2026-11-30).
    Where CLIP has no room for all, those that are shown most are left out.
    """
    if all(share >= SAID_BELOW for share in shares.values()):
        return ()
    once = without_repeats(tuple(shares))
    chosen = fitting(sorted(once, key=lambda one: shares[one]), subject, count_tokens)
    return tuple(words for words in once if words in chosen)


def _kept(images: Sequence[Image], name: str, store: Store) -> tuple[Ref, ...]:
    with coders() as pool:
        return tuple(store.put(data, f"{name}-{number}.webp") for number, data in enumerate(pool.map(webp, images), 1))


def _mean(rows: Sequence[Sequence[bool | None]]) -> float | None:
    """Share of yes among what could be told; None when nothing could."""
    known = [answer for row in rows for answer in row if answer is not None]
    return sum(known) / len(known) if known else None


def _tell(tracker: Tracker, words: Words, step: int) -> None:
    """Shares as metrics of the sweep's run, the prompt as its tag."""
    shares = {f"trait/{re.sub(r'[^a-z0-9 -]', '', name)}": share for name, share in words.shares.items()}
    scenes = {"scenes/traits": words.shown, "scenes/traits_base": words.base_shown}
    tracker.log_metrics({**shares, **{name: value for name, value in scenes.items() if value is not None}}, step=step)
    tracker.set_tags({"recommended_prompt": words.recommended_prompt})


def _go_on(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Interrupted("sweep stopped before the recommended prompt was found")
