"""Pictures that are no picture of what is meant: masks, captions and class images, each told before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from run_samples import doll, doll_mask
from test_pictures import saved, three

from charengine.dataset.reading import class_picture_problems, class_pictures, read_dataset, read_views
from charengine.errors import BadInput, ConfigError
from charengine.pictures import read_mask
from charengine.records import VIEWS
from charengine.store import Store


@pytest.mark.parametrize("brightest", [1, 20, 127])
def test_a_mask_of_ones_and_zeros_is_no_mask_of_255(tmp_path: Path, brightest: int) -> None:
    mask = doll_mask().convert("L").point([0] * 128 + [brightest] * 128)
    with pytest.raises(BadInput, match=f"brightest value is {brightest} of 255: paint the figure white"):
        read_mask(saved(tmp_path, "m.png", mask), mask.size)


def test_two_masks_or_two_captions_of_one_picture_that_differ_are_refused(tmp_path: Path, store: Store) -> None:
    folder = three(tmp_path / "views")
    for view in VIEWS:
        (folder / f"{view}.txt").write_text(f"griqul, woman, {view}", encoding="utf-8")
    (folder / "front.caption").write_text("griqul, woman, front ", encoding="utf-8")
    (folder / "masks").mkdir()
    saved(folder, "front.alpha.png", doll_mask())
    saved(folder / "masks", "front.png", doll_mask())
    read_dataset(folder, store)
    (folder / "front.caption").write_text("griqul, woman, edited", encoding="utf-8")
    with pytest.raises(BadInput, match=r"captions .*front\.txt and .*front\.caption of one picture differ: leave one"):
        read_dataset(folder, store)
    with pytest.raises(BadInput, match=r"front\.caption of one picture differ"):
        class_pictures(folder)
    saved(folder / "masks", "front.png", doll_mask().convert("L").point(lambda value: 255 - value))
    with pytest.raises(ConfigError, match=r"masks .*front\.alpha\.png and .*front\.png of one picture differ"):
        read_views(folder, store)


def test_views_of_a_format_that_is_not_read_are_named(tmp_path: Path, store: Store) -> None:
    folder = three(tmp_path / "views")
    (folder / "front.png").rename(folder / "front.heic")
    doll().save(folder / "side.jfif", "JPEG")
    with pytest.raises(ConfigError) as caught:
        read_views(folder, store)
    assert "0 pictures named front (front.heic is not read: convert it to PNG)" in str(caught.value)
    assert "2 pictures named side (side.jfif, side.png)" in str(caught.value)


def test_class_images_are_whole_and_none_is_passed_over_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    exif = Image.Exif()
    for name, how in (("a.jpg", {"exif": exif, "progressive": True}), ("b.webp", {}), ("c.png", {})):
        saved(folder, name, doll(), **how)
    saved(folder, "c.alpha.png", doll_mask())
    with (folder / "a.jpg").open("ab") as file:
        file.write(b"\xff\xda of a film that a phone put behind it")
    assert [path.name for path, _ in class_pictures(folder)] == ["a.jpg", "b.webp", "c.png"]
    assert class_picture_problems(folder) == [] and not caplog.text
    (folder / "10_woman").mkdir()
    saved(folder / "10_woman", "x.png", doll())
    (folder / "d.gif").write_bytes(b"GIF89a")
    assert class_picture_problems(folder) == []
    assert "not read: d.gif; convert" in caplog.text and "not read: 10_woman; pictures in folders" in caplog.text
    for name in ("a.jpg", "b.webp", "c.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    problems = class_picture_problems(folder)
    assert len(problems) == 3 and all("is damaged" in problem for problem in problems)


def test_a_class_image_has_the_least_size_of_a_view(tmp_path: Path) -> None:
    saved(tmp_path, "a.png", Image.new("RGB", (1, 1), "red"))
    assert "both sides must be at least 16 pixels" in class_picture_problems(tmp_path)[0]
