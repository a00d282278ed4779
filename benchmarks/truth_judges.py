"""Who reads the pictures of `adapter_truth.py`: the package's own probe, and a network that the product never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from second_judge import WEIGHTS, read_pictures
from second_judge import load as load_second

from charengine.embedded import probe
from charengine.embedded.traits import VIEWS

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Verdicts:
    """What is read off n pictures: traits (n, n_traits) and views (n,) as indices, faces (n,) whether one is seen."""

    traits: torch.Tensor
    views: torch.Tensor
    faces: torch.Tensor


class Judge(Protocol):
    """Reads pictures."""

    def __call__(self, images: Sequence[Image]) -> Verdicts:
        """One reading for all pictures."""


def shipped_judge(device: str) -> Judge:
    """The package's own probe. The product may use it, so it is no independent judge of what the product tunes with it.

    It has no word for faces: one is seen where it takes the picture for a front or side view.
    """
    judge = probe.load_judge(device=device)

    def read(images: Sequence[Image]) -> Verdicts:
        reading = probe.score_images(judge, probe.to_tensor(list(images)))
        return Verdicts(reading.traits, reading.views, reading.views != VIEWS.index("back"))

    return read


def second_judge(device: str) -> Judge:
    """Another network that the product never saw; it was taught what a face is (`second_judge.py`)."""
    judge = load_second(WEIGHTS, device)

    def read(images: Sequence[Image]) -> Verdicts:
        return Verdicts(*read_pictures(judge, probe.to_tensor(list(images))))

    return read


JUDGES: dict[str, Callable[[str], Judge]] = {"shipped": shipped_judge, "second": second_judge}
