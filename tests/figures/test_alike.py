"""Views that are one picture are said to be before anything is made of them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_samples import doll, write_views
from sheet_samples import Sheet, paint, record_of

from charengine.adapter.files import save_adapter
from charengine.config import CropSettings
from charengine.dataset.reading import read_views
from charengine.errors import StageFailed
from charengine.figures.alike import alike_warnings
from charengine.machine.home import Home
from charengine.stages.crop import crop_views
from charengine.store import Store

SIZES = [(384, 384), (900, 500), (1024, 1024)]


def thrice(sheet: Image.Image) -> Image.Image:
    """A sheet whose three boxes are its first."""
    third, same = sheet.width // 3, sheet.copy()
    for number in range(3):
        same.paste(sheet.crop((0, 0, third, sheet.height)), (number * third, 0))
    return same


def saved_again(image: Image.Image, quality: int) -> Image.Image:
    image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quality", [0, 75])
def test_a_sheet_with_three_equal_boxes_says_so_and_one_with_three_views_does_not(
    store: Store, size: tuple[int, int], quality: int
) -> None:
    same, other = thrice(paint(Sheet(size=size))), paint(Sheet(size=size))
    if quality:
        same, other = saved_again(same, quality), saved_again(other, quality)
    [warning] = crop_views(record_of(same, store), CropSettings(), store).warnings
    assert warning.startswith("the front, side and back views are one picture")
    assert crop_views(record_of(other, store), CropSettings(), store).warnings == ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (("PNG", "PNG", "PNG"), "the front, side and back views are one picture"),
        (("PNG", "WebP", None), "the front and side views are one picture"),
        (("JPEG", None, "PNG"), "the front and back views are one picture"),
    ],
)
def test_a_folder_whose_views_are_one_picture_says_which(
    store: Store, tmp_path: Path, content: tuple[str | None, ...], told: str
) -> None:
    for view, kind in zip(("front", "side", "back"), content, strict=True):
        picture = doll() if kind else doll(coat=(200, 60, 40))
        picture.save(tmp_path / f"{view}.{(kind or 'PNG').lower()}", kind or "PNG", **{"quality": 90} if kind else {})
    [warning] = read_views(tmp_path, store).warnings
    assert warning.startswith(told)


def test_pictures_that_differ_in_a_detail_are_several(store: Store, tmp_path: Path) -> None:
    assert read_views(write_views(tmp_path / "views", "x"), store).warnings == ()
    face = doll()
    face.paste((20, 20, 24), (44, 20, 52, 26))
    assert alike_warnings({"front": face, "back": doll()}) == ()
    assert alike_warnings({"front": doll((96, 190)), "back": doll()}) == ()


def test_small_pictures_that_differ_in_two_eyes_are_several_and_noise_makes_none() -> None:
    face = doll()
    for x in (42, 51):
        face.paste((20, 20, 24), (x, 22, x + 3, 25))
    assert alike_warnings({"front": face, "back": doll()}) == ()
    grainy = doll()
    for number in range(60):
        if number == 14:  # as many pixels as the eyes, each alone
            assert len(alike_warnings({"front": grainy, "back": doll()})) == 1
        grainy.putpixel((5 + 6 * (number % 15), 60 + 20 * (number // 15)), (128, 20, 200))
    assert alike_warnings({"front": grainy, "back": doll()}) == ()


@pytest.mark.parametrize(
    "command",
    [
        ["expand", "views", "--prompt", "an orc"],
        ["caption", "views", "--name", "Zorga", "--prompt", "an orc"],
        ["train", "views"],
        ["sweep", "adapter.safetensors", "--views", "views"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_over_a_folder_says_it_before_it_works(
    command: list[str], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from charengine.cli.main import main

    def work(*_: object) -> None:
        raise StageFailed("the work began")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("charengine.run.running.run", work)
    monkeypatch.setattr("charengine.run.earlier_runs._check_layers", lambda *_: None)
    layer = {f"lora_unet_middle_block_1_proj_in.lora_{side}.weight": torch.ones(2, 2) for side in ("down", "up")}
    (tmp_path / "adapter.safetensors").write_bytes(save_adapter(layer, {}))
    folder = write_views(tmp_path / "views", "zorgax, orc, {view} view")
    for view in ("side", "back"):
        (folder / f"{view}.png").write_bytes((folder / "front.png").read_bytes())
    if command[0] == "caption":  # whose files these are
        for caption in folder.glob("*.txt"):
            caption.unlink()
    named = ["--trigger", "zorgax", "--class-noun", "orc"] if command[0] == "sweep" else []
    monkeypatch.setattr(sys, "argv", ["charengine", *command, *named])
    with pytest.raises(SystemExit):
        main()
    told = capfd.readouterr().err
    assert told.count("views are one picture") == 1 and "the work began" in told.partition("are one picture")[2]
