"""The cells of a sweep: what was drawn of each, and the same kept in the store, so that a killed sweep continues.

A unit (one cell with some seeds) is written down once its pictures are stored and scored: the scores and the small copies bit
for bit, the pictures by reference. A restarted sweep takes what is whole and draws the rest; since the next cells follow from
the scores alone, it ends in the same record as one that nothing disturbed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch

from charengine.errors import StoreCorrupt
from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores
from charengine.records import Record, Ref
from charengine.stages.sweep.scoring_aside import ScoredCell
from charengine.store import Store, refs_in

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

SCORES = tuple(one.name for one in fields(CellScores))
THUMB = "thumb/"  # before prompt/seed, in the file of a unit


@dataclass
class Cell:
    """What was drawn of a cell so far: scores seed by seed, stored pictures, small copies for the contact sheet."""

    parts: list[CellScores] = field(default_factory=list)
    images: dict[str, Ref] = field(default_factory=dict)
    thumbs: dict[tuple[int, int], Image] = field(default_factory=dict)
    mlflow_run_id: str | None = None

    @property
    def scores(self) -> CellScores:
        """Of all its seeds."""
        return metrics.joined(self.parts)

    @property
    def seeds(self) -> int:
        """How many were drawn."""
        return sum(part.identity.shape[1] for part in self.parts)

    @property
    def black(self) -> int:
        """How many pictures are black all over, as where the U-Net answers with NaN."""
        return sum(thumb.getbbox() is None for thumb in self.thumbs.values())


class UnitRecord(Record):
    """A finished unit of a sweep that is not."""

    images: dict[str, Ref]
    numbers: Ref


class KeptUnits:
    """ScoredCell units of one sweep, in the store under its key.

    Args:
        store: where they lie.
        key: of the sweep's result; empty: nothing is kept.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def keep(self, step: int, strength: float, seeds: Sequence[int], found: ScoredCell) -> None:
        """Write a unit down; its pictures are in the store already."""
        if not self._key:
            return
        numbers = self._store.put(_packed(found), "cell.safetensors")
        self._store.put_result(self._name(step, strength, seeds), UnitRecord(images=found.images, numbers=numbers))

    def find(self, step: int, strength: float, seeds: Sequence[int]) -> ScoredCell | None:
        """A unit with these seeds, if it was finished before and all of it is whole."""
        record = self._store.result(self._name(step, strength, seeds), UnitRecord) if self._key else None
        if record is None:
            return None
        lost = [ref for ref in refs_in(record) if not self._store.has(ref)]
        for ref in lost:
            self._store.drop(ref)
        try:
            return None if lost else _unpacked(self._store.get(record.numbers), record.images)
        except (StoreCorrupt, ValueError, KeyError) as error:
            log.warning("a finished cell of the sweep cannot be read (%s); it is drawn again", error)
            return None

    def _name(self, step: int, strength: float, seeds: Sequence[int]) -> str:
        return f"{self._key}/{step}-{strength:g}-{'-'.join(map(str, seeds))}"


def _packed(found: ScoredCell) -> bytes:
    """Scores and small copies as safetensors: every bit comes back."""
    import numpy as np
    from safetensors.torch import save

    values = {name: getattr(found.scores, name) for name in SCORES}
    tensors = {name: value.contiguous() for name, value in values.items() if value is not None}
    tensors |= {
        f"{THUMB}{row}/{column}": torch.from_numpy(np.array(thumb)) for (row, column), thumb in found.thumbs.items()
    }
    return save(tensors)


def _unpacked(data: bytes, images: dict[str, Ref]) -> ScoredCell:
    from PIL import Image
    from safetensors.torch import load

    tensors = load(data)
    thumbs = {}
    for name in sorted(name for name in tensors if name.startswith(THUMB)):
        row, column = name.removeprefix(THUMB).split("/")
        thumbs[int(row), int(column)] = Image.fromarray(tensors[name].numpy())
    scores = CellScores(**{name: tensors[name] for name in SCORES if name in tensors})
    return ScoredCell(scores=scores, images=images, thumbs=thumbs)
