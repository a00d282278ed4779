"""One flow run in a container of its own (`deployments/kubernetes.json`): `prefect flow-run execute` with the engine's defaults."""

from __future__ import annotations

import sys

from charengine.machine.environment import apply_defaults
from charengine.machine.home import find_home


def main() -> None:
    """The run that Prefect's worker named in the environment."""
    apply_defaults(find_home().create())  # before Prefect is imported, which reads them then
    from prefect.cli import app

    sys.argv[:] = ["prefect", "flow-run", "execute"]
    app()


if __name__ == "__main__":
    main()
