"""One training process: where it runs, where it writes, how big it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from charengine.embedded.making.family import TINY, Sizes
from charengine.embedded.making.team import Team


@dataclass
class Run:
    """Arguments shared by all parts."""

    out: Path
    device: torch.device
    source: Path | None = None
    tiny: bool = False
    seed: int = 0
    max_steps: int = 0
    save_every: float = 60.0
    saved: dict[str, float] = field(default_factory=dict)
    team: Team = field(default_factory=Team)

    @property
    def sizes(self) -> Sizes:
        """The architecture."""
        return TINY if self.tiny else Sizes()

    @property
    def sources(self) -> list[Path]:
        """Where to look for weights to start from."""
        return [self.source] if self.source else []

    @property
    def made(self) -> list[Path]:
        """Where to look for other parts' weights: this run's first."""
        return [self.out, *self.sources]

    def scale(self, full: int, tiny: int) -> int:
        """A size: full, or tiny in a smoke test."""
        return tiny if self.tiny else full

    def every(self, full: int) -> int:
        """A log interval in steps."""
        return 2 if self.tiny else full

    def due(self, name: str) -> bool:
        """Whether `save_every` seconds have gone by since this last said yes."""
        now = time.monotonic()
        if now - self.saved.setdefault(name, now) < self.save_every:
            return False
        self.saved[name] = now
        return True

    def picture(self, name: str, rows: list[torch.Tensor]) -> None:
        """Write a contact sheet: each row (n, 3, h, w) in [0, 1]."""
        from PIL import Image

        lines = [torch.cat(list(row.float().cpu()), 2) for row in rows]
        width = max(line.shape[2] for line in lines)
        lines = [torch.nn.functional.pad(line, (0, width - line.shape[2]), value=1.0) for line in lines]
        array = (torch.cat(lines, 1).permute(1, 2, 0) * 255).clamp(0, 255).byte().numpy()
        Image.fromarray(array).save(self.out / f"{name}.png")
