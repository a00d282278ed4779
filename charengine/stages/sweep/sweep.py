"""The sweep: pictures of checkpoints x strengths, paired by prompt and seed, scored against strength 0, and the pick.

Which cells are drawn is decided round by round (`race`), or all of them are (`sweep.design=grid`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from charengine.adapter.network import examine_adapter
from charengine.config import SweepSettings
from charengine.errors import Interrupted, StageFailed
from charengine.likeness.metrics import CellScores
from charengine.likeness.scoring import score_cell
from charengine.machine.attention import unplanned_attention
from charengine.pictures import open_image
from charengine.records import AdapterRecord, DatasetRecord, Ref, SweepRecord, picture_name
from charengine.stages.sweep.ahead import Ahead
from charengine.stages.sweep.cells import Cell, KeptUnits
from charengine.stages.sweep.conclude import conclude, log_cell, log_cells
from charengine.stages.sweep.estimate import BASE
from charengine.stages.sweep.race import Unit, most_pictures
from charengine.stages.sweep.sample import draw
from charengine.stages.sweep.scoring_aside import BackgroundScorer, PendingCell, Pictures, ScoredCell, coders
from charengine.stages.sweep.session import Session, open_session
from charengine.stages.sweep.traits import TraitReading, described_traits
from charengine.store import Store
from charengine.tracking.protocol import NullTracker, Tracker

if TYPE_CHECKING:
    from PIL.Image import Image

    from charengine.models import Diffusion, Embedder, TraitReader


log = logging.getLogger(__name__)


@unplanned_attention()
def sweep_adapter(
    training: AdapterRecord,
    dataset: DatasetRecord,
    settings: SweepSettings,
    diffusion: Diffusion,
    embedder: Embedder,
    store: Store,
    *,
    seed: int,
    reader: TraitReader | None = None,
    description: str = "",
    tracker: Tracker = NullTracker(),
    recipe: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_cut: bool = False,
    key: str = "",
    on_drawn: Callable[[int, int], None] | None = None,
) -> SweepRecord:
    """Draw and score cells, pick one, export the adapter as trained and as recommended.

    Args:
        training: the checkpoints to try.
        dataset: whose views are the identity references.
        settings: strengths, prompts, seeds, floors.
        diffusion: the base model; left exactly as it was.
        embedder: identity embeddings and CLIP-T; unloaded before the reader works where that reads at the end, and afterwards.
        store: where pictures and adapters go.
        seed: first of the paired seeds.
        reader: reads the traits of `description` off the pictures, so that the pick counts them; None: identity alone counts.
        description: of the character, in words.
        tracker: gets one child run per cell.
        recipe: written into the exported adapter's metadata.
        should_stop: asked between cells.
        keep_cut: conclude from the cells that are finished when told to stop; a warning in the record says so.
        key: what finished cells are kept under, so that the same call after a kill draws only the rest; empty: not kept.
        on_drawn: told after each cell how many pictures are drawn, and how many there may be at most.

    Raises:
        Interrupted: `should_stop` said so, and `keep_cut` is off or no cell was finished.
        BadInput: `sweep.pictures` is not enough for strength 0 and one cell.
        StageFailed: the base model draws black pictures.
    """
    untaught = _untaught(settings, diffusion)
    reading = _reading(training, settings, reader, description)
    kept = KeptUnits(store, key)
    session = open_session(training, dataset, settings, diffusion, embedder, store, seed, tracker, kept, reading)
    left_out = _examine(session)
    _begin_reading(session, dataset)
    whole = _run(session, should_stop, on_drawn)
    cut = () if whole else (_cut(session, keep_cut),)
    _end_reading(session, dataset)
    if whole:
        log_cells(session)
    unsaid = () if training.facts else training.warnings  # of a file: no stage before this one has said them
    found = conclude(session, recipe, (*unsaid, *untaught, *left_out, *cut))
    embedder.unload()  # whoever reads pictures next needs the room
    return found


def _untaught(settings: SweepSettings, diffusion: Diffusion) -> tuple[str, ...]:
    """What of the prompts the base model will pass over, said before it draws."""
    usage = diffusion.usage
    told = (*usage.untaught("sweep.prompts", *settings.prompts), *usage.untaught_of_its_own())
    for warning in told:
        log.warning(warning)
    return told


def _cut(session: Session, keep_cut: bool) -> str:
    """What is said of a sweep that was told to stop; Interrupted where nothing is to be concluded from it."""
    drawn = len(session.cells) - (BASE in session.cells)
    if not (keep_cut and drawn):
        raise Interrupted(f"sweep stopped after {drawn} cells")
    of = f" of {len(session.grid) - 1}" if session.settings.design == "grid" else ""
    return f"the sweep was cut after {drawn}{of} cells: the pick is among these alone"


def _reading(
    training: AdapterRecord, settings: SweepSettings, reader: TraitReader | None, description: str
) -> TraitReading | None:
    """Who reads what; None where it is not asked for, or where the description names nothing that can be read."""
    if reader is None or settings.traits == "off":
        return None
    traits = described_traits(description, training.trigger, training.class_noun)
    return TraitReading(reader, traits, training.class_noun) if traits else None


def _begin_reading(session: Session, dataset: DatasetRecord) -> None:
    """What the reader sees in the sheet's own views, where every round is to know it."""
    if session.reading and session.settings.traits == "rounds":
        session.sheet_shown = session.reading.of_views(_own_views(session, dataset))


