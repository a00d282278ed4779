"""Load: a cast of a thousand no-op characters through a real `charengine up`, and what it costs everybody.

    python benchmarks/load.py --characters 1000       # asks for a cast as the nightly schedule does, and writes the JSON
    python benchmarks/load.py --table                 # the tables of the last time

A no-op character is the real flow with real Prefect and MLflow calls, store and records, whose stages give again what one real
character made (load_noop.py). Measured: how soon runs are visible, how long pages wait for the two servers and the gallery,
the memory of every process over time, what the databases and the store grow by, the seconds that a character takes through the
servers and without them, a cached one, and what is stuck in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import load_noop  # noqa: E402
import psutil  # noqa: E402
from kill_checks import left_behind  # noqa: E402
from kill_tables import machine  # noqa: E402
from kill_targets import Site, seconds_of  # noqa: E402
from load_checks import RECENT, all_runs, count, sizes, tables, wrong_in_mlflow, wrong_in_prefect  # noqa: E402

from charengine.services.prefect_api import ENDED, PrefectApi  # noqa: E402
from charengine.services.up import PORTS  # noqa: E402

# settings of the one real character: small pictures and a tiny family, as much to tell as the shipped profile has
SETTINGS = (
    "train.distill=1",
    "train.distill_size=64",
    "train.square=0",
    "train.save_state_every=600",
    "sweep.width=128",
    "sweep.height=128",
    "sweep.steps=1",
)
PARTS = {"edit": "qwen", "sdxl": "sdxl", "clip": "clip"}
PROMPT = "an orc woman with a coat, called {}"
AGAIN = 5  # characters of the cast that are asked for once more, and made without servers
SAMPLE_SECONDS = 10.0  # between two rounds of what pages ask, as somebody does who looks on
MEMORY_SECONDS = 5.0
WARM = 0.2, 600.0  # share of the time, and seconds at most, that memory is not judged by
WARM_ASKS = 10  # of the gallery's pages in the end
WINDOW_SEEN = 24  # runs that a cast has submitted at a time (flows/pool.py)
ALL_SECONDS = 4 * 3600.0
ACTIVE = ("SCHEDULED", "PENDING", "RUNNING")
BATCH = "cast"  # the process of the cast
EXPERIMENT = "charengine"
KIND = "tags.`charengine.kind` = '{}'"


def main() -> int:
    """Measure, or say what was measured; 1 when something was stuck."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=1000)
    parser.add_argument("--lot", type=int, help="characters of one cast; default: all")
    parser.add_argument("--minutes", type=float, default=600.0, help="no further cast is asked for after these")
    parser.add_argument("--workers", type=int, default=1, help="that make characters; `up` starts one on a CPU")
    parser.add_argument("--first-port", type=int, default=21_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "charengine-load")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/load.json"))
    parser.add_argument("--set", action="append", default=[], help="further settings of the real character")
    parser.add_argument("--table", action="store_true", help="print the tables and do nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        folder = arguments.folder.absolute()
        prepared = prepare(folder / "prepared", (*SETTINGS, *arguments.set))
        load = Load(folder / "night", prepared, arguments.workers, arguments.first_port)
        found = load.run(arguments.characters, arguments.lot or arguments.characters, arguments.minutes)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    found = json.loads(arguments.out.read_text())
    print("\n".join(tables(found)))
    return int(bool(found["stuck"]))


def prepare(folder: Path, settings: tuple[str, ...]) -> Path:
    """The one real character; made once a folder, by a process of its own that stands in it."""
    if not (folder / load_noop.DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        from sheet_samples import Sheet, paint

        from charengine.embedded.making.family import build_random_family

        build_random_family(folder / "family", tiny=True)
        paint(Sheet()).save(folder / "sheet.png")
        models = [f"models.{part}={folder / 'family' / name}" for part, name in PARTS.items()]
        entry = {
            "name": load_noop.PLACEHOLDER,
            "prompt": "an orc woman with a coat",
            "sheet": f"{folder / 'sheet.png'}",
        }
        code = "import json, sys; from pathlib import Path; import load_noop; load_noop.prepare(Path('.'), json.loads(sys.argv[1]))"
        asked = json.dumps(entry | {"overrides": [*models, *settings]})
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
        environment |= {"CHARENGINE_HOME": f"{folder / 'home'}", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code, asked], cwd=folder, env=environment, check=True)
    return folder


class Load:
    """One `up`, one cast, and who watches.

    Args:
        folder: made anew.
        prepared: of `prepare`.
        workers: that make characters.
        first_port: that its servers ask for.
    """

    def __init__(self, folder: Path, prepared: Path, workers: int, first_port: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.workers, self.prepared = workers, prepared
        self.environment = load_noop.lay(folder / "laid", prepared)
        self.site = Site(folder, self.environment)
        self.site.home.create()
        ports = {service: first_port + number * 100 for number, service in enumerate(PORTS)}
        self.site.home.ports_file.write_text(json.dumps(ports))
        self._more: list[subprocess.Popen[bytes]] = []

    def run(self, most: int, lot: int, minutes: float) -> dict[str, Any]:
        """Ask for casts, watch, check.

        Args:
            most: characters.
            lot: of one cast.
            minutes: after which no further cast is asked for.
        """
        site = self.site
        try:
            site.start()
            self.take_up()
            self._start_more_workers()
            before, names = sizes(site), [f"Noop {number:04d}" for number in range(1, most + 1)]
            made: list[str] = []
            seen: dict[str, float | None] = {}
            with Watch(site) as watch:
                deadline = time.monotonic() + 60 * minutes
                while len(made) < most and (not made or time.monotonic() < deadline):
                    cast = names[len(made) : len(made) + lot]
                    seen = seen | self.ask(cast, f"first-{len(made)}", is_watched=not made)
                    made += cast
                    self.wait(len(made))
            found = {"characters": len(made), "of_a_cast": min(lot, most), "workers": self.workers, "visible_s": seen}
            found |= watch.told(len(made)) | {"seconds": self.seconds(made)}
            grown = sizes(site)
            found["bytes_per_character"] = {what: round((grown[what] - before[what]) / len(made)) for what in grown}
            found["gallery_warm_s"] = self._gallery_warm()
            again = made[:AGAIN]
            self.ask(again, "again")
            self.wait(len(made) + len(again))
            found |= {"cached_seconds": self.seconds(again, latest=True), "here_seconds": self.here(again)}
            found["stuck"] = wrong_in_prefect(self.prefect, len(made) + len(again))
            for process in self._more:
                process.terminate()
                process.wait(60)
            site.stop()
            found["stuck"] += wrong_in_mlflow(site, len(made)) + left_behind(site, [])
        finally:
            site.end_all()
        return dict(json.loads(json.dumps(found).replace(f"{site.folder}", "...")))

    def take_up(self) -> None:
        """Whom to ask, once `up` is ready."""
        self.prefect = PrefectApi(self.site.services.prefect_api)

    def _start_more_workers(self) -> None:
        """As `up` would start them for more GPUs."""
        (first,) = site_workers = self.site.processes()["worker"]
        for number in range(1, self.workers):
            words = [re.sub(r"^characters-0$", f"characters-{number}", word) for word in first.cmdline()]
            with (self.site.folder / f"worker-{number}.log").open("wb") as log:
                self._more.append(subprocess.Popen(words, env=site_workers[0].environ(), stdout=log, stderr=log))

    def ask(self, names: list[str], batch_id: str, is_watched: bool = False) -> dict[str, float | None]:
        """Ask as the nightly schedule does; seconds until Prefect and the gallery show what is under way."""
        entries = [f"  - {{name: {name}, prompt: '{PROMPT.format(name)}'}}" for name in names]
        (self.site.work / f"{batch_id}.yaml").write_text("\n".join(["characters:", *entries]) + "\n")
        (deployment,) = [one for one in self.prefect.post("deployments/filter", {}) if one["name"] == "batch"]
        there = count(self.prefect, "character")
        began = time.monotonic()
        asked = {"file": f"{batch_id}.yaml", "workers": True, "batch_id": batch_id}
        self.prefect.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": asked})
        if not is_watched:
            return {}
        window = min(WINDOW_SEEN, len(names))
        questions: dict[str, Callable[[], bool]] = {
            "first run in Prefect": lambda: count(self.prefect, "character") > there,
            "first card in the gallery": lambda: names[0] in get(f"{self.gallery}/part/characters"),
            "all that are submitted at a time": lambda: count(self.prefect, "character") >= there + window,
        }
        seen: dict[str, float | None] = dict.fromkeys(questions)
        while None in seen.values() and time.monotonic() - began < 300:
            for what, question in questions.items():
                with suppress(OSError):  # it does not answer in time: not seen yet
                    if seen[what] is None and question():
                        seen[what] = round(time.monotonic() - began, 1)
            time.sleep(0.5)
        return seen

    @property
    def gallery(self) -> str:
        """Its address."""
        return str(json.loads(self.site.home.services_file.read_text())["gallery"])

    def wait(self, wanted: int) -> None:
        """Until so many runs of characters have ended and no cast is under way."""
        deadline, said, ended, left = time.monotonic() + ALL_SECONDS, -1, 0, 1
        while time.monotonic() < deadline:
            with suppress(OSError):  # it is busy: asked again
                ended, left = count(self.prefect, "character", *ENDED), count(self.prefect, "batch", *ACTIVE)
            if ended // 5 != said:
                said = ended // 5
                print(f"{time.strftime('%H:%M:%S')} {ended} have ended, load {os.getloadavg()[0]:.1f}", flush=True)
            if ended >= wanted and not left:
                return
            time.sleep(5.0)
        raise SystemExit(f"only {ended} of {wanted} runs had ended after {ALL_SECONDS:.0f} s")

    def seconds(self, names: list[str], latest: bool = False) -> dict[str, float]:
        """Of a character: its run, and from one to the next on a worker; the first is left out."""
        wanted, runs = set(names), sorted(all_runs(self.prefect), key=lambda run: run["start_time"])
        mine = [run for run in runs if run["name"] in wanted]
        mine = mine[-len(names) :] if latest else mine[: len(names)]
        spans = [(seconds_of(run["start_time"]), seconds_of(run["end_time"])) for run in mine]
        length = [end - start for start, end in spans[1:]] or [spans[0][1] - spans[0][0]]
        whole = (max(end for _, end in spans) - spans[0][0]) / len(spans) * self.workers
        told = {"run_p50": statistics.median(length), "run_p95": quantile(length, 0.95), "run_most": max(length)}
        return {name: round(value, 2) for name, value in {**told, "from_one_to_the_next": whole}.items()}

    def _gallery_warm(self) -> dict[str, list[float]]:
        """Median and most seconds of the pages that show all characters."""
        found = {}
        for page in ("/", "/part/characters", "/?q=0007"):
            get(f"{self.gallery}{page}")
            took = [timed(lambda page=page: get(f"{self.gallery}{page}")) for _ in range(WARM_ASKS)]  # type: ignore[misc]
            found[page] = [round(statistics.median(took), 3), round(max(took), 3)]
        return found

    def here(self, names: list[str]) -> dict[str, float]:
        """The same characters in one process without Prefect and MLflow; the first is left out: it imports everything."""
        folder = self.site.folder / "here"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        cast = folder / "cast.json"
        cast.write_text(json.dumps([{"name": name, "prompt": PROMPT.format(name)} for name in names]))
        environment = {
            **os.environ,
            **self.environment,
            "CHARENGINE_HOME": f"{folder / 'home'}",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, load_noop.__file__, f"{self.prepared}", f"{folder / 'home'}", f"{cast}"]
        said = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
        took = json.loads(said.splitlines()[-1])
        later = took[1:] or took
        told = {"p50": statistics.median(wall for wall, _ in later), "first": took[0][0]}
        return {name: round(value, 2) for name, value in told.items()} | {
            "cpu": round(statistics.mean(cpu for _, cpu in later), 2)
        }


class Watch:
    """Asks what pages ask and looks at every process, until left."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.took: dict[str, list[float]] = defaultdict(list)
        self.memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.cpu: dict[int, tuple[str, float, float]] = {}  # process → kind, seconds before, seconds so far
        self.load: list[float] = []
        self.failed: Counter[str] = Counter()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._ask_all, self._look_always)]

    def __enter__(self) -> Watch:
        self.began, self.since = time.monotonic(), time.time()
        self.calls = page_calls(self.site)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended = time.monotonic()
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _ask_all(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for what, call in self.calls.items():
                try:
                    self.took[what].append(timed(call))
                except OSError as error:
                    self.failed[f"{what}: {type(error).__name__} {error}"[:100]] += 1

    def _look_always(self) -> None:
        while not self._ended.wait(MEMORY_SECONDS):
            self.load.append(os.getloadavg()[0])
            now, largest = time.monotonic() - self.began, defaultdict[str, float](float)
            for kind, processes in self.site.processes().items():
                for process in processes:
                    with suppress(psutil.Error):
                        named = BATCH if kind == "flow" and of_a_cast(process) else kind
                        largest[named] = max(largest[named], process.memory_info().rss / 2**20)
                        used = sum(process.cpu_times()[:2])
                        old = process.create_time() < self.since
                        before = self.cpu[process.pid][1] if process.pid in self.cpu else used * old
                        self.cpu[process.pid] = named, before, used
            for named, size in largest.items():  # of several of a kind the largest, such as the one that forks
                self.memory[named].append((now, size))

    def told(self, count: int) -> dict[str, Any]:
        """What was seen while so many characters were made."""
        cpu: dict[str, float] = defaultdict(float)
        for kind, before, used in self.cpu.values():
            cpu[kind] += (used - before) / count
        everything = [one for took in self.took.values() for one in took]
        hours = (self.ended - self.began) / 3600
        return {
            "hours": round(hours, 3),
            "load": {"mean": round(statistics.mean(self.load), 1), "most": round(max(self.load), 1)},
            "api_s": {what: spread(took) for what, took in sorted(self.took.items()) if took}
            | {"all": spread(everything)},
            "api_failed": dict(self.failed),
            "memory_mib": {kind: flat(seen, hours * 3600) for kind, seen in sorted(self.memory.items())},
            "cpu_seconds_per_character": {kind: round(seconds, 2) for kind, seconds in sorted(cpu.items())},
        }


def page_calls(site: Site) -> dict[str, Callable[[], object]]:
    """The calls that the pages of Prefect, MLflow and the gallery make, by what they show."""
    api, mlflow = PrefectApi(site.services.prefect_api), site.services.mlflow
    gallery = json.loads(site.home.services_file.read_text())["gallery"]
    found = json.loads(get(f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"))
    experiment = found["experiment"]["experiment_id"]

    today = {"start_time": {"after_": time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime())}}

    def search(kind: str) -> Callable[[], object]:
        body = {"experiment_ids": [experiment], "filter": KIND.format(kind), "max_results": 100}
        data = json.dumps({**body, "order_by": ["attributes.start_time DESC"]}).encode()
        headers = {"Content-Type": "application/json"}
        return lambda: get(urllib.request.Request(f"{mlflow}/api/2.0/mlflow/runs/search", data, headers))

    return {
        "Prefect, page of runs": lambda: api.post("flow_runs/paginate", {**RECENT, "limit": 10, "page": 1}),
        "Prefect, newest 200 runs": lambda: api.post("flow_runs/filter", {**RECENT, "limit": 200}),
        "Prefect, runs counted": lambda: count(api, "character", *ACTIVE),
        "Prefect, dots of the history": lambda: api.post("ui/flow_runs/history", {"limit": 1000}),
        "Prefect, tasks counted": lambda: api.post("ui/task_runs/dashboard/counts", {"task_runs": today}),
        "MLflow, characters": search("character"),
        "MLflow, cells": search("cell"),
        "gallery, all characters": lambda: get(f"{gallery}/part/characters"),
        "gallery, start page": lambda: get(f"{gallery}/start"),
    }


def get(url: str | urllib.request.Request) -> str:
    """A page's text."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return str(response.read().decode(errors="replace"))


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def quantile(values: list[float], share: float) -> float:
    """The value that this share of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(took: list[float]) -> list[float]:
    """p50, p95, most, and how many."""
    return [round(one, 3) for one in (statistics.median(took), quantile(took, 0.95), max(took))] + [len(took)]


def flat(seen: list[tuple[float, float]], seconds: float) -> list[float]:
    """First and last MiB after the first minutes, MiB an hour between them (least squares), and most."""
    warm = [one for one in seen if one[0] >= min(WARM[0] * seconds, WARM[1])] or seen
    slope = statistics.linear_regression(*zip(*warm, strict=True)).slope * 3600 if len(warm) > 2 else 0.0
    return [round(one) for one in (warm[0][1], warm[-1][1], slope, max(size for _, size in seen))]


def of_a_cast(process: psutil.Process) -> bool:
    """Whether a flow's process makes a cast: it has imported that alone."""
    return "flows.batch" in process.cmdline()


if __name__ == "__main__":
    sys.exit(main())
