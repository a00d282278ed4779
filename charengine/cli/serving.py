"""`up`: the gallery, both servers, their pages and the workers, until Ctrl-C; `gallery`: the gallery alone; `worker`: one machine of several."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from charengine import files
from charengine.cli.command import Command
from charengine.cli.console import listen, say
from charengine.errors import Interrupted
from charengine.machine.home import find_home


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(cls=Command)(up)
    app.command(cls=Command)(gallery)
    app.command(cls=Command)(worker)


def up(
    prefect_port: Annotated[int | None, typer.Option(help="Default: 4200, or the next free one.")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Default: 5000, or the next free one.")] = None,
    gallery_port: Annotated[int | None, typer.Option(help="Default: 4300, or the next free one.")] = None,
) -> None:
    """Start the gallery, Prefect, MLflow and a worker per GPU; print the addresses; Ctrl-C stops all."""
    listen()
    home = find_home()
    from charengine.machine.interrupts import stop_signals
    from charengine.services.up import services

    told = "starting…" if files.is_file(home.ports_file) else "starting (the first time takes a minute)…"
    ports = prefect_port, mlflow_port, gallery_port
    with stop_signals() as stop, services(home, stop, *ports, begins=lambda: say(told)) as running:
        say(f"gallery  {running.addresses.gallery}   all characters: start, follow, download")
        say(f"Prefect  {running.addresses.prefect}")
        say(f"MLflow   {running.mlflow_page}")
        gpus = running.gpus or 0
        say(f"workers  {max(gpus, 1)} ({'one a GPU' if gpus else 'on the CPU'}); logs in {home.logs}")
        say("ready; Ctrl-C stops all")
        running.watch()
        say("stopping…")
    say("stopped")


def gallery(
    port: Annotated[int | None, typer.Option(help="Default: 4300, or the next free one.")] = None,
) -> None:
    """Start the gallery alone, for the Prefect and MLflow that PREFECT_API_URL and MLFLOW_TRACKING_URI name."""
    listen()
    from charengine.machine.processes import HOST, choose_port
    from charengine.services.gallery.server import serve
    from charengine.services.up import PORTS

    find_home().create()  # before an address is told
    chosen = choose_port(port, PORTS["gallery"])
    say(f"gallery  http://{HOST}:{chosen}   Ctrl-C stops it")
    with suppress(KeyboardInterrupt):
        serve(chosen)
    say("stopped")


def worker() -> None:
    """Start a worker per GPU of this machine, for the Prefect, MLflow and store that PREFECT_API_URL, MLFLOW_TRACKING_URI and CHARENGINE_STORE name; Ctrl-C stops them."""
    listen()
    home = find_home()
    from charengine.machine.interrupts import stop_signals
    from charengine.services.workers import check_addresses, workers

    try:  # before the signals are taken over, so that Ctrl-C ends the wait for the store's server
        check_addresses()
    except KeyboardInterrupt:
        raise Interrupted("stopped before the store answered") from None
    with stop_signals() as stop, workers(home, stop) as running:
        gpus = running.gpus
        say(f"workers  {max(gpus, 1)} ({'one a GPU' if gpus else 'on the CPU'}); logs in {running.logs}")
        say("ready; Ctrl-C stops all")
        running.watch()
        say("stopping…")
    say("stopped")
