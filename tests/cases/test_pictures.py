"""One reader for every picture: upright, on white, whole, never larger than memory; and masks are named when they are wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from run_samples import doll, doll_mask

from charengine.config import TrainSettings
from charengine.dataset.reading import class_picture_problems, class_pictures, read_dataset, read_views
from charengine.errors import BadInput, ConfigError
from charengine.pictures import open_image, picture_problems, png, read_mask, read_picture
from charengine.records import VIEWS
from charengine.stages.sheet.given import take_sheet
from charengine.store import Store


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int, height: int, rows: int, depth: int = 8, colour: int = 2, interlace: int = 0, channels: int = 3
) -> bytes:
    """A PNG that says it is of one size and holds some rows of it, neatly packed."""
    row = b"\0" + b"\x80" * (width * 3 * depth // 8) if rows else b""  # not of a size that only the header has
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    packed = zlib.compress(row * rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def close(left: Image.Image, right: Image.Image, by: float = 6) -> bool:
    same = left.size == right.size and left.mode == right.mode
    return same and float(np.abs(np.asarray(left, float) - np.asarray(right, float)).mean()) < by


def saved(folder: Path, name: str, image: Image.Image, **how: object) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **how)
    return folder / name


def three(folder: Path) -> Path:
    for view in VIEWS:
        saved(folder, f"{view}.png", doll())
    return folder


# --- colours and directions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_stands_as_its_exif_says(tmp_path: Path, suffix: str, turn: int) -> None:
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = doll().transpose(getattr(Image.Transpose, undo[turn])) if turn in undo else doll()
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path, f"a.{suffix}", stored, exif=exif)
    assert close(read_picture(path, "picture").image, doll())


def cut_out() -> Image.Image:
    """A figure on nothing; what is hidden is black, as programs leave it."""
    black = Image.composite(doll(), Image.new("RGB", doll().size), doll_mask())
    black.putalpha(doll_mask())
    return black


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_and_the_alpha_is_the_mask(tmp_path: Path, store: Store, mode: str) -> None:
    for view in VIEWS:
        image = cut_out()
        if mode == "P":
            image = image.quantize(64)
        saved(tmp_path / "views", f"{view}.png", image.convert("LA") if mode == "LA" else image)
    views = read_views(tmp_path / "views", store)
    for view in views.views:
        image = open_image(store.get(view.image))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert mode == "LA" or close(image, doll(), 8)
        assert close(open_image(store.get(view.alpha), "L"), doll_mask(), 2)
    assert views.background == (255, 255, 255)


def test_a_few_clear_pixels_are_no_mask(tmp_path: Path, store: Store) -> None:
    for view in VIEWS:
        image = doll().convert("RGBA")
        image.putpixel((0, 0), (0, 0, 0, 0))
        saved(tmp_path / "views", f"{view}.png", image)
    (view, *_) = read_views(tmp_path / "views", store).views
    mask = np.asarray(open_image(store.get(view.alpha), "L")) > 127
    assert 0.1 < mask.mean() < 0.6  # measured: the figure, not everything but one pixel


@pytest.mark.parametrize("kind", ["cmyk", "grey", "16 bit", "palette", "one bit", "interlaced", "clear grey"])
def test_every_kind_of_pixel_becomes_eight_bit_rgb(tmp_path: Path, kind: str) -> None:
    grey = doll().convert("L")
    if kind == "cmyk":
        path, wanted = saved(tmp_path, "a.jpg", doll().convert("CMYK"), quality=95), doll()
    elif kind == "16 bit":
        path = saved(tmp_path, "a.png", Image.fromarray(np.asarray(grey).astype(np.uint16) * 257))
        wanted = grey.convert("RGB")
    elif kind == "palette":
        path, wanted = saved(tmp_path, "a.png", doll().quantize(32)), doll()
    elif kind == "one bit":
        path, wanted = saved(tmp_path, "a.png", grey.convert("1")), grey.convert("1").convert("RGB")
    elif kind == "interlaced":
        path = tmp_path / "a.png"
        path.write_bytes(raw_png(1, 1, 1, interlace=1))
        wanted = Image.new("RGB", (1, 1), (128, 128, 128))
    elif kind == "clear grey":
        path, wanted = saved(tmp_path, "a.png", grey, transparency=0), grey.convert("RGB")
    else:
        path, wanted = saved(tmp_path, "a.png", grey), grey.convert("RGB")
    assert close(read_picture(path, "picture").image, wanted)


def test_a_dark_picture_of_sixteen_bits_stays_dark(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.fromarray(np.full((32, 32), 200, np.uint16)))
    assert read_picture(path, "picture").image.getpixel((0, 0)) == (0, 0, 0)


def profile_of_swapped_colours() -> bytes:
    """sRGB's profile with red's primary where green's belongs."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_what_the_files_profile_means(tmp_path: Path, suffix: str, mode: str) -> None:
    if suffix == "jpg" and mode != "RGB":
        return
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (16, 16), (200, 20, 30)).convert(mode).save(path, icc_profile=profile_of_swapped_colours())
    red, green, blue = read_picture(path, "picture").image.getpixel((8, 8))  # type: ignore[misc]
    assert green > 150 and red < 90 and blue < 90


