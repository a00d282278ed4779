"""How many pictures a race needs at least; known before anything heavy is imported, so that a run is refused before it begins."""

from __future__ import annotations

from charengine.config import SweepSettings
from charengine.errors import BadInput

SEEDS_TO_PICK = 2  # of a cell that is picked: variety is measured between seeds


def base_seeds(settings: SweepSettings) -> int:
    """Seeds of strength 0: its pictures are the zero of every axis, and what variety is compared with."""
    return settings.seeds if settings.design == "grid" else min(settings.seeds, SEEDS_TO_PICK)


def check_budget(settings: SweepSettings, prompts: int) -> None:
    """Refuse a race that cannot draw a single cell."""
    least = prompts * (base_seeds(settings) + 1)
    if settings.design == "race" and settings.pictures < least:
        raise BadInput(
            f"sweep.pictures is {settings.pictures}, but strength 0 and one cell take {least} with {prompts} prompts: "
            f"set it to {least} or more (56 and 4 prompts is the default)"
        )
