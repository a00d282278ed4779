"""The real kills: what their checks call wrong, and that a killed `up` is started again."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

from kill_checks import contents, differences, wrong_in_prefect
from kill_servers import Ports, Servers
from kill_tables import read_batches, tables, write_batches
from kill_targets import Site
from kills import Batch

from charengine.machine.locks import if_free

NAMES = ["Aya", "Bo"]
# two characters that were given one sheet: they share its result, and that of its views
KEYS = ("sheet-1", "crop-1", "caption-1", "caption-2", "train-1", "train-2", "sweep-1", "sweep-2")
UNDISTURBED = {
    "results": {key: f"digest of {key}" for key in KEYS},
    "files": {"runs/aya/a.png": "1", "runs/bo/b.png": "2"},
}


def night(**changed: str | None) -> dict[str, Any]:
    """An undisturbed night, but for these results: None, it was not made."""
    results = {**UNDISTURBED["results"], **{key.replace("_", "-"): digest for key, digest in changed.items()}}
    return {**UNDISTURBED, "results": {key: digest for key, digest in results.items() if digest is not None}}


def test_a_night_that_made_what_the_undisturbed_one_made_has_nothing_wrong() -> None:
    assert differences(night(), UNDISTURBED, NAMES) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sheet_1": None}, ["results: 0 of sheet, not 1"]),
        ({"train_2": None}, ["results: 1 of train, not 2"]),
        ({"train_2": "other bytes"}, ["result train-2: differs"]),
        ({"crop_2": "more"}, ["result crop-2: made under a key of no other night", "results: 2 of crop, not 1"]),
    ],
    ids=["one missing", "one of two missing", "other bytes", "one too many"],
)
def test_a_result_that_is_missing_or_too_many_or_differs_is_told(changed: dict[str, Any], told: list[str]) -> None:
    assert differences(night(**changed), UNDISTURBED, NAMES) == told


class Asked(Site):
    """A night's runs in Prefect: how each batch that was asked for ended, how often Bo was completed, a task of whose was left open."""

    def __init__(self, folder: Path, batches: list[str], completed: int, left: str = "") -> None:
        super().__init__(folder)
        named = [("batch: 2 characters", state, {}) for state in batches]
        named += [("Bo", "COMPLETED", {"prompt": "an orc"})] * completed + [("Bo", "CRASHED", {"prompt": "an orc"})]
        self._left = left
        self._runs = [
            {"id": str(number), "name": name, "state_name": state, "state_type": state, "parameters": parameters}
            for number, (name, state, parameters) in enumerate(named)
        ]

    def runs(self) -> list[dict[str, Any]]:
        return self._runs

    def api(self, path: str, body: dict[str, Any]) -> Any:
        states = body.get("task_runs", {}).get("state", {}).get("type", {}).get("any_", [])
        runs = [run for run in self._runs if run["state_type"] == self._left and self._left]
        open_ones = [{"name": "crop", "flow_run_id": run["id"], "state_name": "Retrying"} for run in runs[:1]]
        return open_ones if "SCHEDULED" in states else []


@pytest.mark.parametrize(
    ("batches", "completed", "told"),
    [
        (["COMPLETED"], 1, []),
        (["COMPLETED"], 2, ["Prefect: Bo was completed 2 times"]),
        (["COMPLETED"], 0, ["Prefect: Bo was completed 0 times"]),
        (["CRASHED", "COMPLETED"], 1, []),
        (["CRASHED", "COMPLETED"], 2, []),
        (["CRASHED", "COMPLETED"], 3, ["Prefect: Bo was completed 3 times"]),
        (["CRASHED", "FAILED", "COMPLETED"], 3, []),
        (["CRASHED", "FAILED", "COMPLETED"], 4, ["Prefect: Bo was completed 4 times"]),
    ],
)
def test_a_character_may_be_completed_once_for_each_time_its_cast_was_asked_for_and_no_more(
    tmp_path: Path, batches: list[str], completed: int, told: list[str]
) -> None:
    assert wrong_in_prefect(Asked(tmp_path, batches, completed), ["Bo"]) == told


@pytest.mark.parametrize("left", ["COMPLETED", "CRASHED"])
def test_a_task_left_open_is_told_whatever_became_of_its_run(tmp_path: Path, left: str) -> None:
    (said,) = wrong_in_prefect(Asked(tmp_path, ["COMPLETED"], 1, left), ["Bo"])
    assert said == f"Prefect: task crop of a run that is {left} is Retrying"


