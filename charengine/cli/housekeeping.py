"""`prune` and `export`: the home kept small, and a character handed over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from charengine.cli.command import Command
from charengine.cli.console import listen, say, say_json
from charengine.cli.run import JsonOption
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home, find_home, in_work_folder

MIB = 2**20


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(cls=Command)(prune)
    app.command(cls=Command)(export)


def prune(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, nothing is changed.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Days. Also results, checkpoints and training states that nobody used for so long and no run's folder names.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What the home, and a store that machines share, no longer need: shown, and removed with --delete. Safe while runs go on."""
    listen()
    from charengine.machine.shared import shared_store
    from charengine.services import prune as pruning
    from charengine.services import prune_shared

    home = _home()
    found: list[pruning.Leftover | prune_shared.SharedLeftover] = []
    if store := shared_store():  # first: the home's notes of deleted folders go with the home's leftovers
        shared = prune_shared.remove if delete else prune_shared.leftovers
        found += shared(store, home, older_than)
    found += pruning.remove(home, older_than) if delete else pruning.leftovers(home, older_than)
    if as_json:
        say_json(pruning.as_dict(found, removed=delete))
        return
    counts, sizes = Counter[str](), Counter[str]()
    for item in found:
        counts[item.kind] += 1
        sizes[item.kind] += item.bytes
    for kind, count in counts.items():
        say(f"{kind:28} {count:8} {sizes[kind] / MIB:12.1f} MiB")
    total = f"{sum(sizes.values()) / MIB:.1f} MiB"
    if not found:
        say(f"nothing can go from {home.root}" + (f" and {store.url}" if store else ""))
    else:
        say(f"{total} removed" if delete else f"{total} can go: charengine prune --delete removes it")


def export(
    name: Annotated[str, typer.Argument(help="A character's name, or the folder of its run.")],
    to: Annotated[Path | None, typer.Option(help="A folder, or a .zip. Default: NAME.zip")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hand a character over: adapters, card, preview, sidecars, report and recipe, as a folder or a zip."""
    listen()
    from charengine.machine.places import home_problems
    from charengine.machine.shared import open_store
    from charengine.run.export import export as write
    from charengine.run.export import find_run

    home = _home()
    folder = find_run(home, name)
    target = in_work_folder(str(to or f"{folder.name}.zip"))
    if problems := home_problems(target, home, "--to"):
        raise BadInput(problems[0])
    place = write(folder, target, open_store(home))
    say_json({"export": str(place), "run": str(folder)}) if as_json else say(str(place))


def _home() -> Home:
    """The home, which need not be there yet.

    Raises:
        ConfigError: there can be none: nothing can go from a file, and no run is known to it.
    """
    from charengine.machine.places import no_folder_problems

    home = find_home()
    if problems := no_folder_problems(home.root, "home folder (CHARENGINE_HOME)"):
        raise ConfigError(problems)
    return home
