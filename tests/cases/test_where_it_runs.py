"""Where it runs: proxies, servers that are away, folders that cannot be asked or written."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from run_samples import doll, write_views

from charengine import files
from charengine.errors import BadInput, ConfigError, MissingDependency
from charengine.machine.addresses import answers
from charengine.machine.home import Home, find_home, in_work_folder
from charengine.machine.processes import any_free_port
from charengine.machine.proxies import keep_loopback_direct
from charengine.run.claim import CLAIM
from charengine.run.request import RunRequest, check
from charengine.services.prefect_server import reach_prefect

PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "no_proxy", "NO_PROXY")


class _Server(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"true")  # as Prefect says of its health

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    for name in PROXIES:
        monkeypatch.setenv(name, "")
    found = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    found.server_close()


# --- proxies and servers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_this_machine_is_never_asked_through_a_proxy(server: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"http://127.0.0.1:{any_free_port()}")
    monkeypatch.setenv("NO_PROXY", "intranet, 10.0.0.1")
    assert answers(server) and answers(server.replace("127.0.0.1", "localhost"))
    import httpx
    import requests

    with httpx.Client() as client:
        assert client.get(server).status_code == 200
    with requests.Session() as session:
        assert session.get(server).status_code == 200
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet,10.0.0.1,127.0.0.1,localhost,::1"
    keep_loopback_direct()
    assert os.environ["NO_PROXY"].count("localhost") == 1
    assert urllib.request.proxy_bypass("127.0.0.1:4200")


def test_a_prefect_server_that_was_named_and_is_away_is_said_at_once(
    home: Home, server: str, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., CompletedProcess[str]]
) -> None:
    monkeypatch.setattr("charengine.services.prefect_server.PAUSES", (0.0,))
    for address in (f"http://127.0.0.1:{any_free_port()}/api", "not an address", "http://[::1"):
        monkeypatch.setenv("PREFECT_API_URL", address)
        with pytest.raises(MissingDependency, match="PREFECT_API_URL=.* does not answer .*unset the variable"):
            reach_prefect(home)
        done = cli("run", "an orc")
        assert done.returncode == 3 and f"PREFECT_API_URL={address} does not answer" in done.stderr
    assert not Path("runs").exists()
    for status in (200, 401, 503):
        monkeypatch.setattr(_Server, "status", status)
        monkeypatch.setenv("PREFECT_API_URL", f"{server}/api/")
        reach_prefect(home)()


# --- folders ----------------------------------------------------------------------------------------------------------


def deny(monkeypatch: pytest.MonkeyPatch, locked: Path) -> None:
    """As for a user who may not enter a folder: root may, so the system's answer is given here."""

    def refusing(call):
        def asked(path, *arguments, **more):
            if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(locked):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **more)

        return asked

    for name in ("stat", "lstat", "open", "scandir", "listdir", "mkdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.parametrize("ask", [files.exists, files.is_file, files.is_dir, files.entries, files.read_text, files.size])
@pytest.mark.parametrize("path", ["locked/x", "a" * 300, "x" * 5000, "a\0b"])
def test_a_path_that_cannot_be_asked_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask, path: str
) -> None:
    deny(monkeypatch, tmp_path / "locked")
    with pytest.raises(BadInput, match="cannot be read") as caught:
        ask(tmp_path / path)
    assert len(str(caught.value)) < 400 and "\0" not in str(caught.value)


def test_links_in_a_circle_and_unknown_homes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(BadInput, match="cannot be read"):
        files.exists(tmp_path / "a")
    with pytest.raises(BadInput, match="no home folder"):
        in_work_folder("~nobody-of-this-name/x")


def test_a_run_says_everything_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked"
    deny(monkeypatch, locked)
    request = RunRequest("an orc", out=str(locked / "x"), sheet=str(locked / "x.png"), profile=str(locked / "p.yaml"))
    with pytest.raises(ConfigError) as caught:
        check(request, Home(locked / "home"))
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4 and text.count("Permission denied") == 4
    assert all(word in text for word in ("--out", "--sheet", "p.yaml", "home folder"))


def test_a_home_that_may_not_be_entered_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARENGINE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "locked"))
    deny(monkeypatch, tmp_path / "locked")
    with pytest.raises(BadInput, match="home folder .* cannot be written"):
        find_home().create()


