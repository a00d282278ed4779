"""Where things live: `$CHARENGINE_HOME`, else `~/.charengine`."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from charengine.errors import BadInput, ConfigError
from charengine.files import as_it_lies, exists, expanded, is_dir, is_file, real, reason

log = logging.getLogger(__name__)

KEYS = "2"  # the form of the keys that results lie under
FOLDERS = (
    "store", "store/sha256", "store/results", "state", "locks", "inbox", "inbox/taken", "inbox/done", "inbox/failed", "known-runs",
    "mlflow", "mlflow/artifacts", "mlflow/journal", "mlflow/spool", "prefect", "logs", "tmp", "tokenizers",
)  # fmt: skip
FILES = (
    "keys", "up.json", "stopping", "ports.json", "predictions.json", "plans.json", "fingerprints.json", "mlflow/mlflow.db", "prefect/prefect.db",
    "prefect/profiles.toml", "logs/prefect-server.log", "logs/children.json",
)  # fmt: skip
LISTED = {"locks": ".lock", "store/results": ".json"}  # folders of files that end so
WORK_FOLDER = "CHARENGINE_WORK_FOLDER"
OWN_FILES, OWN_FOLDERS = (
    [name for name in names if "/" not in name] for names in (FILES, FOLDERS)
)  # in the home itself
STARTED_BY_WORKER = "PREFECT__FLOW_RUN_ID"  # set by Prefect in the process of a flow run


@dataclass(frozen=True)
class Home:
    """The folder that outlives runs."""

    root: Path

    @property
    def store(self) -> Path:
        """Blobs by digest."""
        return self.root / "store"

    @property
    def state(self) -> Path:
        """Resumable training states, one folder a stage key."""
        return self.root / "state"

    @property
    def locks(self) -> Path:
        """Files that processes flock."""
        return self.root / "locks"

    @property
    def inbox(self) -> Path:
        """Casts, sentences and pictures that are to be made."""
        return self.root / "inbox"

    @property
    def known_runs(self) -> Path:
        """Notes of the folders that hold runs."""
        return self.root / "known-runs"

    @property
    def mlflow(self) -> Path:
        """MLflow's database, artifacts and spool."""
        return self.root / "mlflow"

    @property
    def prefect(self) -> Path:
        """Prefect's database and results."""
        return self.root / "prefect"

    @property
    def logs(self) -> Path:
        """Tracebacks of unexpected errors, and the logs of `charengine up`."""
        return self.root / "logs"

    @property
    def temporary(self) -> Path:
        """Temporary files of what `charengine up` runs; there while it runs."""
        return self.root / "tmp"

    @property
    def services_file(self) -> Path:
        """What `charengine up` wrote about the servers it started."""
        return self.root / "up.json"

    @property
    def stopping(self) -> Path:
        """Which process of `charengine up` or `charengine worker` is ending its workers; not there at other times."""
        return self.root / "stopping"

    @property
    def ports_file(self) -> Path:
        """The ports that `charengine up` used last."""
        return self.root / "ports.json"

    def holds(self, path: Path) -> bool:
        """Whether a path is the home, or one of the engine's own files and folders in it, or inside of one.

        Raises:
            BadInput: it cannot be told.
        """
        place, root = real(path), real(self.root)
        inside = {real(self.root / name) for name in OWN_FOLDERS} & {place, *place.parents}
        return bool(inside) or place == root or (place.parent == root and place.name in OWN_FILES)

    def problems(self) -> list[str]:
        """What lies where the home keeps something of another kind: a line for each file in a folder's place, and the other way round."""
        try:
            exists(self.root / FILES[0])
        except BadInput:
            return []  # that the home cannot be entered is one problem, which whoever writes there tells
        named = [self.root / name for name in (*FILES, *FOLDERS)]
        listed = [path for name, end in LISTED.items() for path in _ending(self.root / name, end)]
        return [problem for path in (*named, *listed) if (problem := self._problem(path))]

    def _problem(self, path: Path) -> str:
        is_folder = path.relative_to(self.root).as_posix() in FOLDERS
        try:  # a link to nothing is a file that is not there yet, but no folder can be made in its place
            if is_dir(path) or not os.path.lexists(path) if is_folder else is_file(path) or not exists(path):
                return ""
        except BadInput as error:
            return str(error)
        wanted = "folder" if is_folder else "file"
        return f"{path}: the home keeps a {wanted} there, and this is none: move it away, or set CHARENGINE_HOME to another folder"

    def create(self) -> Home:
        """Make the folders.

        Raises:
            BadInput: the home cannot be written, or something else lies in the place of one of its files or folders.
        """
        if found := self.problems():
            raise ConfigError(found)
        try:
            self._say_if_made_by_an_earlier_version()
            for folder in (self.store, self.state, self.locks, self.mlflow, self.prefect, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"home folder {self.root} cannot be written ({reason(error)}); set CHARENGINE_HOME to a folder that can"
            ) from error
        return self

    def _say_if_made_by_an_earlier_version(self) -> None:
        """Once: what stages made under keys of another form is neither taken nor touched."""
        mark = self.root / "keys"
        if mark.exists():
            return
        if self.store.is_dir():
            log.warning(
                "%s was made by an earlier version: its runs open, compare and sweep as before, and a stage that is asked for "
                "again is made again, once",
                self.root,
            )
        self.root.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{KEYS}\n", encoding="utf-8")


def _ending(folder: Path, end: str) -> list[Path]:
    """What is no plain file though it is named as one, in a folder; thousands lie there, so that none is asked about that need not be."""
    with suppress(OSError), os.scandir(folder) as found:
        return sorted(Path(entry.path) for entry in found if entry.name.endswith(end) and not entry.is_file())
    return []


def find_home() -> Home:
    """The home folder; nothing is created."""
    return Home(current_folder() / expanded(os.environ.get("CHARENGINE_HOME") or "~/.charengine"))


def current_folder() -> Path:
    """The folder that this process stands in.

    Raises:
        BadInput: it was deleted meanwhile, or may not be entered.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise BadInput(f"the current folder is gone ({reason(error)}): change into another one") from error


def work_folder() -> Path:
    """Where relative paths start, absolute: the folder that `charengine up` was started in, else the current one.

    A worker runs each flow in a folder of its own, which is gone afterwards. One that was not told of a work folder uses the
    home folder, and says so.
    """
    if given := os.environ.get(WORK_FOLDER):
        return expanded(given).absolute()
    if os.environ.get(STARTED_BY_WORKER):
        return _home_as_work_folder(find_home())
    return current_folder()


@cache
def _home_as_work_folder(home: Home) -> Path:
    log.warning(
        "this worker has no %s: relative paths start in %s, and results without a folder of their own go to %s",
        WORK_FOLDER,
        home.root,
        home.root / "runs",
    )
    return home.root


def in_work_folder(path: str) -> Path:
    """A path as a user wrote it, absolute; a relative one starts in the work folder. Names that are there in Unicode's other form are theirs."""
    place = expanded(path)
    return as_it_lies(place if place.is_absolute() else work_folder() / place)