def pids(site: Site) -> dict[str, list[int]]:
    return {kind: [one.pid for one in processes] for kind, processes in site.processes().items() if processes}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_process_in_waiting_is_a_flow_from_the_moment_it_takes_a_run(tmp_path: Path) -> None:
    class Told(Site):
        host = ""

        def runs(self) -> list[dict[str, Any]]:
            return [
                {"id": "other", "infrastructure_pid": None},
                {"id": "its", "infrastructure_pid": f"{self.host}{flow.pid}"},
            ]

    site = Told(tmp_path)
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)", "-m", "deployments.standby", "flows.character"]
    own = {**os.environ, "CHARENGINE_HOME": str(site.home.root)}
    waiting, flow = (
        subprocess.Popen(sleeping, env=own, stdin=given) for given in (subprocess.PIPE, subprocess.DEVNULL)
    )
    try:
        deadline = time.monotonic() + 30
        while len(found := pids(site)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # the system shows a process that has just begun without its words for a moment
        assert (found["standby"], found["flow"]) == ([waiting.pid], [flow.pid])
        for site.host in ("", "host:"):
            assert (site.run_of(flow.pid), site.run_of(waiting.pid)) == ("its", "")
    finally:
        for process in (waiting, flow):
            process.kill()
            process.communicate()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_the_stage_under_way_is_the_one_whose_lock_is_held_not_a_runs_or_mlflows(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.home.locks.mkdir(parents=True)
    with ExitStack() as held:
        for name in ("mlflow-runs", "run-0f"):
            assert held.enter_context(if_free(site.home.locks / f"{name}.lock", make=True))
        assert site.stage_of(os.getpid()) == ""
        assert held.enter_context(if_free(site.home.locks / "train-0f.lock", make=True))
        assert site.stage_of(os.getpid()) == "train"


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_killed_up_is_started_again_and_its_time_is_taken(tmp_path: Path) -> None:
    class Fake(Site):
        starts = 0

        def start(self) -> None:
            self.starts += 1
            self.popen = subprocess.Popen(["sleep", "60"])

        def processes(self) -> dict[str, list[psutil.Process]]:
            return {"flow": []}

    batch, site = Batch.__new__(Batch), Fake(tmp_path)
    batch.site, batch.kills, batch.notes, batch.dice = site, [], [], random.Random(1)
    site.start()
    try:
        batch._kill("up", psutil.Process(site.popen.pid), wait=True)
        assert (site.starts, site.has_ended(), batch.kills[0]["what"]) == (2, False, "up")
    finally:
        site.popen.kill()
        site.popen.wait()


def test_a_server_of_before_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """One that an earlier batch left would answer in place of the one that is killed."""
    with socket.socket() as left:
        left.bind(("127.0.0.1", 0))
        left.listen()
        port = left.getsockname()[1]
        with pytest.raises(RuntimeError, match=rf"ports \[{port}\] are taken"):
            Servers(tmp_path, Ports(port)).start()


def test_files_that_two_machines_made_otherwise_are_not_those_of_the_undisturbed_night(tmp_path: Path) -> None:
    class Two(Site):
        @property
        def works(self) -> list[Path]:
            return [self.folder / "m1", self.folder / "m2"]

    for machine, made in (("m1", b"bytes"), ("m2", b"bytes")):
        (tmp_path / machine / "runs" / "aya").mkdir(parents=True)
        (tmp_path / machine / "runs" / "aya" / "a.png").write_bytes(made)
    same = contents(Two(tmp_path))["files"]
    (tmp_path / "m2" / "runs" / "aya" / "a.png").write_bytes(b"others")
    assert contents(Two(tmp_path))["files"] == {"runs/aya/a.png": "differs between machines"} != same


def test_batches_are_read_as_they_were_written_and_counted_by_what_was_killed_where(tmp_path: Path) -> None:
    killed: dict[str, Any] = {"what": "flow", "stage": "train", "seconds": 4.5, "waited": True}
    batch = {"seed": 3, "kills": [killed, {**killed, "seconds": None}], "wrong": ["a lease"]}
    assert read_batches(tmp_path / "kills.json") == []
    write_batches(tmp_path / "kills.json", [batch])
    assert read_batches(tmp_path / "kills.json") == [batch]
    said = tables([batch])
    assert "| flow | 1 | 4.5 | 4.5 | 1 |" in said and "seed 3: a lease" in said
