"""A training aid, thrown away afterwards: traits must be readable off what the text encoders say."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from charengine.embedded.traits import TRAITS


class TraitHeads(torch.nn.Module):
    """Reads every trait off a text feature of `width`; traits the text left out only add a constant to the loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(values) for values in TRAITS.values()]
        self.mix = torch.nn.Linear(width, 2 * width)
        self.out = torch.nn.Linear(2 * width, sum(self.sizes))

    def forward(self, feature: torch.Tensor, traits: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the traits (n, n_traits) of features (n, width)."""
        parts = self.out(F.gelu(self.mix(feature))).float().split(self.sizes, -1)
        return torch.stack([F.cross_entropy(part, traits[:, i]) for i, part in enumerate(parts)]).mean()
