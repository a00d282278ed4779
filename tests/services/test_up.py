"""`charengine up` on the installed versions: both servers, the deployments as they stand, a worker, and a clean end."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from command_line import ROOT, child_environment

from charengine.errors import BadInput, Interrupted
from charengine.machine.addresses import running_services
from charengine.machine.home import Home
from charengine.machine.locks import flocked_if_free
from charengine.machine.processes import any_free_port, choose_port
from charengine.services.children import Children
from charengine.services.prefect_api import PrefectApi
from charengine.services.up import Addresses, Up, services

START_SECONDS = 240.0


def post(url: str, body: dict[str, Any] | None = None) -> Any:
    if body is not None:
        api, path = url.split("/api/")
        return PrefectApi(f"{api}/api").post(path, body)
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.loads(response.read())


def has_a_worker(api: str, pool: str) -> bool:
    return any(worker["status"] == "ONLINE" for worker in post(f"{api}/work_pools/{pool}/workers/filter", {}))


def test_a_port_that_is_taken_is_refused_and_a_default_one_is_stepped_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} is taken"):
            choose_port(port, 4200)
        assert choose_port(None, port) > port
    with pytest.raises(BadInput, match="70000"):
        choose_port(70000, 4200)


def test_what_a_killed_worker_left_in_the_temporary_folder_is_gone_when_up_begins_and_when_it_has_ended(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.temporary / "left by a killed worker").mkdir(parents=True)
    begun_with: list[list[Path]] = []

    def begin(running: Up) -> None:
        begun_with.append(list(home.temporary.iterdir()))
        running.children.start("sleeps", ["timeit", "-n", "1", "import time; time.sleep(60)"], running._environment())

    monkeypatch.setattr(Up, "start", begin)
    with services(home, lambda: False) as running:
        told = psutil.Process(running.children.running[0].popen.pid).environ()["TMPDIR"]
        (Path(told) / "left by another").mkdir()
        assert begun_with == [[]]
    assert Path(told) == home.temporary and not home.temporary.exists()


def test_a_second_up_is_refused_and_ends_nothing_while_the_first_starts_and_while_it_ends(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def second(running: Up) -> None:
        with (
            monkeypatch.context() as patched,
            pytest.raises(BadInput, match="just starting or ending") as refused,
        ):
            patched.setattr(Children, "end_left", lambda *_: pytest.fail("the first one's servers were ended"))
            with services(home, lambda: False):
                pass
        told.append(str(refused.value))

    monkeypatch.setattr("charengine.services.up.ENDING_SECONDS", 0.0)
    monkeypatch.setattr(Up, "start", second)
    monkeypatch.setattr(Up, "stop", second)
    with services(home, lambda: False):
        pass
    assert len(told) == 2 and str(home.root) in told[0]
    with (
        flocked_if_free(home.locks / "up.lock"),
        pytest.raises(Interrupted, match="before another"),
        services(home, lambda: True),
    ):
        pass
    for method in ("start", "stop"):
        monkeypatch.setattr(Up, method, lambda up: None)
    with services(home, lambda: False) as running:
        assert running.home == home, "nobody is kept from a home whose up has ended"


def test_whoever_waits_is_told_for_what(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("charengine.services.up.SAY_SECONDS", 0.0)
    caplog.set_level("INFO", "charengine")
    looks = iter([False, True])
    Up(home, Addresses(1, 2), None, lambda: False)._wait_for("Prefect", lambda: next(looks))
    assert "waiting for Prefect, 0 s so far" in caplog.text


@pytest.mark.parametrize(("of_the_user", "expected"), [(None, "2"), ("7", "7")])
def test_servers_have_few_heaps_that_never_shrink_unless_the_user_says_how_many(
    home: Home, monkeypatch: pytest.MonkeyPatch, of_the_user: str | None, expected: str
) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if of_the_user:
        monkeypatch.setenv("MALLOC_ARENA_MAX", of_the_user)
    up = Up(home, Addresses(1, 2), None, lambda: False)
    started: list[Mapping[str, str]] = []
    monkeypatch.setattr(up.children, "start", lambda *given: started.append(given[2]))
    up._run("mlflow-server", ["deployments.mlflow_server"])
    assert started[0]["MALLOC_ARENA_MAX"] == expected
    assert up._environment().get("MALLOC_ARENA_MAX") == of_the_user  # trainings have as many as they like


def test_a_state_file_of_servers_that_are_gone_is_not_believed(home: Home) -> None:
    home.services_file.write_text(
        json.dumps({"pid": 1, "prefect_api": "http://127.0.0.1:9/api", "mlflow": "http://127.0.0.1:9"})
    )
    assert running_services(home) is None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, subprocess.Popen[str]]]:
    folder = tmp_path_factory.mktemp("up")
    home = Home(folder / "home").create()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "charengine.cli",
            "up",
            "--prefect-port",
            str(any_free_port()),
            "--mlflow-port",
            str(any_free_port()),
        ],
        env=child_environment(home),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + START_SECONDS
    while not home.services_file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    yield home, process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_everything_comes_up_and_a_character_made_from_the_form_is_there_in_both_pages(
    running: tuple[Home, subprocess.Popen[str]], tiny_settings: tuple[str, ...], drawn_sheet: Path
) -> None:
    home, _ = running
    services = running_services(home)
    assert services
    api = services.prefect_api

    deployments = {item["name"]: item for item in post(f"{api}/deployments/filter", {})}
    assert set(deployments) == {"character", "batch", "sweep"}
    form = deployments["character"]["parameter_openapi_schema"]["properties"]
    assert list(form)[:5] == ["prompt", "name", "class_noun", "trigger", "seed"]
    assert all(field["description"] for field in form.values())
    assert "sdxl-12gb" in form["profile"]["examples"] and form["seed"]["minimum"] == 0
    assert [item["schedule"]["cron"] for item in deployments["batch"]["schedules"]] == ["0 1 * * *"]
    automations = sorted(item["name"] for item in post(f"{api}/automations/filter", {}))
    assert automations == ["crash-dead-runs", "crash-lost-runs"]

    deadline = time.monotonic() + 60
    while not all(has_a_worker(api, pool) for pool in ("characters", "orchestrate")):
        assert time.monotonic() < deadline
        time.sleep(1)

    parameters = {"prompt": "an orc woman", "name": "Aya", "sheet": str(drawn_sheet), "overrides": list(tiny_settings)}
    created = post(f"{api}/deployments/{deployments['character']['id']}/create_flow_run", {"parameters": parameters})
    deadline = time.monotonic() + 240
    while (run := post(f"{api}/flow_runs/{created['id']}"))["state_type"] in ("SCHEDULED", "PENDING", "RUNNING"):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert run["state_type"] == "COMPLETED", run["state"]

    result = json.loads((home.root.parent / "runs" / "aya" / "result.json").read_text())
    found = post(f"{services.mlflow}/api/2.0/mlflow/runs/get?run_id={result['mlflow_run_id']}")["run"]
    tags = {tag["key"]: tag["value"] for tag in found["data"]["tags"]}
    assert tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{created['id']}")
    artifacts = {item["key"]: item for item in post(f"{api}/artifacts/latest/filter", {})}
    assert {"aya", "aya-captions", "aya-sweep"} <= set(artifacts)
    page = artifacts["aya"]["data"]
    assert (
        tags["charengine.registered"]
        and "[Download the adapter (.safetensors)](" in page
        and "[The run in MLflow](" in page
    )
    picture = page.partition("![sheet](")[2].partition(")")[0]
    with urllib.request.urlopen(picture, timeout=20) as response:
        assert response.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_gallery_shows_it_hands_out_its_adapter_and_starts_another_in_the_same_words(
    running: tuple[Home, subprocess.Popen[str]], tiny_settings: tuple[str, ...], drawn_sheet: Path
) -> None:
    home, _ = running
    address = json.loads(home.services_file.read_text())["gallery"]
    with httpx.Client(base_url=address, timeout=60) as client:
        page = client.get("/").text
        assert "Aya" in page and 'class="badge made"' in page
        place = re.findall(r'href="(/character/aya-[0-9a-f]{8})/adapter.zip"', page)[0]
        with zipfile.ZipFile(io.BytesIO(client.get(f"{place}/adapter.zip").content)) as archive:
            assert sum(name.endswith(".safetensors") for name in archive.namelist()) == 2
        form = client.get("/start").text
        fields = {name: re.findall(rf'name="{name}" value="([^"]+)"', form)[0] for name in ("token", "once")}
        fields |= {"prompt": "an orc woman", "name": "Bea", "more_settings": "\n".join(tiny_settings)}
        sent = client.post("/start", data=fields, files={"picture": ("sheet.png", drawn_sheet.read_bytes())})
        assert sent.status_code == 303, sent.text
        deadline = time.monotonic() + 240
        while 'class="badge made"' not in (page := client.get(f"/part{sent.headers['location']}").text):
            assert time.monotonic() < deadline and "failed" not in page, page
            time.sleep(1)
    assert (home.root.parent / "runs" / "bea" / "result.json").exists()


@pytest.mark.slow
def test_a_foreign_page_and_a_foreign_name_are_refused_by_both_servers(
    running: tuple[Home, subprocess.Popen[str]],
) -> None:
    services = running_services(running[0])
    assert services
    for url in (f"{services.prefect_api}/flows/filter", f"{services.mlflow}/api/2.0/mlflow/experiments/search"):
        for foreign in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Host": "192.168.0.7:5000"}):
            request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json", **foreign})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=20)
            assert refused.value.code == 403


@pytest.mark.slow
def test_a_second_up_in_the_same_home_is_refused(running: tuple[Home, subprocess.Popen[str]]) -> None:
    home, _ = running
    done = subprocess.run(
        [sys.executable, "-m", "charengine.cli", "up"],
        env=child_environment(home),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "already runs here" in done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_behind(running: tuple[Home, subprocess.Popen[str]]) -> None:
    home, process = running
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "stopped" in out
    assert [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert not home.services_file.exists()