def with_chunks(path: Path, image: Image.Image, **chunks: bytes) -> Path:
    info = PngImagePlugin.PngInfo()
    for kind, data in chunks.items():
        info.add(kind.encode(), data)
    image.save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize(("gamma", "bright"), [(100_000, 128), (45_455, 55), (0, 55), (1, 55)])
def test_pixels_are_as_bright_as_a_pngs_gamma_means_unless_it_says_that_it_is_srgb(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, gamma: int, bright: int
) -> None:
    image = Image.new("RGB", (16, 16), (55, 55, 55)).convert(mode, palette=1)
    if mode == "RGBA":
        image.putpixel((0, 0), (0, 0, 0, 55))
    for wanted, more in ((bright, {}), (55, {"sRGB": b"\0"})):
        read = read_picture(with_chunks(tmp_path / "a.png", image, gAMA=gamma.to_bytes(4, "big"), **more), "picture")
        assert read.image.getpixel((8, 8)) == (wanted,) * 3
        assert read.alpha is None or read.alpha.getpixel((0, 0)) == 55  # how opaque it is, is no light
    assert ["cannot be meant" in message for message in caplog.messages] == [True] * (gamma == 1)


def test_primaries_that_are_not_srgbs_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for green, told in ((30_000, 0), (21_000, 1)):
        primaries = struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, green, 60_000, 15_000, 6_000)
        read_picture(with_chunks(tmp_path / "a.png", doll(), cHRM=primaries), "picture")
        assert len(caplog.messages) == told


@pytest.mark.parametrize("profile", ["sRGB", "damaged", "of another kind"])
def test_srgb_s_own_profile_and_one_that_cannot_be_used_change_nothing(tmp_path: Path, profile: str) -> None:
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = {"sRGB": made, "damaged": made[:60] + b"\xff" * 80, "of another kind": lab}[profile]
    doll().save(tmp_path / "a.png", icc_profile=data)
    assert read_picture(tmp_path / "a.png", "picture").image.tobytes() == doll().convert("RGB").tobytes()


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (16, 2), (8, 2)])
def test_the_one_transparent_colour_of_a_png_is_clear_at_every_depth(tmp_path: Path, depth: int, colour: int) -> None:
    clear, other, channels = 1, 0, 3 if colour else 1
    if depth == 16:
        clear, other = 0x1234, 0xF234
    rows = b"".join(
        b"\0" + (value.to_bytes(depth // 8, "big") * 8 * channels if depth >= 8 else bytes(bits(value, depth)))
        for value in [clear] * 4 + [other] * 4
    )
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"tRNS", clear.to_bytes(2, "big") * channels),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    made = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + made)
    alpha = read_picture(tmp_path / "a.png", "picture").alpha
    assert alpha is not None and np.asarray(alpha)[:, 0].tolist() == [0] * 4 + [255] * 4


