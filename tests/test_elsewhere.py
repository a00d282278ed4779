"""A store on another machine is waited for while it is away, and believed in what it says."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest

from charengine import elsewhere
from charengine.elsewhere import Elsewhere
from charengine.errors import BadInput, MissingDependency
from charengine.store import Store


class Fails:
    """A file system whose next calls raise what is given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def cat_file(self, path: str) -> bytes:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return path.encode()

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        self.cat_file(path)


class Refused(Exception):
    """As botocore's, of which fsspec makes an error of the system."""

    response = {"Error": {"Code": "PreconditionFailed"}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "FIRST_PAUSE", 0.01)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store of this test's own, in memory, which counts as elsewhere."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return "memory://studio/store"


def test_a_store_that_is_away_is_waited_for_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    fs = Fails(ConnectionRefusedError("nobody listens"), TimeoutError())
    with caplog.at_level(logging.WARNING):
        assert Elsewhere(fs, "s3://studio").cat_file("a") == b"a"
    assert fs.calls == 3 and "s3://studio does not answer (nobody listens)" in caplog.text


@pytest.mark.parametrize("answer", [FileNotFoundError("a"), PermissionError("a"), KeyError("a")])
def test_what_a_store_says_is_no_outage(answer: Exception) -> None:
    fs = Fails(answer)
    with pytest.raises(type(answer)):
        Elsewhere(fs, "s3://studio").cat_file("a")
    assert fs.calls == 1


def test_a_store_without_credentials_is_refused_at_once_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        Store("s3://studio/store", skip_instance_cache=True)


def test_a_store_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "PATIENCE", 0.0)
    with pytest.raises(ConnectionRefusedError):
        Elsewhere(Fails(ConnectionRefusedError()), "s3://studio").cat_file("a")


def test_a_refused_write_is_a_file_that_is_there() -> None:
    error = OSError(22, "At least one of the pre-conditions you specified did not hold")
    error.__cause__ = Refused()
    with pytest.raises(FileExistsError):
        Elsewhere(Fails(error), "s3://studio").create("a", b"")


def test_a_state_goes_on_on_another_machine_from_what_was_written_last(away: str, tmp_path: Path) -> None:
    one, other = Store(away), Store(away)
    one.write_state(tmp_path / "m1" / "train-0", "state", b"step 20")
    one.write_state(tmp_path / "m1" / "train-0", "lessons", b"drawn")
    other.take_state(tmp_path / "m2" / "train-0")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m2" / "train-0").iterdir()} == {
        "state": b"step 20",
        "lessons": b"drawn",
    }
    other.write_state(tmp_path / "m2" / "train-0", "state", b"step 40")
    one.take_state(tmp_path / "m1" / "train-0")
    assert (tmp_path / "m1" / "train-0" / "state").read_bytes() == b"step 40"


def test_a_state_that_is_done_with_is_taken_up_by_nobody(away: str, tmp_path: Path) -> None:
    store = Store(away)
    store.write_state(tmp_path / "m1" / "train-0", "state", b"step 20")
    store.drop_state(tmp_path / "m2" / "train-0")  # by the machine that ended it
    store.take_state(tmp_path / "m1" / "train-0")
    assert list((tmp_path / "m1" / "train-0").iterdir()) == [] and store.fs.find(f"{store.root}/state") == []


def test_a_kind_of_store_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingDependency, match=r"charengine\[machines\]"):
        Store("s3://studio/store")


def test_of_many_that_create_a_file_one_does(away: str) -> None:
    store, made = Store(away), []

    def create(number: int) -> None:
        try:
            store.fs.create(f"{store.root}/locks/a", b"%d" % number)
            made.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert made == [0] and store.fs.cat_file(f"{store.root}/locks/a") == b"0"
