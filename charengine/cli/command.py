"""What all commands do alike: paths are taken as they lie on the disk, and Ctrl-C ends with a word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from charengine import files
from charengine.errors import BadInput, EngineError

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
PATH = "PATH"  # metavar of texts that are paths, which are left out where they are empty


class Stopped(EngineError):
    """Ctrl-C."""

    exit_status = INTERRUPTED


class Command(TyperCommand):
    """One command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was given.

        Raises:
            BadInput: an empty path, as `"$UNSET"` is in a shell: `Path` takes it for the current folder, a text for left out; or an
                option that takes one value is given two, of which the last would be taken without a word.
        """
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in order:
            single = isinstance(parameter, TyperOption) and not (parameter.multiple or parameter.is_flag)
            if single and order.count(parameter) > 1:
                raise BadInput(
                    f"{_called(parameter)} is given {order.count(parameter)} times and takes one value: leave one"
                )
        _tell_settings_given_twice(given.get("settings"))
        kinds = get_type_hints(self.callback)
        for parameter in self.params:
            if _takes_path(parameter, kinds.get(parameter.name or "")) and "" in _each(given.get(parameter.name or "")):
                raise BadInput(f"{_called(parameter)}: {files.EMPTY}")
        return super().parse_args(ctx, args)

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


def _tell_settings_given_twice(settings: Iterable[str] | None) -> None:
    """Settings may be laid over others, as a script's over those of a variable."""
    found: dict[str, list[str]] = {}
    for text in settings or ():
        name, _, value = text.partition("=")
        found.setdefault(name.strip(), []).append(value.strip())
    for name, values in found.items():
        if len({*values}) > 1:
            typer.echo(f"warning: --set {name} is given {len(values)} times: the last, {values[-1]}, counts", err=True)


def _takes_path(parameter: Any, kind: object) -> bool:
    return parameter.metavar == PATH or kind is Path or Path in get_args(kind)


def _called(parameter: Any) -> str:
    return parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _as_it_lies(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_it_lies(one) for one in value]
    return files.as_it_lies(value) if isinstance(value, Path) else value
