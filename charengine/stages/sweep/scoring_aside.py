"""What happens to a cell's pictures once they are drawn, on threads, so that the next cell can be drawn meanwhile.

Pillow releases the interpreter while it encodes and resizes, so that a few threads really run at once; scoring has a thread
of its own while a GPU draws. Where the cores draw, it has not: torch's threads would fight over them, which cost a fifth of
a sweep (lab notes). Results come in the order of the pictures whichever thread was faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.likeness.metrics import CellScores
from charengine.pictures import webp
from charengine.records import Ref
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

Pictures = list[list["Image"]]  # a row per prompt, a picture per seed
THUMB = 160  # pixels: what is kept in memory of a finished cell's images
CODERS = 4  # threads; they need to be faster than the model draws, no more


@dataclass(frozen=True)
class ScoredCell:
    """Scores, stored images by name, and small copies by (prompt, seed) for the contact sheet."""

    scores: CellScores
    images: dict[str, Ref]
    thumbs: dict[tuple[int, int], Image]


@dataclass(frozen=True)
class PendingCell:
    """A cell that is being finished."""

    scores: Future[CellScores]
    stored: dict[tuple[int, int], tuple[str, Future[tuple[Ref, Image]]]]

    def result(self) -> ScoredCell:
        """Wait for all of it; what failed on a thread is raised here."""
        done = {place: (name, *future.result()) for place, (name, future) in self.stored.items()}
        return ScoredCell(
            scores=self.scores.result(),
            images={name: ref for name, ref, _ in done.values()},
            thumbs={place: thumb for place, (_, _, thumb) in done.items()},
        )


class BackgroundScorer:
    """Threads that score, encode and store; a context manager, which drops on leaving what has not begun.

    Args:
        score: scores the pictures of one cell; never called twice at once.
        store: where the pictures go.
        aside: score on a thread; else at once, in `start`.
    """

    def __init__(self, score: Callable[[Pictures], CellScores], store: Store, *, aside: bool) -> None:
        self._score, self._store, self._aside = score, store, aside
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="score")  # starts no thread before it has work
        self._encoders = coders()

    def __enter__(self) -> BackgroundScorer:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._scorer, self._encoders):
            pool.shutdown(cancel_futures=True)

    def start(self, images: Pictures, names: Sequence[Sequence[str]]) -> PendingCell:
        """Begin with a cell; `names` are the pictures' ("step/strength/prompt/seed")."""
        stored = {
            (row, column): (names[row][column], self._encoders.submit(self._keep, image, names[row][column]))
            for row, line in enumerate(images)
            for column, image in enumerate(line)
        }
        return PendingCell(self._scorer.submit(self._score, images) if self._aside else self._now(images), stored)

    def _now(self, images: Pictures) -> Future[CellScores]:
        scores: Future[CellScores] = Future()
        scores.set_result(self._score(images))
        return scores

    def _keep(self, image: Image, name: str) -> tuple[Ref, Image]:
        return self._store.put(webp(image), name.replace("/", "-") + ".webp"), _small(image)


def coders() -> ThreadPoolExecutor:
    """Threads that encode and decode pictures."""
    return ThreadPoolExecutor(min(CODERS, os.cpu_count() or 1), thread_name_prefix="coder")


def _small(image: Image) -> Image:
    from PIL import Image as pil

    height = round(THUMB * image.height / image.width)
    return image.convert("RGB").resize((THUMB, height), pil.Resampling.LANCZOS)
