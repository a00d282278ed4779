"""Where things live: `$CHARENGINE_HOME`, else `~/.charengine`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from charengine.errors import BadInput

WORK_FOLDER = "CHARENGINE_WORK_FOLDER"


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
    def services_file(self) -> Path:
        """What `charengine up` wrote about the servers it started."""
        return self.root / "up.json"

    def create(self) -> Home:
        """Make the folders.

        Raises:
            BadInput: the home cannot be written.
        """
        try:
            for folder in (self.store, self.state, self.locks, self.mlflow, self.prefect, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"home folder {self.root} cannot be written ({error.strerror}); set CHARENGINE_HOME to a folder that can"
            ) from error
        return self


def find_home() -> Home:
    """The home folder; nothing is created."""
    return Home(Path(os.environ.get("CHARENGINE_HOME") or Path.home() / ".charengine").expanduser().absolute())


def work_folder() -> Path:
    """Where relative paths start: the folder that `charengine up` was started in, else the current one.

    A worker runs each flow in a folder of its own, which is gone afterwards.
    """
    return Path(os.environ.get(WORK_FOLDER) or Path.cwd())
