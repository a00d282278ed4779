"""Real kills: a night's work of `charengine up` while its processes are killed at random, and what must be true in the end.

    python benchmarks/kills.py --batches 5 --kills 10       # the next five batches, one after the other
    python benchmarks/kills.py --batches 30 --jobs 10       # ten at a time, each with ports of its own: two cores for each
    python benchmarks/kills.py --table                      # the counts and the recovery table of all batches so far

Each batch is a seed: a fresh home, `charengine up`, a cast asked for as the nightly schedule does, then `kill -9` of a
worker, a flow, Prefect's server, MLflow's or `up` itself (which is started again, as a service manager would) at moments
drawn from the seed. A cast whose parent was killed is asked for again, as a user would. When all characters are there the
checks of kill_checks.py are made, `up` is ended with Ctrl-C and the rest of them made. Each batch is added to a JSON file
whose counts add up; what is killed besides (a database, a store) is named with --also.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import psutil  # noqa: E402
from kill_checks import (  # noqa: E402
    contents,
    differences,
    left_behind,
    open_tasks,
    read_contents,
    wrong_in_mlflow,
    wrong_in_prefect,
)
from kill_machines import MACHINE, SERVERS, Studio  # noqa: E402
from kill_tables import read_batches, tables, write_batches  # noqa: E402
from kill_targets import STANDBY, Site, seconds_until  # noqa: E402
from quick_settings import QUICK  # noqa: E402

from charengine.services.prefect_api import ENDED  # noqa: E402
from charengine.services.up import PORTS  # noqa: E402

STEPS = 6  # of QUICK's training
NAMES = ("Aya", "Bo")
PARTS = {"edit": "qwen", "sdxl": "sdxl", "clip": "clip"}
ON_ONE_MACHINE = {
    "flow": 8,
    "worker": 4,
    "batch worker": 2,
    "Prefect": 3,
    "MLflow": 4,
    "gallery": 1,
    "up": 2,
    STANDBY: 1,
}
ON_MANY = {"flow": 8, "worker": 4, "batch worker": 2, STANDBY: 1, MACHINE: 3} | dict.fromkeys(SERVERS, 3)
PAUSE = (1.0, 10.0)  # seconds between the end of one recovery and the next kill
IMPATIENT = 0.25  # share of kills after which the next one does not wait for the recovery
AIMED = 0.5  # share of kills that wait for a stage to be under way: most of a quick night is between
AIM_SECONDS = 15.0  # that they wait
SETTLE_SECONDS = 1500.0
HEARD_SECONDS = 240.0  # twice what is promised
FIRST_PORT = 20_000
PORTS_TRIED = 100  # by `up`, from the one it asks for on
MOST_ASKED = 8  # times that a cast is asked for


def main() -> int:
    """Make batches, or say what all of them showed; 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10, help="at most, a batch")
    parser.add_argument("--seed", type=int, help="of the first batch; default: the one after the last in the results")
    parser.add_argument("--jobs", type=int, default=1, help="batches at a time")
    parser.add_argument("--until", default="", help="no batch is begun after this time of day, HH:MM")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "charengine-kills")
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/kills-one-machine.json, or kills-many-machines.json"
    )
    parser.add_argument("--also", action="append", default=[], metavar="NAME=TEXT", help="kill this too")
    parser.add_argument("--environment", action="append", default=[], metavar="NAME=VALUE", help="for every process")
    parser.add_argument(
        "--nice", type=int, default=10, help="0 where other work would otherwise keep it from the processor"
    )
    parser.add_argument(
        "--many", action="store_true", help="three machines with PostgreSQL, Redis and S3, all killed too"
    )
    parser.add_argument("--table", action="store_true", help="print the tables and do nothing")
    arguments = parser.parse_args()
    usual = "kills-many-machines.json" if arguments.many else "kills-one-machine.json"
    out = arguments.out or Path("benchmarks/results") / usual
    batches = read_batches(out)
    if not arguments.table:
        os.nice(max(0, arguments.nice - os.nice(0)))
        also = {name: (text,) for name, _, text in (one.partition("=") for one in arguments.also)}
        environment = dict(one.split("=", 1) for one in arguments.environment)
        template = Template(arguments.folder / ("many" if arguments.many else "one"), environment, arguments.many)
        template.make()
        first = arguments.seed if arguments.seed is not None else max([one["seed"] for one in batches], default=0) + 1

        def make(seed: int, place: int) -> dict[str, Any] | None:
            if arguments.until and time.strftime("%H:%M") >= arguments.until:
                return None
            return Batch(seed, arguments.kills, template, environment, also, place).run()

        for told in several_at_a_time(make, range(first, first + arguments.batches), arguments.jobs):
            if told is not None:
                batches.append(told)
                write_batches(out, batches)
    print("\n".join(tables(batches)))
    return int(any(one["wrong"] for one in batches))


