"""Variables that the user's machine has set: proxies do not matter here, and what cannot work is named before it is tried."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler as Handler
from pathlib import Path
from socketserver import ThreadingTCPServer as TCPServer
from subprocess import CompletedProcess
from typing import Any

import pytest
from command_line import python

from charengine.errors import BadInput, ConfigError
from charengine.machine.addresses import answers
from charengine.machine.home import Home
from charengine.machine.proxies import OFFLINE, PROXIES, SERVERS, keep_loopback_direct
from charengine.machine.variables import check_variables, variables_to_blame
from charengine.tracking.open_tracker import open_tracker

UNUSABLE = [
    "socks5h://127.0.0.1:9",
    "socks5://127.0.0.1:9",
    ":::",
    "ftp://x:99999",
    "http://[",
    "http://x:port",
    "€://",
]
UNREADABLE = [
    "localhost,127.0.0.0/8,::1,fe80::/10",
    "[::1],[::1]:80",
    "[::1",
    "http://[",
    "fe80::1%eth0",
    "*.x:y:z,::ffff/99",
    "€%%%",
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that is no Prefect, where no variable is set."""
    for name in (*PROXIES, *SERVERS, "no_proxy", "NO_PROXY", OFFLINE):
        monkeypatch.setenv(name, "")
    for name in (OFFLINE, *PROXIES, *SERVERS):
        monkeypatch.delenv(name)
    with TCPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


