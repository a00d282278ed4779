"""A second reader of traits, by which VAEs are trained and nothing is judged: what it sees in a picture must survive.

Absolute errors hardly count what a trait hangs on: a strand of hair, a tattoo's lines, the point of an ear. A network that
reads traits knows which pixels those are. Distances of its features are LPIPS (Zhang et al. 1801.03924) with a network of
this world. It has other widths and another seed than the probe, which never sees what the family draws and stays the judge.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from charengine.embedded import probe as source
from charengine.embedded.making.clock import read_weights
from charengine.embedded.making.run import Run

NAME, OTHER = "eye", "other_eye"
WIDTHS = {NAME: (48, 96, 160, 208), OTHER: (32, 112, 144, 240)}
SHIFT = 0.04  # of half a picture, at most
NOISE = 0.05  # standard deviation, at most


class Eye(torch.nn.Module):
    """Compares pictures by what a reader of traits makes of them.

    Args:
        reader: trained on renders; it is not changed.
    """

    def __init__(self, reader: source.Probe) -> None:
        super().__init__()
        self.reader = reader.eval().requires_grad_(False)

    def forward(
        self, out: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How differently two batches of pictures look.

        Args:
            out: (n, 3, h, w), about [-1, 1].
            wanted: the true ones.
            weight: (n, 1, h, w), how much a place counts.

        Returns:
            Mean squared distance of the features, each of length 1; mean divergence of the readings, nats.
        """
        features, readings = self._look(_shaken(out, wanted))
        apart = torch.zeros((), device=out.device)
        for found in features:
            made, true = F.normalize(found.float(), dim=1, eps=1e-4).chunk(2)
            share = F.adaptive_avg_pool2d(weight, (found.shape[-2], found.shape[-1]))
            apart = apart + ((made - true).square().sum(1, keepdim=True) * share).mean() / share.mean()
        divergence = torch.zeros((), device=out.device)
        for logits in readings:
            made, true = logits.float().log_softmax(-1).chunk(2)
            divergence = divergence + F.kl_div(made, true, reduction="batchmean", log_target=True)
        return apart / len(features), divergence / len(readings)

    def _look(self, pictures: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Feature maps after each block, and what is read off the last."""
        found: list[torch.Tensor] = []
        taps = [
            block.register_forward_hook(lambda _block, _given, out: found.append(out)) for block in self.reader.blocks
        ]
        readings = self.reader(pictures)
        for tap in taps:
            tap.remove()
        return found, readings


def _shaken(out: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Both batches in one, [0, 1], each pair moved and made noisy alike: no pattern that only this network falls for pays."""
    n, device = len(out), out.device
    zoom, zero = 1 + SHIFT * (torch.rand(n, device=device) * 2 - 1), torch.zeros(n, device=device)
    move = SHIFT * (torch.rand(2, n, device=device) * 2 - 1)
    affine = torch.stack([torch.stack([zoom, zero, move[0]], 1), torch.stack([zero, zoom, move[1]], 1)], 1)
    grid = F.affine_grid(affine, list(out.shape), align_corners=False)
    noise = NOISE * torch.rand(n, 1, 1, 1, device=device) * torch.randn_like(wanted)
    both = [
        F.grid_sample(pictures / 2 + 0.5, grid, padding_mode="border", align_corners=False) + noise
        for pictures in (out.float(), wanted)
    ]
    return torch.cat(both)


def build_eye(run: Run, name: str = NAME) -> source.Probe:
    """One eye's network, untrained."""
    return source.Probe((16, 16, 16, 16) if run.tiny else WIDTHS[name])


def load_eye(run: Run, name: str = NAME) -> Eye | None:
    """The one trained before; None when none was."""
    reader = build_eye(run, name)
    return Eye(reader.to(run.device)) if read_weights(run.made, name, reader) else None


def load_eyes(run: Run) -> list[Eye]:
    """Both, or as many as were trained before."""
    return [eye for name in WIDTHS if (eye := load_eye(run, name))]
