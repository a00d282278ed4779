"""What many machines share, for real: PostgreSQL, Redis and SeaweedFS's S3 below Prefect and MLflow, each of which is killed and comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

from command_line import ROOT
from kill_servers import Ports, Servers, missing_programs
from nights.open_tasks import PrefectApi as OfTheNights
from nights.open_tasks import told

from charengine.machine import leases
from charengine.machine.home import Home
from charengine.machine.leases import InStore, lease
from charengine.machine.shared import PRUNING
from charengine.records import Ref
from charengine.services import prune_shared, sizes_shared, unheard
from charengine.services.prefect_api import PrefectApi
from charengine.services.prune import OBJECTS
from charengine.store import Store

FIRST_PORT = 13_000  # with ten for each of pytest's processes
BACK_SECONDS = 120.0
MISSING = missing_programs()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(600),
]
HOLD = (
    "import sys, time\nfrom charengine.machine import leases\nfrom charengine.store import Store\n"
    "leases.this_host = lambda: 'm2'\n"
    "with leases.lease(leases.InStore(Store(sys.argv[1]), 'train-0.lock'), 'x'):\n    print('held', flush=True); time.sleep(300)"
)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # not among pytest's own folders, which each further pytest closes to other users: PostgreSQL is one, and is started again here
    folder = Path(tempfile.mkdtemp(prefix="charengine-servers-"))
    folder.chmod(0o755)
    running = Servers(folder / "all", Ports(FIRST_PORT + 10 * number))
    running.start()
    yield running
    running.stop(gently=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of this test's own in the bucket."""
    for name, value in servers.credentials.items():
        monkeypatch.setenv(name, value)
    return Store(f"{servers.store}-{uuid.uuid4().hex[:8]}")


def until(question: object, seconds: float = BACK_SECONDS) -> None:
    """Wait for a yes."""
    deadline = time.monotonic() + seconds
    while not question():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.3)


def test_the_store_keeps_gives_and_forgets_on_s3_as_in_a_folder(store: Store, tmp_path: Path) -> None:
    ref = store.put(b"bytes", "a.png")
    assert store.get(ref) == b"bytes" and store.has(ref) and store.path(ref) is None
    store.put_result("sheet-1", ref)
    store.put_result("sweep-1/cell-1", ref)
    assert store.result("sheet-1", Ref) == ref and store.result("sheet-2", Ref) is None
    store.drop_parts("sweep-1")
    assert not store.has_result("sweep-1/cell-1") and store.has_result("sheet-1")
    store.drop(ref)
    assert not store.has(ref)
    store.write_state(tmp_path / "m1" / "train-0", "state", b"step 2")
    store.take_state(tmp_path / "m2" / "train-0")
    assert (tmp_path / "m2" / "train-0" / "state").read_bytes() == b"step 2"
    store.drop_state(tmp_path / "m2" / "train-0")
    store.take_state(tmp_path / "m1" / "train-0")
    assert list((tmp_path / "m1" / "train-0").iterdir()) == []


def test_a_lease_on_s3_is_anothers_until_its_dead_holder_has_been_silent_for_long_enough(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 8.0)
    monkeypatch.setattr(leases, "LOOK_EVERY", 0.2)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with leases.lease_if_free(InStore(store, "train-0.lock")) as free:
            assert not free
    finally:
        holder.kill()
        holder.communicate()
    began = time.monotonic()
    with lease(InStore(store, "train-0.lock"), "x") as waited:
        assert waited and time.monotonic() - began > 7.0