def is_reached_by_all(server: str) -> bool:
    import httpx
    import requests

    keep_loopback_direct()
    with httpx.Client() as client, requests.Session() as session:
        return answers(server) and client.get(server).status_code == session.get(server).status_code == 200


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_that_no_library_can_use_does_not_matter_on_one_machine(
    server: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for value in UNUSABLE:
        monkeypatch.setenv(name, value)
        assert is_reached_by_all(server), value
        check_variables()
    assert os.environ[OFFLINE] == "1"  # nothing is downloaded past the proxy that was meant


@pytest.mark.parametrize("value", UNREADABLE)
def test_what_desktops_write_into_no_proxy_does_not_matter(
    server: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", f"{value},intranet,10.0.0.0/8")
    assert is_reached_by_all(server)
    assert {"intranet", "10.0.0.0/8", "::1"} <= {*os.environ["NO_PROXY"].split(",")}
    assert os.environ["HTTP_PROXY"] == "http://127.0.0.1:9" and OFFLINE not in os.environ


@pytest.mark.parametrize("asked", SERVERS[:2])
def test_where_a_server_is_elsewhere_a_proxy_that_cannot_be_used_is_named(
    server: str, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv(asked, "http://servers.example:4200/api")
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    keep_loopback_direct()
    with pytest.raises(ConfigError, match=f"ALL_PROXY=socks5h://127.0.0.1:9: .*give http://HOST:PORT.*{asked}"):
        check_variables()
    monkeypatch.setenv("NO_PROXY", "servers.example")
    check_variables()
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("ALL_PROXY", "proxy.example:3128")
    check_variables()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PREFECT_HOME", "/proc/x", "cannot be written"),
        ("PREFECT_HOME", "~nobody-of-this-name/x", "no home folder is known"),
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nonsense", "begin with sqlite+aiosqlite://"),
        ("MLFLOW_TRACKING_URI", "nonsense://x", "MLflow knows no nonsense://"),
        ("MLFLOW_TRACKING_URI", "sqlite:////proc/x.db", "cannot be written"),
        ("MLFLOW_TRACKING_URI", "sqlite:////dev/null", "it is no plain file"),
        ("PREFECT_API_REQUEST_TIMEOUT", "0.0001", "give 1 second or more"),
        ("PREFECT_API_REQUEST_TIMEOUT", "inf", "give 1 second or more"),
        ("PREFECT_SERVER_DATABASE_TIMEOUT", "nan", "give 1 second or more"),
        ("CHARENGINE_HOME", "/dev/null", "home folder"),
        ("CHARENGINE_HOME", "FILE/below", "is a file; choose a folder"),
        ("CHARENGINE_HOME", "/proc/x", "cannot be written"),
    ],
)
def test_run_and_doctor_say_which_variable_cannot_work(
    server: str, cli: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    name: str, value: str, told: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, value.replace("FILE", str(tmp_path / "file")))
    ran = cli("run", "an orc")
    assert ran.returncode == 2 and told in ran.stderr and "defect" not in ran.stderr, ran.stderr
    looked = cli("doctor")
    assert looked.returncode == 3 and told in looked.stdout and "is not ready" in looked.stdout, looked.stdout
    if not name.startswith("CHARENGINE"):
        assert name in ran.stderr and name in looked.stdout


def failed(package: str, error: Exception, function: str = "<module>", below: str = "") -> Exception:
    """An error that a package raises: while it is imported, or in a function, that of another package's is called in."""
    code = "raise error" if function == "<module>" else f"def {function}():\n  raise error"
    space = {"__name__": f"{package}.part", "error": error}
    try:
        exec(compile(code, package, "exec"), space)
        call: Any = space[function]
        exec(compile("call()", below, "exec"), {"__name__": below, "call": call}) if below else call()
    except Exception as caught:
        return caught
    raise AssertionError


def test_a_variable_at_which_a_library_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "TORCH_", "PYTORCH_", "HF_"))]:
        monkeypatch.delenv(name)
    nothing, words = failed("torch", ValueError("")), "Unrecognized option: nope"
    assert variables_to_blame(nothing) == ""
    monkeypatch.setenv("TORCH_LOGS", "nope")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    assert (
        variables_to_blame(nothing)
        == "TORCH_LOGS=nope: torch cannot work with it (ValueError); correct it, or unset it"
    )
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "nope")
    told = variables_to_blame(failed("torch", RuntimeError(words), "allocate"))
    assert told.startswith("TORCH_LOGS=nope or PYTORCH_CUDA_ALLOC_CONF=nope: torch") and words in told
    assert variables_to_blame(failed("torch", RuntimeError("shapes differ"), "matmul")) == ""  # a defect of ours
    assert variables_to_blame(failed("charengine", RuntimeError("nope"), "work")) == ""
    assert variables_to_blame(failed("huggingface_hub", ValueError("x"))).startswith(
        "HF_TOKEN: huggingface_hub"
    )  # a secret
    monkeypatch.setenv("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "s3/none")
    early = failed("prefect", ValueError("Unable to find block document"), "begin_run")
    assert variables_to_blame(early).startswith(
        "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK=s3/none: prefect cannot work with it"
    )


def test_what_the_hub_reads_when_it_is_imported_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    code = "from charengine.machine.variables import variable_problems; print(variable_problems())"
    told = python(code, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="abc", CHARENGINE_HOME=str(tmp_path / "home")).stdout
    assert "HF_HUB_DOWNLOAD_TIMEOUT=abc: huggingface_hub cannot work with it" in told and "or unset it" in told


def test_a_command_that_a_librarys_variable_ends_says_so(
    cli: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise failed("torch", ValueError(""))

    monkeypatch.setenv("TORCH_LOGS", "nope")
    monkeypatch.setattr("charengine.services.doctor.examine", fails)
    done = cli("doctor")
    assert done.returncode == 2 and "TORCH_LOGS=nope: torch cannot" in done.stderr and "defect" not in done.stderr


def test_a_training_by_command_is_not_begun_with_an_address_that_is_never_reached(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://127.0.0.1:5000")
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI=htp://127.0.0.1:5000: MLflow knows no htp://"):
        open_tracker(home, project="x", name="x", key="x", params={}, tags={})


def test_what_the_machine_forbids_comes_with_a_remedy(
    cli: Callable[..., CompletedProcess[str]], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(home.state))

    monkeypatch.setattr("charengine.services.prune.leftovers", refused)
    done = cli("prune")
    assert done.returncode == 2 and f"{home.state}: cannot be read or written" in done.stderr
    assert "give the right to it, or name another place (CHARENGINE_HOME" in done.stderr


def test_a_cast_for_workers_that_are_not_there_is_answered_with_how_to_start_them(
    server: str,
    cli: Callable[..., CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "cast.yaml").write_text("- prompt: an orc\n")
    done = cli("batch", "cast.yaml", "--workers")
    assert done.returncode == 3 and "start it in another terminal" in done.stderr and "leave --workers" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_address_that_something_else_answers_is_named(
    server: str, cli: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("health").mkdir()  # a page
    for address in (f"{server}/none", server):
        monkeypatch.setenv("PREFECT_API_URL", address)
        done = cli("run", "an orc")
        assert done.returncode == 2 and f"PREFECT_API_URL={address} is answered by something that is no" in done.stderr
