"""What all commands do alike: paths are taken as they lie on the disk, and Ctrl-C ends with a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from charengine import files
from charengine.errors import EngineError

KEPT = (
    "run",
    "demo",
    "batch",
    "sheet",
    "crop",
    "expand",
    "caption",
    "train",
    "sweep",
)  # whose stages' results are kept
INTERRUPTED = 130


class Stopped(EngineError):
    """Ctrl-C."""

    exit_status = INTERRUPTED


class Command(TyperCommand):
    """One command."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        ctx.params = {name: _as_it_lies(value) for name, value in ctx.params.items()}
        return super().invoke(ctx)


class Commands(TyperGroup):
    """All of them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the one that is asked for.

        Raises:
            Stopped: by Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            name = ctx.invoked_subcommand or "charengine"
            goes_on = "what is done is kept, and the same command goes on from there"
            raise Stopped(
                f"{name} was stopped; {goes_on if name in KEPT else 'the same command begins again'}"
            ) from None


def _as_it_lies(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_it_lies(one) for one in value]
    return files.as_it_lies(value) if isinstance(value, Path) else value
