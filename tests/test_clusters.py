"""What is handed to Slurm and Kubernetes, as far as it can be held without a cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from charengine.machine.home import Home
from deployments import one_run

FOLDER = Path(one_run.__file__).parent


def test_a_pod_runs_the_flow_with_the_engines_defaults(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("prefect.cli.app", lambda: called.append(sys.argv[1:]))
    monkeypatch.setattr(one_run, "apply_defaults", lambda at: called.append([str(at.root)]))
    monkeypatch.setattr(sys, "argv", ["one_run"])
    one_run.main()
    assert called == [[str(home.root)], ["flow-run", "execute"]]


def test_every_value_that_the_pods_template_names_has_a_default_and_no_run_is_begun_twice() -> None:
    text = (FOLDER / "kubernetes.json").read_text(encoding="utf-8")
    template = json.loads(text)
    given = template["variables"]["properties"]
    assert set(re.findall(r"{{ (\w+) }}", text)) == set(given) and all("default" in one for one in given.values())
    job = template["job_configuration"]["job_manifest"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    assert given["pod_watch_timeout_seconds"]["default"] < 3600  # of automations/crash-lost-runs.yaml


def test_slurms_script_can_be_read_and_the_worker_hears_its_signal() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    assert "\nexec charengine worker" in (FOLDER / "slurm.sh").read_text(encoding="utf-8")