def several_at_a_time(
    make: Callable[[int, int], dict[str, Any] | None], seeds: Iterable[int], jobs: int
) -> Iterator[dict[str, Any] | None]:
    """What `make(seed, place)` gave, as it comes; no two at a time have the same place of 0 to jobs - 1."""
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(jobs):
        places.put(place)

    def one(seed: int) -> dict[str, Any] | None:
        place = places.get()
        try:
            return make(seed, place)
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(one, seed) for seed in seeds]):
            yield future.result()


class Template:
    """A home whose databases are made, and the content of an undisturbed night; both made once a folder.

    Args:
        folder: where.
        environment: for all processes.
        many: machines, instead of one.
    """

    def __init__(self, folder: Path, environment: dict[str, str], many: bool = False) -> None:
        self.folder, self._environment, self.many = folder, environment, many
        self.expected: dict[str, Any] = {}
        self.cast: list[dict[str, Any]] = []

    def make(self) -> None:
        """Make what is missing."""
        content = self.folder / "undisturbed.json"
        family, sheet = self.folder / "family", self.folder / "sheet.png"
        settings = [f"models.{part}={family / name}" for part, name in PARTS.items()]
        overrides = [*settings, *QUICK]
        prompts = [f"an orc woman with a coat, called {name}" for name in NAMES]
        self.cast = [
            {"name": name, "prompt": prompt, "sheet": str(sheet), "overrides": overrides}
            for name, prompt in zip(NAMES, prompts, strict=True)
        ]
        if not content.exists():
            if not (self.folder / "template").exists():
                self._models(family, sheet)
                site = self._site("template")
                site.start()
                site.stop()
                site.end_all(gently=True)
            content.write_text(json.dumps(self._undisturbed(), indent=1))
        self.expected = read_contents(content)

    def _undisturbed(self) -> dict[str, Any]:
        """What a night makes in which nothing is killed."""
        quiet, names = self.copy("undisturbed"), list(NAMES)
        try:
            quiet.start()
            quiet.ask(self.cast, "undisturbed")
            wrong = wait_until_made(quiet, names)
            wait_until_heard(quiet)
            wrong += wrong_in_prefect(quiet, names)
            quiet.stop()
            caches = sorted({path.name for folder in quiet.temporaries for path in folder.iterdir()})
            wrong += wrong_in_mlflow(quiet, names, STEPS) + left_behind(quiet, caches)
            found = contents(quiet) | {"caches": caches}
        finally:
            quiet.end_all()
        if wrong:
            raise SystemExit("not all is well without a kill:\n" + "\n".join(wrong))
        shutil.rmtree(quiet.folder)
        return found

    def _models(self, family: Path, sheet: Path) -> None:
        """The embedded family's classes with random weights, and the sheet that such models cannot draw."""
        from sheet_samples import Sheet, paint

        from charengine.embedded.making.family import build_random_family

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        build_random_family(family, tiny=True)
        paint(Sheet()).save(sheet)

    def copy(self, name: str, place: int = 0) -> Site:
        """A site with a fresh home, whose servers ask for ports that no other place asks for."""
        site = self._site(name, place)
        shutil.rmtree(site.folder, ignore_errors=True)
        if self.many:
            subprocess.run(
                ["cp", "-a", f"{self.folder / 'template'}", f"{site.folder}"], check=True
            )  # with whose they are
            return site
        shutil.copytree(self.folder / "template" / "home", site.home.root)
        first = FIRST_PORT + place * len(PORTS) * PORTS_TRIED
        ports = {service: first + number * PORTS_TRIED for number, service in enumerate(PORTS)}
        site.home.ports_file.write_text(json.dumps(ports))
        return site

    def _site(self, name: str, place: int = 0) -> Site:
        if self.many:
            return Studio(self.folder / name, self._environment, place=place)
        return Site(self.folder / name, self._environment)