def test_prune_removes_from_s3_what_nothing_refers_to_and_what_another_machine_wants_meanwhile_is_there(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_shared, "GRACE", 0.0)  # what is not written now is old
    monkeypatch.setattr("charengine.store.YOUNG", 0.0)
    monkeypatch.setattr(leases, "LOOK_EVERY", 0.2)
    key = "train-" + "0" * 40
    orphans = [store.put(f"orphan {number}".encode(), "a.bin") for number in range(5)]
    wanted = store.put(b"wanted", "b.bin")
    store.put_result(key, wanted)
    store.put_result(f"{key}/cell", wanted)
    with lease(InStore(store, f"{key}.lock"), "x"):
        assert not prune_shared._removed_under_its_lease(store, next(prune_shared._progress(store, set())))
    time.sleep(1.1)  # S3 tells whole seconds
    there = Store(store.url)
    there.after_prune = lambda: leases.wait_until_free(InStore(there, PRUNING), "x")
    wants, drop = threading.Thread(target=lambda: there.put(b"orphan 0", "a.bin")), store.drop_files

    def drop_late(paths: list[str]) -> None:
        if any(orphans[0].sha256 in path for path in paths):
            wants.start()
            time.sleep(2)  # it is written anew, and waits
        drop(paths)

    monkeypatch.setattr(store, "drop_files", drop_late)
    seen = prune_shared.leftovers(store, home)
    gone = prune_shared.remove(store, home)
    wants.join(60)
    assert Counter(item.kind for item in seen)[OBJECTS] == 5
    assert sorted(item.path[-64:] for item in gone if item.kind == OBJECTS) == sorted(ref.sha256 for ref in orphans)
    assert there.get(orphans[0]) == b"orphan 0" and not any(store.has(ref) for ref in orphans[1:])
    assert store.get(wanted) == b"wanted" and store.has_result(key) and not store.has_result(f"{key}/cell")


def test_the_size_of_a_store_on_s3_is_counted(store: Store) -> None:
    refs = [store.put(bytes(1000 + number), "a.bin") for number in range(3)]
    counted = sizes_shared.count(lambda: store, {refs[1].sha256}, seconds=60)
    assert (counted.problem, counted.bytes["sha256"], counted.objects) == ("", 3003, {refs[1].sha256: 1001})


def test_what_is_written_while_the_s3_server_is_away_waits_for_it_and_what_it_had_is_there(
    servers: Servers, store: Store
) -> None:
    before = store.put(b"before", "a.bin")
    servers.kill("S3")
    during = store.put(b"during", "b.bin")
    assert (store.get(before), store.get(during)) == (b"before", b"during")


def test_tasks_left_open_are_ended_once_and_for_all_on_postgresql_and_redis_too(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unheard, "FLOWS", ["ours"])
    assert told(PrefectApi(servers.prefect_api), "ours") == told(OfTheNights(), "ours")


@pytest.mark.parametrize("name", ["PostgreSQL", "Redis"])
def test_prefect_goes_on_once_what_is_below_it_is_back(servers: Servers, name: str) -> None:
    api = PrefectApi(servers.prefect_api)
    made = api.post("work_pools/", {"name": f"before-{name}", "type": "process"})
    servers.kill(name)
    until(lambda: servers.answers(name))

    def goes_on() -> bool:
        try:
            names = {pool["name"] for pool in api.post("work_pools/filter", {})}
            return made["name"] in names and bool(
                api.post("work_pools/", {"name": uuid.uuid4().hex, "type": "process"})
            )
        except OSError:
            return False

    until(goes_on)


def test_what_mlflow_is_told_on_postgresql_and_s3_is_there_after_its_database_was_killed(
    servers: Servers, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from charengine.tracking.open_tracker import open_tracker
    from charengine.tracking.protocol import closing

    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    client = MlflowClient(tracking_uri=servers.mlflow)

    def is_there_at_all() -> bool:
        try:
            return bool(client.search_experiments())
        except Exception:  # its database was killed by another test
            return False

    until(is_there_at_all)
    key = f"run-{uuid.uuid4().hex}"
    tracker = open_tracker(home, project="charengine", name="Aya", key=key, params={"a": 1}, tags={})
    with closing(tracker):
        tracker.log_metrics({"train/loss": 0.5}, 1)
        tracker.log_bytes(b"<html>", "report/report.html")
    assert tracker.run_id
    servers.kill("PostgreSQL")

    def is_there() -> bool:
        try:
            run = client.get_run(tracker.run_id or "")
            kept = Path(client.download_artifacts(tracker.run_id or "", "report/report.html")).read_bytes()
        except Exception:  # whatever its library raises while the server has no database
            return False
        return (run.info.status, run.data.metrics["train/loss"], kept) == ("FINISHED", 0.5, b"<html>")

    until(is_there)
