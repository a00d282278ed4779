"""What comes next is got ready on a thread where a GPU draws, and only there."""

from __future__ import annotations

import threading

import pytest

from charengine.stages.sweep.ahead import Ahead


def test_where_a_gpu_draws_the_next_is_made_meanwhile_and_once() -> None:
    made: list[tuple[str, str]] = []
    begun = threading.Event()

    def work(key: str) -> str:
        made.append((key, threading.current_thread().name))
        begun.set()
        return key.upper()

    with Ahead(work, "cuda") as ahead:
        ahead.begin("a")
        assert begun.wait(10), "nothing was begun before it was asked for"
        assert ahead.get("a") == "A"
    assert [key for key, _ in made] == ["a"] and made[0][1].startswith("ahead")


def test_where_the_cores_draw_nothing_runs_beside_them() -> None:
    made: list[str] = []
    with Ahead(lambda key: made.append(threading.current_thread().name) or key, "cpu") as ahead:
        ahead.begin("a")
        assert not made
        assert ahead.get("a") == "a"
    assert made == [threading.current_thread().name]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_another_than_was_begun_is_made_when_asked_for(device: str) -> None:
    with Ahead(str.upper, device) as ahead:
        ahead.begin("a")
        assert ahead.get("b") == "B"
        assert ahead.get("a") == "A"


def test_what_fails_aside_is_told_to_who_asks() -> None:
    def work(key: str) -> str:
        raise ValueError(f"no {key}")

    with Ahead(work, "cuda") as ahead:
        ahead.begin("a")
        with pytest.raises(ValueError, match="no a"):
            ahead.get("a")
