"""A gallery on a home of its own, with a Prefect and an MLflow that are made up, asked as a browser asks it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from run_samples import doll, png
from starlette.testclient import TestClient

from charengine.records import RunRecord
from charengine.run.claim import CLAIM
from charengine.services.gallery.parts import Gallery
from charengine.services.gallery.prefect import Prefect, PrefectAway
from charengine.services.gallery.tracked import Tracked

ADDRESS = "http://127.0.0.1:4300"
Json = dict[str, Any]


class MadeUpPrefect(Prefect):
    """Answers from lists, and remembers what it is told to do."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/api")
        self.runs: list[Json] = []
        self.sweeps: list[Json] = []
        self.tasks: dict[str, list[Json]] = {}
        self.artifacts: dict[str, Json] = {}
        self.started: list[Json] = []
        self.cancelled: list[str] = []
        self.asked_for_tasks = 0
        self.away = ""
        self.most = 10_000  # runs that are taken before it goes away

    def character_runs(self) -> list[Json]:
        self._answer()
        return list(self.runs)

    def sweep_runs(self) -> list[Json]:
        self._answer()
        return list(self.sweeps)

    def task_runs(self, run_ids: Sequence[str]) -> dict[str, list[Json]]:
        self.asked_for_tasks += 1
        return {run_id: self.tasks.get(run_id, []) for run_id in run_ids}

    def progress(self, run_ids: list[str]) -> dict[str, Json]:
        return {run_id: self.artifacts[run_id] for run_id in run_ids if run_id in self.artifacts}

    def start(self, flow: str, parameters: Json, name: str, *, once: str, queue: str = "") -> str:
        self._answer()
        if len(self.started) >= self.most:
            raise PrefectAway("Prefect does not answer (503: database is locked)")
        if once not in [one["once"] for one in self.started]:
            self.started.append({"flow": flow, "parameters": parameters, "name": name, "once": once, "queue": queue})
        return "an-id"

    def cancel(self, run_id: str, *, force: bool = False) -> None:
        self.cancelled.append(f"{run_id}!" if force else run_id)

    def _answer(self) -> None:
        if self.away:
            raise PrefectAway(self.away)


class MadeUpTracked(Tracked):
    """Knows one run of each flow run, and hands out one picture."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:5000")
        self.sample: tuple[int, str] | None = None
        self.files: list[str] = []

    def _experiment(self) -> str:
        return "7"

    def run_of(self, flow_run_id: str) -> str:
        return "ab" * 16 if flow_run_id else ""

    def latest_sample(self, run_id: str) -> tuple[int, str] | None:
        return self.sample

    def _listed(self, run_id: str, folder: str) -> list[str]:
        return [path for path in self.files if path.rpartition("/")[0] == folder]

    def _bytes(self, path: str, body: Json | None = None) -> bytes | None:
        return png(doll()) if "sheet.png" in path else b"<html>not a picture"


@dataclass
class Visit:
    """A browser at the gallery."""

    client: TestClient
    gallery: Gallery
    prefect: MadeUpPrefect
    tracked: MadeUpTracked
    work: Path
    _once: int = field(default=0)

    def get(self, path: str, status: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, path: str, fields: dict[str, str] | None = None, files: Any = None, status: int = 303) -> Any:
        """As a form of the page sends it, with the token and the word that the page holds."""
        self._once += 1
        data = {"token": self.gallery.token, "once": f"{self._once:x}", **(fields or {})}
        answer = self.client.post(path, data=data, files=files or {"nothing": ("", b"")})
        assert answer.status_code == status, answer.text
        return answer

    def address(self, name: str) -> str:
        """A character's page."""
        found = next(one for one in self.gallery.characters()[0] if one.name == name)
        return f"/character/{found.id}"


def made(visit: Visit, run: RunRecord, name: str = "Zorga", prompt: str = "") -> Path:
    """The folder of a finished run."""
    run = run.model_copy(update={"name": name, **({"prompt": prompt} if prompt else {})})
    folder = visit.work / "runs" / re.sub("[^a-z0-9]+", "-", name.lower())
    (folder / "adapters").mkdir(parents=True)
    (folder / "views").mkdir()
    (folder / "run.json").write_text(run.model_dump_json())
    (folder / "report.html").write_text("<h1>the report</h1><script>alert(1)</script>")
    (folder / "sheet.png").write_bytes(png(doll((300, 192))))
    for view in ("front", "side", "back"):
        (folder / "views" / f"{view}.png").write_bytes(png(doll()))
    for file in ("zorgax.safetensors", "zorgax_recommended.safetensors"):
        (folder / "adapters" / file).write_bytes(file.encode() * 100)
    return folder


def running(name: str, state: str = "RUNNING", run_id: str = "", **parameters: Any) -> Json:
    """A run of Prefect's."""
    return {
        "id": run_id or f"run-of-{name.lower()}",
        "name": name,
        "state_type": state,
        "state": {"message": parameters.pop("message", None)},
        "parameters": {"prompt": f"a sentence about {name}", "name": name, **parameters},
        "expected_start_time": "2026-11-29T12:00:00Z",
        "end_time": parameters.pop("end_time", None),
    }


def claimed(folder: Path, name: str, prompt: str) -> Path:
    """A folder that a run has taken and not finished."""
    folder.mkdir(parents=True)
    (folder / CLAIM).write_text(f'{{"name": "{name}", "prompt": "{prompt}"}}')
    return folder
