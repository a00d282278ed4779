"""A run's folder stays its character's, also when its claim was cut off by a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from charengine.config import Character
from charengine.machine.ledger import LEDGER
from charengine.profiles.loading import load_profile
from charengine.run.claim import CLAIM, claim
from charengine.run.request import CheckedRun
from charengine.writing import _host


def asked(out: Path, prompt: str = "a robot") -> CheckedRun:
    character = Character(name="Aya", prompt=prompt, class_noun="robot", trigger="ayazz", seed=1)
    return CheckedRun(character, load_profile("embedded"), None, out, "embedded")


@pytest.mark.parametrize("torn", [b"", b'{"name": "Aya", "pro', b"\0" * 40])
def test_a_claim_that_was_cut_off_is_made_again_in_the_same_folder(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "aya"
    out.mkdir()
    (out / CLAIM).write_bytes(torn)
    assert claim(asked(out)).out == out
    assert json.loads((out / CLAIM).read_bytes()) == {"name": "Aya", "prompt": "a robot"}


@pytest.mark.parametrize("torn", [b"", b"{"])
def test_a_ledger_that_was_cut_off_before_the_claim_is_made_whole(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "aya"
    out.mkdir()
    (out / LEDGER).write_bytes(torn)
    assert claim(asked(out)).out == out
    assert (out / LEDGER).read_bytes() == b"{}"


@pytest.mark.parametrize("damaged", [b"\xff", b"x", b"\0" * 40, b'{"sheet.png": ["abc'])
def test_any_other_damaged_ledger_stays_and_keeps_nobody_from_the_folder(tmp_path: Path, damaged: bytes) -> None:
    out = tmp_path / "aya"
    out.mkdir()
    (out / LEDGER).write_bytes(damaged)
    assert claim(asked(out)).out == out and (out / LEDGER).read_bytes() == damaged


def test_what_a_process_left_that_was_killed_while_it_claimed_goes(tmp_path: Path) -> None:
    out = tmp_path / "aya"
    claim(asked(out))
    for name in (CLAIM, LEDGER):
        (out / f".{name}.{_host()}-7777777-0123abcd.tmp").write_bytes(b"{")
    assert claim(asked(out)).out == out
    assert {path.name for path in out.iterdir()} == {CLAIM, LEDGER}


def test_another_prompts_run_goes_beside_it(tmp_path: Path) -> None:
    claim(asked(tmp_path / "aya"))
    assert claim(asked(tmp_path / "aya", "an orc")).out == tmp_path / "aya-2"
