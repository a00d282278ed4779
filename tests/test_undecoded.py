"""Files that are whole pass, whatever wrote them; those that were damaged in their middle are told before a decoder hides it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from charengine.errors import BadInput
from charengine.pictures import picture_problems, read_picture

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_blocks": 7},
    {"restart_marker_rows": 1, "progressive": True},
    {"subsampling": 0, "quality": 100},
)


def jpeg(mode: str = "RGB", **how: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def problems(tmp_path: Path, data: bytes, decode: bool = True) -> list[str]:
    (path := tmp_path / "a.jpg").write_bytes(data)
    return picture_problems(path, "picture", decode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", WAYS)
def test_a_whole_jpeg_passes_also_with_something_behind_its_end(tmp_path: Path, how: dict[str, Any], mode: str) -> None:
    data = jpeg(mode, **how)
    assert problems(tmp_path, data) == []
    assert (
        problems(tmp_path, data[:-2] + b"\xff" + data[-2:] + b"\xff\x02 a film of a second") == []
    )  # a byte that fills up


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("fill", [1, 2, 5])
def test_a_jpeg_with_bytes_that_fill_up_before_its_markers_passes_unless_it_is_cut_off(
    tmp_path: Path, how: dict[str, Any], fill: int
) -> None:
    data = jpeg(**how)
    filled, place = bytearray(data[:2]), 2
    while data[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        filled += b"\xff" * fill + data[place:end]
        place = end
    filled += b"\xff" * fill + data[place:]
    assert problems(tmp_path, bytes(filled)) == []
    assert "is damaged" in problems(tmp_path, bytes(filled[: len(filled) // 2]))[0]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("segment", [b"\xfe\0\x05abc", b"\xe5\0\x04ab"], ids=["COM", "APP"])
def test_stray_bytes_behind_a_note_are_skipped_as_decoders_do_and_damage_behind_them_is_told(
    tmp_path: Path, how: dict[str, Any], segment: bytes
) -> None:
    data = jpeg(**how)
    for stray in (b"\0", b"\0\n", b"\xff\0ab"):
        note = b"\xff" + segment + stray
        assert problems(tmp_path, data[:-2] + note + data[-2:]) == []
        noted = bytearray(data[:2] + note + data[2:-2] + note + data[-2:])
        assert problems(tmp_path, bytes(noted)) == []
        middle = len(noted) // 2
        noted[middle : middle + 2048] = np.random.default_rng(1).integers(0, 256, 2048, np.uint8).tobytes()
        assert "damaged" in problems(tmp_path, bytes(noted), decode=False)[0]


@pytest.mark.parametrize("how", WAYS)
def test_a_jpeg_overwritten_in_its_middle_is_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    data = bytearray(jpeg(**how))
    middle, other = len(data) // 2, np.random.default_rng(1).integers(0, 256, 2048, np.uint8).tobytes()
    data[middle : middle + len(other)] = other
    assert "damaged" in problems(tmp_path, bytes(data))[0]
    assert "damaged" in problems(tmp_path, bytes(data), decode=False)[0]  # of class images, too
    with pytest.raises(BadInput, match="save or download it again"):
        read_picture(tmp_path / "a.jpg", "picture")


def test_a_jpeg_with_restart_markers_of_which_a_part_is_gone_is_refused(tmp_path: Path) -> None:
    data = jpeg(restart_marker_blocks=7)
    third, fifth = data.index(b"\xff\xd2"), data.index(b"\xff\xd4")
    for damaged in (data[:third] + data[fifth:], data[:fifth] + data[third:]):
        assert "missing or doubled" in problems(tmp_path, damaged)[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", WAYS)
def test_a_jpeg_whose_pixels_end_before_the_picture_is_refused_though_it_has_an_end(
    tmp_path: Path, how: dict[str, Any], mode: str
) -> None:
    data = jpeg(mode, **how)
    start = data.index(b"\xff\xda")
    for share in (0.4, 0.8):
        cut = data[: start + int(share * (len(data) - start))].rstrip(b"\xff") + b"\xff\xd9"
        assert "damaged" in problems(tmp_path, cut)[0]
    frame = data.index(b"\xff\xc2" if how.get("progressive") else b"\xff\xc0") + 5
    taller = data[:frame] + (512).to_bytes(2, "big") + data[frame + 2 :]
    assert "would be made up" in problems(tmp_path, taller)[0]


@pytest.mark.parametrize(
    ("kind", "size", "whole"), [("PLTE", 768, True), ("PLTE", 3, False), ("PLTE", 0, False), ("tRNS", 9, False)]
)
def test_a_palette_that_lacks_colours_is_refused_and_none_is_made_up(
    tmp_path: Path, kind: str, size: int, whole: bool
) -> None:
    painted = Image.new("P", (64, 64))
    painted.putpalette([255, 0, 0, 0, 0, 255])
    painted.putpixel((1, 1), 1)
    painted.save(buffer := io.BytesIO(), "PNG")
    data, body = buffer.getvalue(), kind.encode() + bytes(size)
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    other = struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
    assert problems(tmp_path, data) == []
    told = problems(tmp_path, data[: start if kind == "PLTE" else end] + other + data[end:])
    assert told == [] if whole else "its palette has" in told[0]