def test_a_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(BadInput, match="current folder is gone"):
        in_work_folder("x")
    assert in_work_folder("/elsewhere") == Path("/elsewhere")


@pytest.mark.parametrize("part", ["a" * 300, "x" * 300 + "/y", "a\0b"])
def test_an_out_that_can_never_be_made_is_refused_before(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match="--out"):
        check(RunRequest("an orc", out=str(tmp_path / part)), Home(tmp_path / "home"))


def test_one_stage_alone_needs_only_the_folder_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")  # where nobody may write
    out, home = tmp_path / "out", Home(tmp_path / "home")
    assert check(RunRequest("an orc", out=str(out)), home, whole=False).out == out
    assert check(RunRequest("an orc", out=str(out)), home).out == out
    with pytest.raises(ConfigError, match="cannot be written"):
        check(RunRequest("an orc"), home)
    assert not out.exists() and not (out / CLAIM).exists()


COMMANDS = (
    ["crop", "PATH"], ["caption", "PATH", "--name", "A", "--prompt", "x"], ["expand", "PATH", "--prompt", "x"], ["train", "PATH"],
    ["sweep", "PATH"], ["report", "PATH"], ["compare", "PATH"], ["export", "PATH"], ["inspect", "PATH"], ["batch", "PATH"],
    ["doctor", "--profile", "PATH"], ["run", "an orc", "--sheet", "PATH"], ["run", "an orc", "--set", "train.continue_from=PATH"],
)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.timeout(60)
def test_no_command_waits_for_a_pipe_reads_a_device_to_its_end_or_fails_at_what_it_may_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    from charengine.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "home"))
    deny(monkeypatch, tmp_path / "locked")
    for path in (tmp_path / "pipe", tmp_path / "pipe.json", Path("/dev/zero"), tmp_path / "locked" / "x.yaml"):
        if path.parent == tmp_path:
            os.mkfifo(path)
        monkeypatch.setattr("sys.argv", ["charengine", *(word.replace("PATH", str(path)) for word in command)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capfd.readouterr().err
        assert end.value.code == 2 and path.name in told and "defect" not in told
        assert ("Permission denied" in told) == (path.parent.name == "locked")
    assert {path.name for path in tmp_path.iterdir()} <= {"pipe", "pipe.json", "home"}


@pytest.mark.parametrize("home", ["file", "file/below", "link", "link/below"])
@pytest.mark.parametrize(
    "command",
    [["prune"], ["prune", "--delete"], ["prune", "--json"], ["export", "orc"], ["crop", "own.png"], ["train", "views"],
     ["caption", "views", "--name", "A", "--prompt", "x"], ["expand", "views", "--prompt", "x"], ["sheet", "an orc"]],
    ids=" ".join,
)  # fmt: skip
def test_no_command_takes_a_home_that_can_be_no_folder_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: list[str], home: str
) -> None:
    from charengine.cli.main import main

    monkeypatch.chdir(tmp_path)
    write_views(tmp_path / "views", "zorgax, orc, {view} view")
    doll().save(tmp_path / "own.png")
    (tmp_path / "file").write_text("of the user's")
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / home))
    monkeypatch.setattr("sys.argv", ["charengine", *command])
    with pytest.raises(SystemExit) as end:
        main()
    told = capfd.readouterr().err
    assert end.value.code == 2 and "home folder" in told and str(tmp_path / home) in told and "defect" not in told
    assert (tmp_path / "file").read_text() == "of the user's" and not (tmp_path / "nowhere").exists()


def test_a_home_that_is_not_there_yet_has_nothing_that_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from charengine.cli.main import main

    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "not/yet"))
    monkeypatch.setattr("sys.argv", ["charengine", "prune"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and "nothing can go from" in capfd.readouterr().out
    assert not (tmp_path / "not").exists()


def test_the_doctor_tells_of_a_home_that_can_never_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from charengine.profiles.loading import load_profile
    from charengine.services.doctor import examine

    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / ("d" * 300)))
    with pytest.raises(BadInput, match="File name too long"):
        examine(load_profile("embedded"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_folder_as_a_digest_holds_no_pipe_and_a_pipe_has_none(tmp_path: Path) -> None:
    from charengine.run.keys import path_digest

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="it is no plain file"):
        path_digest(tmp_path / "pipe")
    assert path_digest(tmp_path) == path_digest(tmp_path)
