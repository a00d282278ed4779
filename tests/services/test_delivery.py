"""`charengine up` has MLflow told what waits: one process at a time, not too often, once more at its end, and whatever happens it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from charengine.machine.home import Home
from charengine.services import delivery as module
from charengine.services import up
from charengine.services.children import Children
from charengine.services.delivery import Delivery
from charengine.services.stopping import is_stopping
from charengine.services.up import Addresses, Up

# notes that it began, then takes what waits away, as the real one does when MLflow takes it
FAKE = """
import os, pathlib, time
home = pathlib.Path(os.environ["CHARENGINE_HOME"])
with (home / "began").open("a") as file:
    file.write("began\\n")
print("said by the delivery")
time.sleep(float(os.environ.get("LASTS", "0")))
if (home / "answers").exists():
    (home / "waits").unlink(missing_ok=True)
"""


@pytest.fixture
def delivery(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Delivery]:
    (tmp_path / "a_delivery.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(module, "COMMAND", "a_delivery")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "something_waits", lambda place: (place.root / "waits").exists())
    monkeypatch.setattr(module, "answers", lambda url: (home.root / "answers").exists())
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    made = Delivery(home, "http://mlflow.here", {**os.environ, "PYTHONPATH": path})
    (home.root / "waits").touch()
    (home.root / "answers").touch()
    yield made
    made._end()


def began(home: Home) -> int:
    file = home.root / "began"
    return file.read_text(encoding="utf-8").count("began") if file.exists() else 0


def look_until(delivery: Delivery, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        delivery.look()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_waits_is_delivered_once_mlflow_answers_and_nothing_is_begun_for_nothing(
    delivery: Delivery, home: Home
) -> None:
    (home.root / "answers").unlink()
    for _ in range(3):
        delivery.look()
    assert delivery._popen is None
    (home.root / "answers").touch()
    look_until(delivery, lambda: not (home.root / "waits").exists() and not delivery._is_under_way())
    for _ in range(3):
        delivery.look()
    assert began(home) == 1 and "said by the delivery" in (home.logs / "mlflow-delivery.log").read_text()


def test_there_is_one_delivery_at_a_time_and_one_that_hangs_is_ended(
    delivery: Delivery, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery.environment = {**delivery.environment, "LASTS": "600"}
    look_until(delivery, lambda: began(home) == 1)
    process = delivery._popen
    for _ in range(5):
        delivery.look()
    assert process and delivery._popen is process and process.poll() is None
    monkeypatch.setattr(module, "LONGEST_DELIVERY", 0.0)
    delivery.look()
    assert process.poll() is not None


def test_while_something_is_left_the_next_delivery_waits_longer_each_time(
    delivery: Delivery, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "PAUSE", 30.0)
    starts: list[float] = []
    monkeypatch.setattr(delivery, "_begin", lambda: starts.append(now[0]))
    for _ in range(2000):
        delivery.look()
        now[0] += 0.5
    assert [later - earlier for earlier, later in zip(starts, starts[1:], strict=False)] == [
        30.0,
        60.0,
        120.0,
        240.0,
        480.0,
    ]


def test_a_delivery_that_cannot_be_begun_is_no_end_of_up(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(module, "spawn", full)
    delivery.look()
    delivery.finish(lambda: None)
    assert caplog.text.count("no more processes") == 2


def test_at_the_end_mlflow_is_waited_for_and_told_once(delivery: Delivery, home: Home) -> None:
    (home.root / "answers").unlink()

    def start_mlflow_again() -> None:
        if delivery._popen is None:
            (home.root / "answers").touch()

    delivery.finish(start_mlflow_again)
    assert began(home) == 1 and not (home.root / "waits").exists()
    delivery.finish(lambda: None)
    assert began(home) == 1  # nothing waits any more


def test_at_the_end_one_that_hangs_is_ended_in_time_and_no_other_begun(
    delivery: Delivery, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery.environment = {**delivery.environment, "LASTS": "600"}
    delivery._begin()
    process = delivery._popen
    monkeypatch.setattr(module, "LAST_SECONDS", 0.5)
    started = time.monotonic()
    delivery.finish(lambda: None)
    assert process and process.poll() is not None and delivery._popen is None and began(home) <= 1
    assert time.monotonic() - started < 30


def noted(ending: list[bool], home: Home) -> Callable[[Children, str], None]:
    """`Children.end_families`, which notes whether the home is ending."""
    real = Children.end_families

    def end_families(children: Children, named: str = "") -> None:
        ending.append(is_stopping(home))
        real(children, named)

    return end_families


def test_up_delivers_while_it_runs_and_when_its_workers_have_ended_and_mlflow_has_not(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, list[str]]] = []
    deadline = time.monotonic() + 20
    running = Up(home, Addresses(1, 2), 0, lambda: bool(said) or time.monotonic() > deadline)
    names = lambda: [child.name for child in running.children.running]  # noqa: E731
    for name in ("mlflow-server", "worker-0", "worker-orchestrate"):
        running.children.start(name, ["timeit", "-n", "1", "import time; time.sleep(60)"], running._environment())
    ending: list[bool] = []
    monkeypatch.setattr(up, "cancel_active_runs", lambda api, seconds: said.append(("cancelled", names())))
    monkeypatch.setattr(up, "give_back_runs", lambda api: said.append(("given back", names())))
    monkeypatch.setattr(Delivery, "look", lambda self: said.append(("looked", names())))
    monkeypatch.setattr(Children, "end_families", noted(ending, home))
    monkeypatch.setattr(Delivery, "finish", lambda self, meanwhile: said.append(("delivered", names())))
    running.watch()
    running.stop()
    everything = ["mlflow-server", "worker-0", "worker-orchestrate"]
    assert said == [
        ("looked", everything),
        ("cancelled", everything),
        ("given back", ["mlflow-server"]),
        ("delivered", ["mlflow-server"]),
    ]
    assert ending == [True, False]  # of the workers, of the servers: no run is taken while they are ended
    assert names() == [] and running.delivery.environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:2"