def _end_reading(session: Session, dataset: DatasetRecord) -> None:
    """Read everything now where nothing was read before, the picture model and the scorers out of the way; then the reader makes room."""
    reading = session.reading
    if reading is None:
        return
    if session.settings.traits == "end":
        session.diffusion.unload()
        session.references.embedder.unload()
        cells = sorted(session.cells.items())
        with _opening(session, cells) as pictures:
            session.sheet_shown = reading.of_views(_own_views(session, dataset))  # a large reader takes seconds to load
            read = reading.of_cells(pictures(), session.prompts)
        for (_, cell), shown in zip(cells, read, strict=True):
            cell.parts = [replace(cell.scores, shown=shown)]
    reading.reader.step_aside()  # it is asked again, about what the trigger brings


@contextmanager
def _opening(session: Session, cells: Sequence[tuple[int, Cell]]) -> Iterator[Callable[[], list[Pictures]]]:
    """The stored pictures of these cells, decoded from now on on a few threads: Pillow lets them really run at once."""

    def opened(ref: Ref) -> Image:
        return open_image(session.store.get(ref))

    with coders() as pool:
        coming = [
            [
                [pool.submit(opened, cell.images[name]) for name in row]
                for row in _names(session, Unit(index, tuple(range(cell.seeds))))
            ]
            for index, cell in cells
        ]
        yield lambda: [[[picture.result() for picture in row] for row in rows] for rows in coming]


def _own_views(session: Session, dataset: DatasetRecord) -> list[Image]:
    return [open_image(session.store.get(view.image)) for view in dataset.views.views]


def _examine(session: Session) -> tuple[str, ...]:
    """Every checkpoint of the grid held against the model before anything is drawn; what of them is left out.

    Raises:
        BadInput: one is damaged or for another model.
    """
    unet = session.diffusion.unet()
    told = (examine_adapter(unet, session.store.get(checkpoint.adapter)) for checkpoint in session.checkpoints.values())
    return tuple(dict.fromkeys(sentence for sentences in told for sentence in sentences))


def _run(session: Session, should_stop: Callable[[], bool], on_drawn: Callable[[int, int], None] | None) -> bool:
    """Strength 0, then round after round; False when told to stop before the last.

    Pictures are stored, and scored where a GPU draws, while the next ones are drawn: those of two units are in memory,
    never more.
    """

    def score(images: Pictures) -> CellScores:
        found = score_cell(images, session.prompts, session.training.class_noun, session.references)
        if session.reading is None or session.settings.traits != "rounds":
            return found
        return replace(found, shown=session.reading.of_cell(images, session.prompts))

    aside = torch.device(session.diffusion.device).type != "cpu"
    with session.merger, BackgroundScorer(score, session.store, aside=aside) as scorer:
        while units := session.next_units():
            done = 0
            with closing(_finish(session, scorer, units, should_stop)) as finished:
                for unit, found in finished:
                    _keep(session, unit, found)
                    done += 1
                    if on_drawn:
                        on_drawn(session.drawn, most_pictures(session.grid, session.settings, len(session.prompts)))
            if done < len(units):
                return False
    return True


