"""A body and what it wears: what head, items and figure share."""

from __future__ import annotations

import torch

from charengine.embedded.anatomy import CLOTH, HAIR, SKIN, colour_of
from charengine.embedded.traits import COLUMN, TRAITS


class Wearer:
    """The traits of a batch as masks and colours."""

    def __init__(self, indices: torch.Tensor) -> None:
        self.indices = indices
        self.skin = colour_of(indices, "skin", SKIN)
        self.hair = colour_of(indices, "hair_colour", HAIR)
        self.top = colour_of(indices, "top_colour", CLOTH)
        self.bottom = colour_of(indices, "bottom_colour", CLOTH)
        self.shoes = colour_of(indices, "footwear_colour", CLOTH)
        self.headgear = colour_of(indices, "headgear_colour", CLOTH)
        self.pattern = indices[:, COLUMN["pattern"]]

    def has(self, trait: str, *values: str) -> torch.Tensor:
        """Mask (n,) of the figures whose trait is one of these values."""
        chosen = self.indices[:, COLUMN[trait]]
        return torch.stack([chosen == TRAITS[trait].index(value) for value in values]).any(0)
