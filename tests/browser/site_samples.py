"""Everything that `charengine up` serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from command_line import child_environment
from prefect_samples import Server

from charengine.machine.home import Home
from charengine.services.up import remembered_ports

PATIENCE = 300.0


@dataclass
class Site:
    """What `up` serves, and how the settings of quick runs are called."""

    home: Home
    folder: Path
    settings: tuple[str, ...]
    sheet: Path
    address: str = ""

    @property
    def prefect(self) -> Server:
        """Prefect's server."""
        return Server(self.home, f"http://127.0.0.1:{remembered_ports(self.home)['prefect']}/api")

    @property
    def mlflow(self) -> str:
        """MLflow's address."""
        return f"http://127.0.0.1:{remembered_ports(self.home)['mlflow']}"


@contextmanager
def up(home: Home, *ports: object) -> Iterator[str]:
    """Everything, until left; the gallery's address."""
    command = [sys.executable, "-m", "charengine.cli", "up", *map(str, ports)]
    folder = home.root.parent
    with (folder / "up.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=child_environment(home), cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not home.services_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "up.log").read_text(
                encoding="utf-8"
            )
            time.sleep(0.2)
        yield f"http://127.0.0.1:{remembered_ports(home)['gallery']}"
    finally:
        os.kill(process.pid, signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def one_figure(to: Path) -> None:
    """A picture of one character of the embedded family's world."""
    import torch

    from charengine.embedded import probe
    from charengine.embedded.shape import PICTURE_SIZE
    from charengine.embedded.traits import BACKGROUNDS, POSES, sample_indices
    from charengine.embedded.world import render

    who = sample_indices(1, torch.Generator().manual_seed(7))
    pose, white = (
        torch.tensor([names.index(name)])
        for names, name in ((POSES, "standing"), (BACKGROUNDS, "plain white background"))
    )
    drawn = render(who, yaw=torch.tensor([0.3]), pose=pose, background=white, size=PICTURE_SIZE, framing=0.95)
    probe.to_images(drawn.image)[0].save(to)
