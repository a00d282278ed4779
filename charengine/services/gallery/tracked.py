"""MLflow, as the gallery asks it: addresses of its pages, and pictures it keeps; without it the gallery goes on."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from charengine.machine.proxies import keep_loopback_direct
from charengine.tracking.open_tracker import PROJECT
from charengine.tracking.views import KIND_TAG, compare_page, losses_page, run_page, runs_page, view_page

log = logging.getLogger(__name__)

Json = dict[str, Any]

SECONDS = 4.0  # for one question
SILENT = 5.0  # seconds that a server which did not answer is left alone
AGE = 2.0  # seconds that an answer which may change is good for
MOST_KEPT = 2000
LARGEST_PICTURE = 30_000_000  # bytes
RUN_ID = re.compile(r"[0-9a-f]{32}")
SAMPLE_STEP = re.compile(r"(?:^|/)samples[%+]step[%+](\d+)[%+].*\.png$")  # MLflow's name for a picture with a step


class Tracked:
    """An MLflow server; every answer is empty where there is none, or it is silent.

    Args:
        uri: its address; one that is no `http` address is a database, which has no pages.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if uri.startswith("http") else ""
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Any]] = {}
        self._runs: dict[str, str] = {}
        self._silent_until = 0.0

    def run_page(self, run_id: str) -> str:
        """A run's page."""
        experiment = self._experiment()
        return f"{self.uri}{run_page(experiment, run_id)}" if experiment and _is_id(run_id) else ""

    def compare_page(self, run_ids: Iterable[str | None]) -> str:
        """The page that puts runs side by side; empty where MLflow knows fewer than two of them."""
        known = [one for one in dict.fromkeys(run_ids) if one and _is_id(one)]
        experiment = self._experiment() if len(known) > 1 else ""
        return f"{self.uri}{compare_page(experiment, known)}" if experiment else ""

    @property
    def runs_page(self) -> str:
        """All runs."""
        experiment = self._experiment()
        return f"{self.uri}{runs_page(experiment)}" if experiment else ""

    @property
    def strengths_page(self) -> str:
        """The view of all sweeps: strength against identity and adherence."""
        experiment = self._experiment()
        return f"{self.uri}{view_page(experiment)}" if experiment else ""

    @property
    def losses_page(self) -> str:
        """The view of all trainings: their loss curves."""
        experiment = self._experiment()
        return f"{self.uri}{losses_page(experiment)}" if experiment else ""

    def run_of(self, flow_run_id: str) -> str:
        """MLflow's id of the run that a run of Prefect's writes to; once known it stays."""
        if flow_run_id in self._runs:
            return self._runs[flow_run_id]
        found = self._search(f"tags.`prefect.flow_run_id` = '{flow_run_id}'") if _plain(flow_run_id) else []
        if found:
            self._runs[flow_run_id] = str(found[0]["info"]["run_id"])
        return self._runs.get(flow_run_id, "")

    def latest_sample(self, run_id: str) -> tuple[int, str] | None:
        """Step and path of the newest sample picture of a character's training, with the id of the run that has it before the path."""
        if not _is_id(run_id):
            return None
        for child in self._search(f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`{KIND_TAG}` = 'train'"):
            train_id = str(child["info"]["run_id"])
            paths = self._listed(train_id, "images")
            steps = [(int(found[1]), path) for path in paths if (found := SAMPLE_STEP.search(path))]
            if steps:
                step, path = max(steps)
                return step, f"{train_id}/{path}"
        return None

    def holds(self, run_id: str, path: str) -> bool:
        """Whether a run has logged this file by now."""
        return _is_id(run_id) and path in self._listed(run_id, path.rpartition("/")[0])

    def picture(self, run_id: str, path: str) -> bytes | None:
        """The bytes of a picture that a run has logged; what is no PNG or WebP is not handed on."""
        if not self.uri or not _is_id(run_id) or ".." in path:
            return None
        data = self._bytes(f"get-artifact?path={quote(path)}&run_uuid={run_id}")
        return data if data and data.startswith((b"\x89PNG\r\n\x1a\n", b"RIFF")) else None

    # --- questions ----------------------------------------------------------------------------------------------------

    def _listed(self, run_id: str, folder: str) -> list[str]:
        """Paths of the files in a folder of a run."""
        listed = self._get(f"api/2.0/mlflow/artifacts/list?{urlencode({'run_id': run_id, 'path': folder})}", AGE)
        return [str(one.get("path", "")) for one in (listed or {}).get("files", [])]

    def _experiment(self) -> str:
        found = self._get(f"api/2.0/mlflow/experiments/get-by-name?experiment_name={PROJECT}", 60.0)
        return str((found or {}).get("experiment", {}).get("experiment_id", ""))

    def _search(self, wanted: str) -> list[Json]:
        experiment = self._experiment()
        if not experiment:
            return []
        body = {
            "experiment_ids": [experiment],
            "filter": wanted,
            "max_results": 5,
            "order_by": ["attributes.start_time DESC"],
        }
        found = self._get("api/2.0/mlflow/runs/search", AGE, body)
        return list((found or {}).get("runs", []))

    def _get(self, path: str, age: float, body: Json | None = None) -> Json | None:
        """An answer, kept for a while."""
        key = f"{path} {json.dumps(body, sort_keys=True)}"
        with self._lock:
            kept = self._kept.get(key)
        if kept and time.monotonic() - kept[0] < age:
            found: Json = kept[1]
            return found
        data = self._bytes(path, body)
        try:
            answer = json.loads(data) if data is not None else None
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            with self._lock:
                if len(self._kept) > MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = (time.monotonic(), answer)
            return answer
        return None

    def _bytes(self, path: str, body: Json | None = None) -> bytes | None:
        if not self.uri or time.monotonic() < self._silent_until:
            return None
        keep_loopback_direct()
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", **_credentials(os.environ)}
        try:
            request = urllib.request.Request(f"{self.uri}/{path}", data, headers)
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return bytes(response.read(LARGEST_PICTURE))
        except urllib.error.HTTPError as error:
            error.close()
            return None
        except (OSError, ValueError, http.client.HTTPException) as error:
            log.warning("MLflow at %s does not answer (%s)", self.uri, error)
            self._silent_until = time.monotonic() + SILENT
            return None


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """As MLflow's own client takes them."""
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = (environment.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    if not user:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _is_id(text: str) -> bool:
    return RUN_ID.fullmatch(text) is not None


def _plain(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f-]{1,64}", text) is not None
