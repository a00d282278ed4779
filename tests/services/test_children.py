"""What `up` keeps running: a child that ends is started again, one that cannot stay up is given up with its last words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from charengine.errors import StageFailed
from charengine.machine.home import Home
from charengine.services import children as module
from charengine.services.children import Children
from charengine.services.up import remembered_ports

MODULE = """
import os, sys, time
with open(sys.argv[1], "a") as file:
    file.write("started\\n")
print("last words")
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Children]:
    (tmp_path / "a_child.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    made = Children(tmp_path)
    yield made
    made.end()


def start(children: Children, folder: Path, name: str, seconds: float) -> None:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    children.start(name, ["a_child", folder / name, seconds], {**os.environ, "PYTHONPATH": path})


def until(ready: Callable[[], bool], children: Children) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        children.restart_ended()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def starts(file: Path) -> int:
    return file.read_text(encoding="utf-8").count("started") if file.exists() else 0


def test_what_a_child_said_the_last_times_is_kept(
    children: Children, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        start(children, tmp_path, "worker-0", 0)
        children.running[-1].popen.wait(30)
    assert "last words" in (tmp_path / "worker-0.log").read_text()
    assert [path.read_text() for path in tmp_path.glob("worker-0.*log*") if path.name != "worker-0.log"] == [
        "last words\n"
    ]
    assert not caplog.records  # a first start warns of no log that it could not keep


def test_a_child_that_is_killed_is_started_again_and_the_others_go_on(children: Children, tmp_path: Path) -> None:
    start(children, tmp_path, "worker-0", 600)
    start(children, tmp_path, "mlflow-server", 600)
    until(lambda: starts(tmp_path / "worker-0") == 1 and starts(tmp_path / "mlflow-server") == 1, children)
    other = children.running[1].popen.pid
    children.running[0].popen.kill()
    until(lambda: starts(tmp_path / "worker-0") == 2, children)
    assert children.running[1].popen.pid == other
    assert children.running[0].popen.poll() is None


def test_a_child_that_ends_again_and_again_is_given_up_with_its_last_words(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RESTARTS", 2)
    start(children, tmp_path, "worker-0", 0)
    with pytest.raises(StageFailed, match=r"worker-0 ended 3 times[\s\S]*last words"):
        until(lambda: False, children)
    assert starts(tmp_path / "worker-0") == 3


def test_ports_of_the_last_time_are_taken_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    assert remembered_ports(home) == {"gallery": 4300, "prefect": 4200, "mlflow": 5000}
    home.ports_file.write_text('{"prefect": 4711, "mlflow": 5001}', encoding="utf-8")
    assert remembered_ports(home) == {"gallery": 4300, "prefect": 4711, "mlflow": 5001}
    home.ports_file.write_text("damaged", encoding="utf-8")
    assert remembered_ports(home) == {"gallery": 4300, "prefect": 4200, "mlflow": 5000}


PARENT = """
import pathlib, subprocess, sys, time
held = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(held.pid))
time.sleep(600)
"""


def with_a_child_of_its_own(children: Children, folder: Path, home: Path) -> int:
    """The process id of what a server's process has started, as MLflow's does; it holds the port."""
    (folder / "a_parent.py").write_text(PARENT, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "CHARENGINE_HOME": str(home)}
    children.start("mlflow-server", ["a_parent", folder / "held"], environment)
    until(lambda: (folder / "held").exists() and (folder / "held").read_text() != "", children)
    return int((folder / "held").read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_a_killed_child_left_running_is_ended_before_it_is_started_again(
    children: Children, tmp_path: Path
) -> None:
    held = with_a_child_of_its_own(children, tmp_path, tmp_path)
    (tmp_path / "held").unlink()
    children.running[0].popen.kill()
    until(lambda: (tmp_path / "held").exists() and (tmp_path / "held").read_text() != "", children)
    assert gone(held)
    assert int((tmp_path / "held").read_text()) != held


def test_what_a_killed_up_left_running_is_ended_by_the_next_one_of_that_home(
    children: Children, tmp_path: Path
) -> None:
    held = with_a_child_of_its_own(children, tmp_path, tmp_path)
    Children(tmp_path).end_left(tmp_path / "another home")
    assert not gone(held)
    Children(tmp_path).end_left(tmp_path)
    until(lambda: gone(held), children)