def bits(value: int, depth: int) -> list[int]:
    """Eight pixels of a value, packed."""
    packed = sum(value << depth * place for place in range(8 // depth))
    return [packed] * depth


def test_of_an_animation_the_first_frame_is_taken_and_said(tmp_path: Path, store: Store) -> None:
    frames = [doll(coat=coat) for coat in ((40, 90, 180), (200, 0, 0))]
    for suffix in ("png", "webp"):
        path = saved(tmp_path, f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
        picture = read_picture(path, "picture")
        assert close(picture.image, frames[0]) and "animated" in picture.warnings[0]
    three(tmp_path / "views")
    saved(tmp_path / "views", "side.png", frames[0], save_all=True, append_images=frames[1:])
    assert "side.png is animated" in read_views(tmp_path / "views", store).warnings[0]


# --- what is beside the pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_a_long_text_beside_the_pixels_does_not_matter(tmp_path: Path, packed: bool) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "x" * 3_000_000, zip=packed)
    notes.add_itxt("workflow", "y" * 3_000_000, zip=packed)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, "a.png", doll().transpose(Image.Transpose.ROTATE_90), pnginfo=notes, exif=exif)
    assert close(read_picture(path, "picture").image, doll())


def test_a_text_that_unpacks_to_more_than_memory_is_passed_over(tmp_path: Path) -> None:
    bomb = b"Raw profile type exif\0\0" + zlib.compress(b"\0" * 50_000_000, 9)
    data = raw_png(64, 64, 64)
    (tmp_path / "a.png").write_bytes(data[:33] + chunk(b"zTXt", bomb) + chunk(b"iCCP", b"x\0\0" + bomb) + data[33:])
    assert read_picture(tmp_path / "a.png", "picture").image.size == (64, 64)


def test_an_exif_that_cannot_be_read_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jpg", doll(), exif=b"Exif\0\0MM\0*\0\0\0\xff\xff")
    assert close(read_picture(path, "picture").image, doll())


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    (told,) = picture_problems(path, "picture")
    assert str(path) in told or path.name[:50] in told
    return told


@pytest.mark.parametrize(("rows", "share"), [(11, " 1%"), (1023, " 99%"), (0, " 0%")])
def test_a_png_that_ends_early_is_refused(tmp_path: Path, rows: int, share: str) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(64, 1024, rows))
    assert "damaged" in refusal(tmp_path / "a.png") and share in refusal(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(raw_png(64, 1024, 1024))
    assert picture_problems(tmp_path / "a.png", "picture") == []


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_download_that_stopped_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8))
    path = saved(tmp_path, f"a.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("size", [(13_300, 13_300), (60_000, 8), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(raw_png(*size, rows=0))
    assert "reduce it" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty: save or download it again"),
        *[(other, "is not a readable PNG, JPEG or WebP") for other in (b"GIF89a", b"BM6", b"%PDF-1.4", b"<svg/>")],
        *[(start, "is damaged") for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP")],
    ],
)
def test_what_is_no_picture_or_begins_as_one_is_refused_by_name(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert told in refusal(tmp_path / "a.png")


def test_a_folder_and_a_missing_file_are_no_pictures(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path) and "no such file" in refusal(tmp_path / "a.png")
    assert "cannot be read" in refusal(tmp_path / ("a" * 300 + ".png"))
    assert "cannot be read" in picture_problems(Path("a\0b.png"), "picture")[0]


# --- where they are used ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"no picture", "mask"), (raw_png(96, 192, 5), "damaged"), (raw_png(64, 64, 64), "64×64, its picture 96×192")],
)
@pytest.mark.parametrize("place", ["front.alpha.png", "masks/front.png"])
def test_a_mask_that_is_wrong_is_named(tmp_path: Path, store: Store, data: bytes, told: str, place: str) -> None:
    file = three(tmp_path / "views") / place
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_views(tmp_path / "views", store)
    assert told in str(caught.value) and str(file) in str(caught.value)


def test_a_mask_is_grey_or_cut_out_and_never_empty(tmp_path: Path) -> None:
    clear = Image.new("RGBA", doll().size, (0, 0, 0, 255))
    clear.putalpha(doll_mask())
    for image in (doll_mask(), clear, doll_mask().convert("RGB"), doll_mask().convert("P")):
        assert close(read_mask(saved(tmp_path, "mask.png", image), doll().size), doll_mask(), 2)
    with pytest.raises(BadInput, match=r"mask .*mask\.png is black all over"):
        read_mask(saved(tmp_path, "mask.png", Image.new("L", doll().size)), doll().size)


