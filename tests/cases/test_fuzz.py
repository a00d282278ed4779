"""Five hundred damaged casts, profiles, settings and pictures, made from a seed: read, or refused in words; never anything else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_samples import doll, doll_mask

from charengine.config import Character
from charengine.dataset.reading import class_picture_problems, read_views
from charengine.errors import EngineError
from charengine.machine.home import Home
from charengine.pictures import read_mask, read_picture
from charengine.profiles.loading import load_profile, setting_names
from charengine.run.cast import read_cast
from charengine.run.request import RunRequest, check
from charengine.store import Store

ROUNDS = 125  # of each kind
WORDS = ("no", "007", "12:30", "0x1F", "~", "null", ".inf", "true", "-1", "1e9", "[a", "{b: c", "*x", "&y z", "!!int 3", "'", '"', "\0", "\x1b[31m", "é", "オーク", "a" * 3000, "<<", "---", "?", "- ", "#", "% ", "\t", "\u2028", "", ";", ",", "../..", "|", ">")  # fmt: skip
CAST = "defaults: {seed: 3}\ncharacters:\n  - name: Grisha\n    prompt: an orc woman in a blue coat\n    seed: 7\n  - {name: Tom, prompt: a robot, overrides: [train.steps=3]}\n"
TABLE = 'name,prompt,seed,overrides\nGrisha,"an orc, in blue",7,"train.steps=3;train.rank=4"\nTom,a robot,8,\n'
PROFILE = "extends: embedded\nname: mine\nbudget_gib: 8\ntrain:\n  steps: 5\n  flips: on\nsweep: {seeds: 1, strengths: [0.5, 1.0]}\n"


def damaged(text: str, rng: random.Random) -> str:
    """The text with a few characters, words or lines lost, doubled, moved or put in."""
    for _ in range(rng.randint(1, 4)):
        lines, place = text.split("\n"), rng.randrange(len(text) + 1)
        line = rng.randrange(len(lines))
        ways = (
            text[:place] + text[place + rng.randint(1, 6) :],
            text[:place] + rng.choice(WORDS) + text[place:],
            "\n".join([*lines[: line + 1], *lines[line:]]),
            "\n".join([*lines[:line], *lines[line + 1 :]]),
            "\n".join([*lines[:line], rng.choice(("  ", "\t", "- ")) + lines[line], *lines[line + 1 :]]),
            text.replace(rng.choice(("an orc", "7", "5", "on", "Grisha", "embedded")), rng.choice(WORDS)),
            text[:place],
        )
        text = rng.choice(ways)
    return text


def outcome(call: Callable[[], object]) -> int:
    """0, or the exit status of what the engine refused; everything else fails the test."""
    try:
        call()
    except EngineError as error:
        told = str(error)
        assert told and "Traceback" not in told and "\x1b" not in told and "\0" not in told
        assert len(told) < 20_000 and all(len(line) < 2500 for line in told.splitlines())
        return error.exit_status
    return 0


@pytest.mark.parametrize(("name", "text"), [("cast.yaml", CAST), ("cast.csv", TABLE)])
def test_a_damaged_cast_is_read_or_refused(tmp_path: Path, name: str, text: str) -> None:
    rng, seen = random.Random(name), set()

    def made() -> None:
        for request in read_cast(tmp_path / name):
            assert isinstance(request.name, str) and isinstance(request.seed, int)
            check(request, Home(tmp_path / "home"))

    for _ in range(ROUNDS):
        (tmp_path / name).write_bytes(damaged(text, rng).encode("utf-8", "surrogatepass"))
        seen.add(outcome(made))
    assert seen == {0, 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]  # checking writes nothing


def test_a_damaged_profile_is_read_or_refused(tmp_path: Path) -> None:
    rng, seen = random.Random("profiles"), set()
    for _ in range(ROUNDS):
        (tmp_path / "mine.yaml").write_text(damaged(PROFILE, rng), encoding="utf-8")
        seen.add(outcome(lambda: load_profile(str(tmp_path / "mine.yaml"), ["train.rank=4"])))
    assert seen == {0, 2}


def test_any_setting_may_be_given_any_text() -> None:
    rng = random.Random("settings")
    seen = {
        outcome(lambda: load_profile("embedded", [f"{rng.choice(setting_names())}={rng.choice(WORDS)}"]))
        for _ in range(ROUNDS)
    }
    assert seen == {0, 2}


def test_any_text_may_be_a_name_a_prompt_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random("requests")

    def any_text() -> str:
        return rng.choice(("an orc", "aya", *WORDS)) + rng.choice(("", "", rng.choice(WORDS)))

    def made() -> None:
        fields = {name: any_text() for name in ("name", "class_noun", "trigger", "sheet", "out") if rng.random() < 0.3}
        run = check(RunRequest(any_text(), **fields), Home(tmp_path / "home"))
        assert isinstance(run.character, Character) and run.character.prompt.isprintable()

    assert {outcome(made) for _ in range(ROUNDS)} == {0, 2}


def any_picture(rng: random.Random) -> bytes:
    """A picture of some mode, size and kind, its bytes damaged two times in three."""
    size = (rng.choice((1, 2, 15, 16, 64, 96)), rng.choice((1, 3, 16, 192)))
    image = rng.choice(
        (doll(size=(96, 192)), doll_mask(), Image.new(rng.choice(("RGB", "RGBA", "L", "LA", "P", "1")), size))
    )
    if rng.random() < 0.2:
        image = Image.fromarray(np.full((24, 24), rng.randrange(65535), np.uint16))
    buffer = io.BytesIO()
    kind = rng.choice(("PNG", "PNG", "JPEG", "WEBP", "GIF", "BMP"))
    if kind != "PNG":
        image = image.convert("RGB")
    image.save(buffer, kind)
    data = bytearray(buffer.getvalue())
    if rng.random() < 0.66:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), rng.choice((40, 200, 10**9))))] = rng.randrange(256)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data))]
    return bytes(data)


def test_a_damaged_picture_is_read_or_refused_wherever_it_stands(tmp_path: Path) -> None:
    rng, seen = random.Random("pictures"), set()
    store, folder = Store(tmp_path / "store"), tmp_path / "views"
    folder.mkdir()
    for view in ("side", "back"):
        doll().save(folder / f"{view}.png")
    for _ in range(ROUNDS):
        data = any_picture(rng)
        (folder / "front.png").write_bytes(data)
        seen.add(outcome(lambda: read_picture(folder / "front.png", "picture")))
        seen.add(outcome(lambda: read_mask(folder / "front.png", (96, 192))))
        outcome(lambda: class_picture_problems(folder))
        if rng.random() < 0.1:
            seen.add(outcome(lambda: read_views(folder, store)))
    assert seen == {0, 2}
