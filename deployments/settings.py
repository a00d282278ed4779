"""Says which variable Prefect cannot read, a line for it: a process of its own, since the engine imports no Prefect."""

from __future__ import annotations

import os
from pathlib import Path

from charengine.errors import BadInput
from charengine.machine.variables import PROBLEM, read_by_prefect, variables_to_blame


def main() -> None:
    """Read the settings as Prefect's server and client do."""
    try:
        with read_by_prefect():
            from prefect.settings import Settings

            Settings()
    except BadInput as error:
        print(f"{PROBLEM}{error}")
    except Exception as error:  # whatever it raises at a variable or at its own file
        place = (
            os.environ.get("PREFECT_PROFILES_PATH")
            or Path(os.environ.get("PREFECT_HOME", "~/.prefect")) / "profiles.toml"
        )
        file = f"Prefect cannot read its settings ({type(error).__name__}: {error}): correct {place}, or move it away"
        print(f"{PROBLEM}{variables_to_blame(error) or file}")


if __name__ == "__main__":
    main()
