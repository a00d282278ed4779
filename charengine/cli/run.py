"""`run`, `demo` and `batch`: whole characters, through the Prefect flows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charengine.cli.command import PATH, Command
from charengine.cli.console import listen, say, say_json, training_bar
from charengine.errors import BadInput
from charengine.machine.home import find_home

if TYPE_CHECKING:
    from charengine.machine.home import Home
    from charengine.records import RunResult
    from charengine.run.request import RunRequest

DEMO_NAME = "Grisha"
DEMO_PROMPT = (
    "a green skinned orc woman with long red hair, a blue coat, black trousers, brown boots and a hook for a right hand"
)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", metavar=PATH, help="A shipped profile or a YAML file.")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="A setting to change, e.g. train.steps=800; repeatable. `charengine settings` lists all.",
        default_factory=list,
        show_default=False,
    ),
]
ReferenceOption = Annotated[
    str,
    typer.Option(
        metavar=PATH,
        help="One picture of the character (PNG, JPEG, WebP), in any pose and place: the sheet is drawn from it.",
    ),
]
OutOption = Annotated[
    str, typer.Option("--out", "-o", metavar=PATH, help="Folder for the results. Default: runs/<name>")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Say the result as one line of JSON, the last of stdout.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(cls=Command)(run)
    app.command(cls=Command)(demo)
    app.command(cls=Command)(batch)


def run(
    settings: SetOption,
    refresh: Annotated[
        list[str],
        typer.Option(
            "--refresh",
            help="A stage to run even if it is cached; repeatable.",
            default_factory=list,
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str, typer.Argument(help="One sentence saying what the character looks like; may be left out with --reference.")
    ] = "",
    name: Annotated[str, typer.Option(help="Letters, digits, spaces, _ and -. Default: from the prompt")] = "",
    class_noun: Annotated[str, typer.Option(help='"woman", "robot"… Default: from the prompt')] = "",
    trigger: Annotated[str, typer.Option(help="Word that will mean the character. Default: from the name")] = "",
    seed: Annotated[int, typer.Option(help="Same seed, same machine kind: same files.")] = 42,
    profile: ProfileOption = "embedded",
    sheet: Annotated[str, typer.Option(metavar=PATH, help="A sheet you already have (PNG, JPEG, WebP).")] = "",
    reference: ReferenceOption = "",
    auto_retrain: Annotated[
        int, typer.Option(help="Train again, so often at most, as the sweep's verdict says (--set retrain=N).")
    ] = 0,
    out: OutOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a character: prompt to sheet, views, captions, adapter, sweep, pick and report."""
    from charengine.run.request import RunRequest

    overrides = (*settings, *([f"retrain={auto_retrain}"] if auto_retrain else []))
    request = RunRequest(
        prompt, name, class_noun, trigger, seed, profile, overrides, sheet, out, tuple(refresh), reference
    )
    start(request, as_json)


def demo(settings: SetOption, out: OutOption = "", as_json: JsonOption = False) -> None:
    """One character on the embedded default, prompt to report: minutes, offline, no GPU."""
    from charengine.run.request import RunRequest

    start(RunRequest(DEMO_PROMPT, DEMO_NAME, overrides=tuple(settings), out=out), as_json)


def start(request: RunRequest, as_json: bool) -> None:
    """Check a request, run it through the flow and say what was made."""
    from charengine.machine.variables import check_variables, read_by_prefect
    from charengine.run.again import made_before
    from charengine.run.request import check
    from charengine.services.prefect_server import reach_prefect

    listen(quiet=as_json)
    home = find_home()
    run = check(request, home)
    check_variables()
    if made := made_before(run, home):
        say_result(made, as_json)
        return
    prefect_is_up = reach_prefect(home)
    from charengine.run.opening import open_workspace

    with training_bar(quiet=as_json):
        workspace = open_workspace(run, home)  # finds every model file
        _load_libraries(home)
        prefect_is_up()
        with read_by_prefect():
            from flows.character import start as start_flow

        result = start_flow(run, workspace)
    say_result(result, as_json)


def _load_libraries(home: Home) -> None:
    """MLflow, while the server starts: that first, for Prefect imported before would complain of its settings in words of its own."""
    from charengine.tracking.database import load_libraries

    with suppress(Exception):  # it is told where MLflow is needed
        load_libraries(home)


def say_result(result: RunResult, as_json: bool) -> None:
    """The outcome in a few lines, or as JSON."""
    if as_json:
        say_json(result.model_dump(mode="json"))
        return
    for warning in result.warnings:
        say(f"warning: {warning}")
    say(f"{result.name}: say {result.recommended_prompt!r} in a prompt")
    say(f"pick: step {result.checkpoint_step} at strength {result.strength:g}")
    say(f"recommended adapter (strength 1 = the pick): {result.recommended_adapter}")
    say(f"adapter as trained:                          {result.adapter}")
    say(f"report: {result.report}")
    seconds = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    cached = result.cached_stages
    say(f"took {seconds}" + (f"; unchanged: {', '.join(cached)}" if cached else ""))


def batch(
    settings: SetOption,
    cast: Annotated[Path | None, typer.Argument(help="YAML or CSV file with one character an entry.")] = None,
    inbox: Annotated[
        bool, typer.Option("--inbox", help="Take what lies in the folder `inbox` of the home instead.")
    ] = False,
    profile: ProfileOption = "embedded",
    workers: Annotated[
        bool, typer.Option("--workers", help="Hand the characters to the work pool of `up` or `worker`.")
    ] = False,
    max_hours: Annotated[
        float, typer.Option(help="After so many hours no further character is begun; those that run are finished.")
    ] = 0.0,
    max_characters: Annotated[
        int, typer.Option(help="So many are made at most; what was made before does not count.")
    ] = 0,
    priority: Annotated[str, typer.Option(help="With --workers, among casts: low, normal or high.")] = "normal",
    out: OutOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a whole cast; a character that fails never stops the others. Exit status 4 when any failed."""
    from charengine.machine.variables import read_by_prefect
    from charengine.run.budget import Budget, queue_of
    from charengine.run.cast import read_cast
    from charengine.services.prefect_server import reach_prefect

    listen(quiet=as_json)
    home = find_home()
    Budget(max_hours, max_characters)
    queue_of(priority)
    how: dict[str, Any] = {"workers": workers, "priority": priority}
    how |= {"max_hours": max_hours, "max_characters": max_characters}
    if cast and not inbox:
        requests = read_cast(cast, profile, tuple(settings), out, home)
        how |= {"characters": [request.as_parameters() for request in requests]}
    elif inbox and not cast and not out:
        how |= {"inbox": True, "profile": profile, "overrides": settings}
    else:
        raise BadInput("give either a cast's file or --inbox; --out is a file's alone")
    prefect_is_up = reach_prefect(home, workers)
    if not workers:
        _load_libraries(home)
    prefect_is_up()
    with read_by_prefect():
        from flows.batch import batch as batch_flow

    with training_bar(quiet=as_json):
        result = batch_flow(**how)
    say_json(result) if as_json else say(result["table"])
    if result["failed"]:
        raise typer.Exit(4)