def wait_until_made(site: Site, names: list[str]) -> list[str]:
    """Wait until each character was completed and nothing runs; what is missing when that takes too long."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        runs = site.runs()
        done = {run["name"] for run in runs if run["state_type"] == "COMPLETED"}
        if done >= set(names) and all(run["state_type"] in ENDED for run in runs):
            return []
        time.sleep(1.0)
    left = [f"{run['name']} is {run['state_name']}: {(run['state'] or {}).get('message')}" for run in site.runs()]
    return [f"not all was made within {SETTLE_SECONDS:.0f} s: {left}"]


def wait_until_heard(site: Site) -> list[str]:
    """Wait until Prefect heard how each task ended, or gave up on it; a note when that took long."""
    started, first = time.monotonic(), len(open_tasks(site))
    while open_tasks(site) and time.monotonic() < started + HEARD_SECONDS:
        time.sleep(1.0)
    seconds = time.monotonic() - started
    return (
        [f"{first} tasks were open when all was made, {len(open_tasks(site))} after {seconds:.0f} s"] if first else []
    )


class Batch:
    """One night with kills.

    Args:
        seed: decides the order of the cast, what is killed and the pauses.
        most: kills at most; fewer when the cast is made before.
        template: where fresh homes come from.
        environment: for all processes.
        also: further things to kill.
        place: of the batches made at the same time, which.
    """

    def __init__(
        self,
        seed: int,
        most: int,
        template: Template,
        environment: dict[str, str],
        also: dict[str, tuple[str, ...]],
        place: int = 0,
    ) -> None:
        self.seed, self.most, self.template, self.also = seed, most, template, also
        self.dice = random.Random(seed)
        self.cast = self.dice.sample(template.cast, len(template.cast))
        self.kills: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.asked = 0
        self.batch_run = ""
        self.site = template.copy(f"seed-{seed}", place)
        self.site.also = also

    def run(self) -> dict[str, Any]:
        """Kill, wait, check; what came of it."""
        started = time.monotonic()
        wrong: list[str] = []
        names = [one["name"] for one in self.cast]
        try:
            self.site.start()
            self._ask()
            self._kill_and_recover()
            wrong += self._wait_until_made()
            self.notes += wait_until_heard(self.site)
            wrong += wrong_in_prefect(self.site, names)
            stopped = self.site.stop()
            wrong += wrong_in_mlflow(self.site, names, STEPS) + left_behind(self.site, self.template.expected["caches"])
            wrong += differences(contents(self.site), self.template.expected, names)
        except Exception as error:  # the batch is kept as failed, and the next one begins
            stopped = 0.0
            wrong.append(f"{type(error).__name__}: {error}")
        finally:
            self.site.end_all()
        told = {"seed": self.seed, "kills": self.kills, "asked": self.asked, "notes": self.notes, "wrong": wrong}
        told |= {"seconds": round(time.monotonic() - started), "stop_seconds": round(stopped, 1)}
        told = json.loads(json.dumps(told).replace(f"{self.site.folder.parent}", "..."))  # kept for other machines
        print(f"seed {self.seed}: {len(self.kills)} kills, asked {self.asked} times, {told['seconds']} s", flush=True)
        for line in (*self.notes, *wrong):
            print("   ", line, flush=True)
        if not wrong:
            shutil.rmtree(self.site.folder, ignore_errors=True)
        return told

    # --- killing ---

    def _kill_and_recover(self) -> None:
        """Kills until there were enough or the cast is made."""
        while len(self.kills) < self.most:
            time.sleep(self.dice.uniform(*PAUSE))
            self._revive()
            if self._state() == "COMPLETED":
                return
            if self.dice.random() < AIMED:
                self._wait_for_a_stage()
            weights = (ON_MANY if self.template.many else ON_ONE_MACHINE) | dict.fromkeys(self.also, 3)
            kind = self.dice.choices([*weights], [*weights.values()])[0]
            found = self.site.processes()[kind]
            wait = self.dice.random() >= IMPATIENT
            if not found:
                continue
            self._kill(kind, self.dice.choice(sorted(found, key=lambda process: process.pid)), wait)

    def _kill(self, kind: str, process: psutil.Process, wait: bool) -> None:
        subject, what = "", ""
        with suppress(psutil.Error):
            subject = self.site.subject(kind, process)
            what = " ".join(word.rpartition("/")[2] for word in process.cmdline()[-2:])[
                :80
            ]  # no folder of this machine
        stage = self._stage()
        since = time.time()
        with suppress(psutil.NoSuchProcess):
            process.kill()
        wait = wait and kind != STANDBY  # another one is made when a run has ended
        told: dict[str, Any] = {"what": kind, "stage": stage, "seconds": None, "waited": wait}
        self.kills.append(told)
        if kind == "up":
            assert self.site.popen
            self.site.popen.wait(60)  # or it is not yet seen to have ended, and nothing is started
            self._revive()
            told["seconds"] = round(time.time() - since, 1)
        elif wait:
            told["seconds"] = seconds_until(self.site.recovered(kind, subject, since), since)
            if told["seconds"] is None:
                self.notes.append(f"kill {len(self.kills)} ({kind}, {what}) was not recovered from in time")

    def _stage(self) -> str:
        flows = self.site.processes()["flow"]
        return next((stage for flow in flows if (stage := self.site.stage_of(flow.pid))), "")

    def _wait_for_a_stage(self) -> None:
        deadline = time.monotonic() + AIM_SECONDS
        while not self._stage() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _revive(self) -> None:
        """Start `up` again when it is gone."""
        if self.site.has_ended():
            if self.site.popen and self.site.popen.returncode >= 0:
                self.notes.append(
                    f"up gave up with status {self.site.popen.returncode}: {self.site.last_words()[-400:]}"
                )
            self.site.start()

    # --- the cast ---

    def _ask(self) -> None:
        self.asked += 1
        self.batch_run = self.site.ask(self.cast, f"seed-{self.seed}-{self.asked}")

    def _state(self) -> str:
        """Of the batch; one that was killed or could not make all is asked for again."""
        (run,) = self.site.api("flow_runs/filter", {"flow_runs": {"id": {"any_": [self.batch_run]}}})
        state = str(run["state_type"])
        if state in ("CRASHED", "FAILED", "CANCELLED"):
            message = str((run.get("state") or {}).get("message")).partition(".")[0].rpartition(": ")[2]
            self.notes.append(f"ended as {state} ({message})")
            if self.asked < MOST_ASKED:
                self._ask()
        return state

    def _wait_until_made(self) -> list[str]:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            self._revive()
            if self._state() == "COMPLETED":
                others = [run for run in self.site.runs() if run["state_type"] in ("RUNNING", "PENDING", "CANCELLING")]
                if not others:
                    return []
            time.sleep(1.0)
        left = {run["name"]: run["state_name"] for run in self.site.runs() if run["state_type"] != "COMPLETED"}
        return [f"not all was made within {SETTLE_SECONDS:.0f} s: {left}"]


if __name__ == "__main__":
    raise SystemExit(main())
