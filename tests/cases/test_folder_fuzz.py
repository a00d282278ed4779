"""Damaged folders of views, masks, captions and class images, settings and foreign metadata, made from a seed: read, or refused in words.

A few of each are asked on every run, four hundred and more by `make test-long`.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from run_samples import doll, doll_mask, png, write_views
from test_fuzz import WORDS, any_picture, damaged, outcome

from charengine.adapter.files import save_adapter
from charengine.cli.inspection import adapter_facts
from charengine.config import Profile
from charengine.dataset.folder import read_caption
from charengine.dataset.reading import class_pictures, read_dataset
from charengine.errors import ConfigError
from charengine.machine.home import Home
from charengine.pictures import picture_problems
from charengine.profiles.loading import load_profile, setting_names
from charengine.run.request import RunRequest, check
from charengine.stages.sweep.adapters import training_from_file
from charengine.store import Store

ROUNDS = pytest.mark.parametrize(
    "rounds", [pytest.param(12, id="few"), pytest.param(90, id="many", marks=pytest.mark.long)]
)
CAPTION = "griqul, orc woman, front view, blue coat"
EXTRAS = json.dumps({"kept": [{"view": "three_quarter", "seed": 1}], "views": 3})


def any_text(rng: random.Random, text: str) -> bytes:
    """A text file as editors, exports and accidents leave it."""
    ways = (
        lambda: text.encode(),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode("utf-16"),
        lambda: (text + " caf\u00e9 it\u2019s").encode("cp1252"),
        lambda: rng.randbytes(rng.randrange(1, 200)),
        lambda: b"",
        lambda: b" \r\n\t ",
        lambda: text.encode() * rng.choice((1, 60, 3000)),
        lambda: damaged(text, rng).encode("utf-8", "surrogatepass"),
        lambda: text.replace(", ", rng.choice((",", ";", "\r", "\r\n", "\0", "\x1b[2J", "，"))).encode(),
    )
    return rng.choice(ways)()


def make_views(folder: Path, rng: random.Random) -> None:
    """Three views with masks and captions, and one to four things wrong or odd about them."""
    (write_views(folder, CAPTION) / "masks").mkdir()
    doll_mask().save(folder / "masks" / "front.png")
    for _ in range(rng.randrange(4)):
        disturb(folder, rng)


def disturb(folder: Path, rng: random.Random) -> None:
    """One accident in a folder."""
    present = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not present:
        return
    path = rng.choice(present)
    other = rng.choice((path.with_name(path.name.upper()), path.with_name(f"._{path.name}"), path.with_suffix(""), path.with_suffix(".caption"), path.with_suffix(".JPG"), folder / "10_griqul orc" / path.name, path.with_name(rng.choice(("front.webp", "front.alpha.png", "three_quarter.png", "Thumbs.db", "expansion.json")))))  # fmt: skip
    way = rng.randrange(8)
    if way == 0:
        path.unlink()
    elif way == 1:
        other.parent.mkdir(exist_ok=True)
        shutil.move(path, other) if not other.is_dir() else None
    elif way == 2:
        other.parent.mkdir(exist_ok=True)
        shutil.copy(path, other) if not other.is_dir() else None
    elif way == 3:
        path.write_bytes(any_text(rng, CAPTION) if path.suffix != ".png" else any_picture(rng))
    elif way == 4:
        path.unlink()
        path.mkdir()
    elif way == 5:
        path.unlink()
        path.symlink_to(rng.choice((path, folder, folder / "missing", Path("/dev/null"))))
    elif way == 6:
        (folder / "expansion.json").write_bytes(any_text(rng, EXTRAS))
    else:
        rng.choice((doll_mask, doll))((rng.choice((1, 16, 96)), rng.choice((16, 192)))).save(
            folder / "masks" / "side.png"
        )


def contents(folder: Path) -> dict[str, str]:
    """Every file's digest, so that a reader which writes, moves or deletes is found out."""
    plain = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in plain}


def whole(store: Path) -> bool:
    """No blob is half-written: each is what its name says."""
    blobs = [path for path in store.rglob("*") if path.is_file()]
    return all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs)


@ROUNDS
def test_a_damaged_folder_of_views_is_read_or_refused_and_left_as_it_is(tmp_path: Path, rounds: int) -> None:
    seen, store = set(), Store(tmp_path / "store")
    for number in range(rounds):
        rng, folder = random.Random(f"views {number}"), tmp_path / str(number)
        make_views(folder, rng)
        before = contents(folder)
        given = rng.choice((("", ""), ("griqul", "orc woman"), (rng.choice(WORDS), "orc")))
        seen.add(outcome(lambda given=given, folder=folder: read_dataset(folder, store, *given)))
        assert contents(folder) == before, number
        shutil.rmtree(folder)
    assert seen == {0, 2} and whole(tmp_path / "store")


