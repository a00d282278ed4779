"""The command line. Heavy modules are imported inside commands, so that `charengine --help` answers at once."""

from __future__ import annotations

import errno
import logging
import sys
from typing import Annotated, NoReturn

import typer

from charengine.cli import housekeeping, inspection, serving, stages
from charengine.cli import run as pipeline
from charengine.cli.command import INTERRUPTED, Commands
from charengine.errors import BadInput, EngineError
from charengine.machine.collection import collect_rarely, end_without_looking
from charengine.machine.environment import unknown_variables
from charengine.machine.error_log import keep_traceback
from charengine.machine.full_disks import fullness
from charengine.machine.home import find_home
from charengine.machine.own_packages import take_own_packages
from charengine.version import __version__

app = typer.Typer(
    cls=Commands,
    help="From one sentence to a tested, reusable character adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (pipeline, stages, inspection, housekeeping, serving):
    module.register(app)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"charengine {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""
    for problem in unknown_variables():
        typer.echo(f"warning: {problem}", err=True)


UNEXPECTED = 4
# the machine's words for what lies at a path: a folder for a file and the other way round, links in a circle, a disk that fails
PLACES = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS, errno.EIO)
RIGHTS = "give the right to it, or name another place (CHARENGINE_HOME, where it lies in the home)"


def main() -> NoReturn:
    """Run the command line; every failure ends in one message on stderr and the exit status of its kind."""
    collect_rarely()  # most commands import for longer than they work
    end_without_looking()
    try:
        take_own_packages()
        app()
        sys.exit(0)
    except EngineError as error:
        _complain(str(error))
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer makes the one the other, outside of commands
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        _complain("stopped before anything was begun; the same command begins again")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if told := _users_to_mend(error):
            _complain(told)
            sys.exit(BadInput.exit_status)
        if away := _without_prefect(error):
            _complain(away)
            sys.exit(EngineError.exit_status)
        # a defect of ours: the traceback goes to a file, one line to the user
        _complain(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}{_kept(error)}")
        sys.exit(UNEXPECTED)


def _users_to_mend(error: Exception) -> str:
    """What the machine forbids, or the environment, with a remedy; empty for a defect of ours."""
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.filename and error.errno in PLACES):
        return f"{error.filename or 'a file'}: cannot be read or written ({error.strerror or error}); {RIGHTS}"
    if full := fullness(error, find_home()):
        return f"{full}; the same command continues where this one was"
    from charengine.machine.variables import variables_to_blame

    return variables_to_blame(error)


def _without_prefect(error: Exception) -> str:
    """That Prefect's server did not answer; empty for anything else."""
    if "prefect" not in sys.modules:
        return ""
    from flows.pool import without_prefect

    return without_prefect(error)


def _complain(message: str) -> None:
    lines = message.splitlines() or [""]
    print("error:" if len(lines) > 1 else f"error: {lines[0]}", file=sys.stderr)
    for line in lines if len(lines) > 1 else []:
        print(f"  - {line}", file=sys.stderr)


def _kept(error: Exception) -> str:
    path = keep_traceback(error, find_home())
    if path is None:
        logging.getLogger(__name__).error("unexpected error", exc_info=error)
        return ""
    return f"\n  this is a defect of Character Engine; the traceback is in {path}"


if __name__ == "__main__":
    main()