def test_everything_wrong_with_a_folder_of_views_is_said_at_once(tmp_path: Path, store: Store) -> None:
    folder = three(tmp_path / "views")
    (folder / "front.png").write_bytes(b"nothing")
    (folder / "side.alpha.png").write_bytes(b"nothing")
    (folder / "back.png").unlink()
    with pytest.raises(ConfigError) as caught:
        read_views(folder, store)
    assert [name in " ".join(caught.value.problems) for name in ("front.png", "side.alpha.png", "back")] == [True] * 3


@pytest.mark.parametrize("name", ["front.alpha.jpg", "masks/front.jpeg", "masks/front.webp"])
def test_a_mask_of_another_format_is_named_not_passed_over(tmp_path: Path, store: Store, name: str) -> None:
    folder = three(tmp_path / "views")
    read_views(folder, store)
    saved(folder, name, doll_mask())
    with pytest.raises(ConfigError, match=rf"{name} is not read: masks are PNG files"):
        read_views(folder, store)


@pytest.mark.parametrize(
    ("picture", "caption", "mask"),
    [("Front.png", "front.TXT", "FRONT.Alpha.png"), ("front.PNG", "Front.Caption", "Masks/Front.PNG")],
)
def test_names_of_views_captions_and_masks_may_be_in_capitals(
    tmp_path: Path, store: Store, picture: str, caption: str, mask: str
) -> None:
    folder = three(tmp_path)
    for view in VIEWS:
        (folder / f"{view}.txt").write_text(f"zzqo, woman, {view}")
    (folder / "front.png").rename(folder / picture)
    (folder / "front.txt").rename(folder / caption)
    saved(folder, mask, white := Image.new("L", doll().size, 255))
    dataset = read_dataset(folder, store)
    assert dataset.captions[0].text.endswith("front") and store.get(dataset.views.views[0].alpha) == png(white)
    (folder / "A.png").write_bytes((folder / picture).read_bytes())
    (folder / "a.TXT").write_text("a woman")
    assert dict(class_pictures(folder))[folder / "A.png"] == "a woman"
    saved(folder, "fRONT.png", doll())
    with pytest.raises(ConfigError, match="2 pictures named front"):
        read_views(folder, store)


@pytest.mark.parametrize("empty", ["white", "black", (0, 0, 0, 0)])
def test_a_view_of_one_colour_teaches_nothing_and_is_refused(tmp_path: Path, store: Store, empty: object) -> None:
    for view in VIEWS:
        doll().save(tmp_path / f"{view}.png")
    Image.new("RGBA", (300, 600), empty).save(tmp_path / "side.png")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"side.png is of one colour all over"):
        read_views(tmp_path, store)


def test_a_sheet_goes_through_the_same_reader(tmp_path: Path, store: Store) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(300, 1024, 10))
    with pytest.raises(BadInput, match="damaged"):
        take_sheet(tmp_path / "a.png", store)


def test_class_images_go_through_the_same_reader(tmp_path: Path) -> None:
    from charengine.stages.train.data import _read_regularisation

    folder = tmp_path / "reg"
    saved(folder, "a.png", cut_out())
    saved(folder, "b.png", doll())
    (folder / "b.txt").write_text("an orc\n")
    found = _read_regularisation(str(TrainSettings(regularisation=str(folder)).regularisation), _Dataset())
    assert [(name, text) for name, _, text in found] == [("a.png", "woman"), ("b.png", "an orc")]
    assert found[0][1].getpixel((0, 0)) == (255, 255, 255)


class _Dataset:
    class_noun = "woman"


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.txt", "na\xefve".encode("latin-1"), "a.txt is not UTF-8"),
        ("a.txt", b" \n", "a.txt is empty"),
        ("a.txt", b"an \x1b[31morc", "a.txt holds the control character"),
        ("a.png", b"nothing", "a.png is not a readable PNG"),
    ],
)
def test_what_is_wrong_with_class_images_is_said_before_anything_runs(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    saved(tmp_path / "reg", "a.png", doll())
    assert class_picture_problems(tmp_path / "reg") == []
    (tmp_path / "reg" / name).write_bytes(data)
    (problem,) = class_picture_problems(tmp_path / "reg")
    assert told in problem
    assert "it is no folder" in class_picture_problems(tmp_path / "nowhere")[0]