def _finish(
    session: Session, scorer: BackgroundScorer, units: Sequence[Unit], should_stop: Callable[[], bool]
) -> Generator[tuple[Unit, ScoredCell], None, None]:
    """Units with their scores: strength 0 first, which all others are compared with, then what a killed sweep left, then
    one checkpoint after the other, since putting an adapter on takes time; the next unit is drawn while one is finished."""
    kept = {unit: found for unit in units if (found := session.kept.find(*_place(session, unit)))}
    missing = sorted((unit for unit in units if unit not in kept), key=lambda unit: session.grid[unit.cell][0])
    with closing(_finish_drawn(session, scorer, missing, should_stop)) as drawn:
        if missing and missing[0].cell == BASE:
            yield next(drawn)
        yield from kept.items()
        yield from drawn


def _finish_drawn(
    session: Session, scorer: BackgroundScorer, units: Sequence[Unit], should_stop: Callable[[], bool]
) -> Generator[tuple[Unit, ScoredCell], None, None]:
    """Units drawn now, each written down when it is whole."""

    def whole(unit: Unit, pending: PendingCell) -> tuple[Unit, ScoredCell]:
        found = pending.result()
        session.kept.keep(*_place(session, unit), found)
        return unit, found

    waiting = None
    with closing(_draw_units(session, units, should_stop)) as drawn:
        for unit, images in drawn:
            pending = scorer.start(images, _names(session, unit))
            if waiting:
                yield whole(*waiting)
            waiting = unit, pending
        if waiting:
            yield whole(*waiting)


def _draw_units(
    session: Session, units: Sequence[Unit], should_stop: Callable[[], bool]
) -> Generator[tuple[Unit, Pictures], None, None]:
    """Pictures, unit by unit; the next unit's adapter is got ready while one is drawn."""
    with Ahead(session.adapter, session.diffusion.device) as adapters:
        for unit, then in itertools.zip_longest(units, units[1:]):
            step, strength = session.grid[unit.cell]
            if step and should_stop():
                return
            session.merger.put_on(adapters.get(step), strength)
            if then:
                adapters.begin(session.grid[then.cell][0])
            yield unit, draw(session.diffusion, session.inputs, session.settings, unit.seeds)


def _names(session: Session, unit: Unit) -> list[list[str]]:
    """Names of a unit's pictures: a row per prompt, one per seed."""
    step, strength, seeds = _place(session, unit)
    return [[picture_name(step, strength, row, seed) for seed in seeds] for row in range(len(session.prompts))]


def _place(session: Session, unit: Unit) -> tuple[int, float, list[int]]:
    """A unit's checkpoint step, strength and seeds."""
    return (*session.grid[unit.cell], [session.inputs.seeds[column] for column in unit.seeds])


def _keep(session: Session, unit: Unit, found: ScoredCell) -> None:
    """Add a finished unit to its cell; a cell that gets no more pictures is logged at once."""
    cell = session.cells.setdefault(unit.cell, Cell())
    cell.parts.append(found.scores)
    cell.images |= found.images
    cell.thumbs |= {(row, unit.seeds[column]): thumb for (row, column), thumb in found.thumbs.items()}
    if unit.cell == BASE and cell.black == len(cell.thumbs):
        raise StageFailed(
            "every picture of the base model is black, so nothing can be compared with it: its U-Net or its VAE answers with no numbers "
            "(NaN). Get models.sdxl again, or take another checkpoint, or models.sdxl_vae"
        )
    step, strength = session.grid[unit.cell]
    log.info("sweep: step %d strength %g: %d seeds", step, strength, cell.seeds)
    if session.settings.design == "grid" and not (session.reading and session.settings.traits == "end"):
        log_cell(session, unit.cell, cell)