@ROUNDS
def test_any_bytes_may_be_a_caption(tmp_path: Path, rounds: int) -> None:
    rng, seen, path = random.Random("captions"), set(), tmp_path / "front.txt"
    for _ in range(rounds):
        path.write_bytes(any_text(rng, CAPTION))

        def read() -> None:
            text = read_caption(path)
            assert text.isprintable() and "\n" not in text and text == text.strip()

        seen.add(outcome(read))
    assert seen == {0, 2}


@ROUNDS
def test_a_damaged_folder_of_class_images_is_read_or_refused(tmp_path: Path, rounds: int) -> None:
    seen = set()
    for number in range(rounds):
        rng, folder = random.Random(f"classes {number}"), tmp_path / str(number)
        folder.mkdir()
        for name in rng.sample(
            ("a.png", "b.JPG", "c.webp", "._a.png", ".DS_Store", "d.txt", "e.fits", "f.png.part"), 4
        ):
            (folder / name).write_bytes(any_picture(rng) if rng.random() < 0.3 else png(doll()))
        for name in rng.sample(("a.txt", "b.txt", "c.caption", "a.caption"), 2):
            (folder / name).write_bytes(any_text(rng, "an orc") if rng.random() < 0.3 else b"an orc")

        def read(folder: Path = folder) -> None:
            found = class_pictures(folder)
            assert all(not path.name.startswith(".") and text.isprintable() for path, text in found)
            if problems := [told for path, _ in found for told in picture_problems(path, "train.regularisation:")]:
                raise ConfigError(problems)

        seen.add(outcome(read))
        shutil.rmtree(folder)
    assert seen == {0, 2}


@ROUNDS
def test_any_settings_may_be_given_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    monkeypatch.chdir(tmp_path)
    rng, seen, names = random.Random("settings"), set(), setting_names()
    values = (
        *WORDS,
        "[0.5, 1.0]", "[]", "{}", "0", "1e308", "C:\\x\\new", "~/x", "on", "OFF", "None", "0.1,0.2", '["a"]',
    )  # fmt: skip

    def one() -> str:
        name = rng.choice(names)
        if rng.random() < 0.2:
            name = damaged(name, rng)
        return f"{name}{rng.choice(('=', '=', '=', ' = ', '==', ':', ''))}{rng.choice(values)}"

    def made(given: list[str]) -> None:
        assert isinstance(load_profile("embedded", given), Profile)
        check(RunRequest("an orc", overrides=tuple(given)), Home(tmp_path / "home"))

    for _ in range(rounds):
        given = [one() for _ in range(rng.randint(1, 3))]
        seen.add(outcome(lambda given=given: made(given)))
    assert seen <= {0, 2, 3} and 2 in seen
    assert list(tmp_path.iterdir()) == []  # asking writes nothing


METADATA = ("charengine.recipe", "charengine.strength", "charengine.pick", "ss_steps", "ss_max_train_steps", "ss_network_args", "ss_tag_frequency", "ss_base_model_version", "modelspec.trigger_phrase", "modelspec.title", "modelspec.prediction_type")  # fmt: skip


def any_json(rng: random.Random, depth: int = 0) -> object:
    """A value such as another program, or a later version of this one, may have written."""
    plain = (None, True, 3, -1, 1e300, "x", "../../x", "", [], {}, "\u0000", "é" * 50, 10**30)
    if depth > 3 or rng.random() < 0.5:
        return rng.choice(plain)
    if rng.random() < 0.4:
        return [any_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    keys = ("profile", "models", "family", "character", "trigger", "class_noun", "train", "dataset", "name", "x")
    return {rng.choice(keys): any_json(rng, depth + 1) for _ in range(rng.randrange(4))}


@ROUNDS
def test_the_metadata_of_a_foreign_file_are_believed_only_as_far_as_they_go(tmp_path: Path, rounds: int) -> None:
    rng, seen, store = random.Random("metadata"), set(), Store(tmp_path / "store")
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 4), f"{stem}.lora_up.weight": torch.ones(4, 2)}
    path = tmp_path / "adapter.safetensors"
    for _ in range(rounds):
        told = {key: json.dumps(any_json(rng)) for key in METADATA if rng.random() < 0.5}
        told |= {key: rng.choice(WORDS) for key in METADATA if rng.random() < 0.1}
        try:
            path.write_bytes(save_adapter(tensors, told))
        except UnicodeEncodeError:
            continue
        assert adapter_facts(path)["modules"] == 1
        seen.add(outcome(lambda: training_from_file(path, store, class_noun="orc")))
    assert seen == {0, 2} and whole(tmp_path / "store")
