"""Picture files, looked into before they are decoded: decoders fill up what is missing or damaged, and say nothing."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Iterator

from charengine.errors import BadInput

MOST_TEXT = 1_000_000  # bytes of a PNG's text that is kept, unpacked: only what turns a picture upright is used
PNG_START = b"\x89PNG\r\n\x1a\n"
UPRIGHT = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # texts that may say how a picture is turned
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# behind a segment; some programs leave a few stray bytes there, which decoders skip
NEXT_JPEG_MARKER = re.compile(rb"(?:[^\xff]|\xff\x00){0,16}\xff+([^\x00\xff])")
MOST_SCANS = 64  # looked at, of pictures that are drawn in several
NOISE = random.Random(0).randbytes(4096).replace(b"\xff", b"")  # no marker
JPEG_END, JPEG_SCAN, JPEG_RESTARTS = 0xD9, 0xDA, range(0xD0, 0xD8)
BETWEEN_SCANS = {0xC4, 0xCC, JPEG_SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, scans, notes


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of each chunk of a PNG, its length and checksum included."""
    place = len(PNG_START)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], place, place + 12 + length
        place += 12 + length


def slim(data: bytes) -> bytes:
    """A PNG without texts, which may be large or unpack to more than fits in memory; any other file as it is."""
    if not data.startswith(PNG_START):
        return data
    dropped = [
        (start, end)
        for kind, start, end in _chunks(data)
        if (kind in (b"tEXt", b"zTXt", b"iTXt") and not _turns(data[start + 8 : end - 4]))
        or (kind == b"iCCP" and not _is_small(data[start + 8 : end - 4]))
    ]
    if not dropped:
        return data
    kept, place = [], 0
    for start, end in dropped:
        kept.append(data[place:start])
        place = end
    return b"".join([*kept, data[place:]])


def _turns(text: bytes) -> bool:
    """Whether a text chunk may say how the picture is turned, and is small also when it is unpacked."""
    keyword = text.partition(b"\0")[0]
    return keyword in UPRIGHT and _is_small(text)


def _is_small(text: bytes) -> bool:
    """Whether a chunk of a keyword and something that may be packed is small, also when that is unpacked."""
    rest = text.partition(b"\0")[2]
    if len(text) > MOST_TEXT:
        return False
    start = rest.find(b"\x78")  # where packed bytes would begin
    try:
        unpacked = zlib.decompressobj().decompress(rest[max(start, 0) :], MOST_TEXT + 1)
    except zlib.error:
        return True  # not packed
    return len(unpacked) <= MOST_TEXT


def check_end(data: bytes, name: str) -> None:
    """Refuse a picture that is cut off, without decoding it: of class images there may be thousands."""
    whole = True
    if data.startswith(b"\xff\xd8"):
        if told := _jpeg_scans(data)[0]:
            raise BadInput(f"{name} is damaged: {told}; save or download it again")
    elif data.startswith(b"RIFF"):
        whole = len(data) >= 7 + int.from_bytes(data[4:8], "little")
    elif data.startswith(PNG_START):
        ends = {kind: end for kind, _, end in _chunks(data)}
        whole = b"IEND" in ends or max(ends.values(), default=0) == len(data)  # pixels may be all there without it
    if not whole:
        raise BadInput(f"{name} is damaged: it is cut off, its end is missing; save or download it again")


def check_rows(data: bytes, name: str) -> None:
    """Refuse a PNG whose packed pixels end before its last row: decoders fill up what is missing with black."""
    if not data.startswith(PNG_START) or data[12:16] != b"IHDR":
        return
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    wanted = _packed_size(width, height, depth * CHANNELS.get(colour, 1), bool(interlace))
    unpacker, found = zlib.decompressobj(), 0
    for kind, start, end in _chunks(data):
        packed = data[start + 8 : end - 4] if kind == b"IDAT" else b""
        while packed and found < wanted:
            found += len(unpacker.decompress(packed, 1 << 20))
            packed = unpacker.unconsumed_tail
    if found < wanted:
        share = 100 * found // wanted  # never 100
        raise BadInput(f"{name} is damaged: it is cut off, {share}% of its rows are there; save or download it again")


def check_palette(data: bytes, last: int, name: str) -> None:
    """Refuse a PNG whose palette lacks colours, of which `last` is the highest number among its pixels: decoders make them up."""
    if not data.startswith(PNG_START):
        return
    sizes = {kind: end - start - 12 for kind, start, end in _chunks(data)}
    colours, named = sizes.get(b"PLTE", 0) // 3, max(last + 1, sizes.get(b"tRNS", 0))
    if named > colours:
        raise BadInput(
            f"{name} is damaged: its palette has {colours} colours and {named} are named; save or download it again"
        )


def begins_well(data: bytes) -> bool:
    """Whether a file begins as a picture that is read does: what then cannot be opened is damaged, not something else."""
    return data.startswith((PNG_START, b"\xff\xd8\xff")) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def _packed_size(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows, each with the byte that names its filter."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns, rows = (width - x + step_x - 1) // step_x, (height - y + step_y - 1) // step_y
        total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
    return total


def stretched(data: bytes) -> bytes:
    """A JPEG that passed `check_end`, with noise behind each scan's packed pixels: a decoder that has them all passes over it."""
    kept, place = [], 0
    for end, restarts in _jpeg_scans(data)[1][-MOST_SCANS:]:
        kept += [data[place:end], NOISE]
        for number in range(restarts, restarts + len(JPEG_RESTARTS)):
            kept += [bytes((0xFF, JPEG_RESTARTS[number % len(JPEG_RESTARTS)])), NOISE]
        place = end
    return b"".join([*kept, data[place:]])


def _jpeg_scans(data: bytes) -> tuple[str, list[tuple[int, int]]]:
    """Where a JPEG is cut off, or its packed pixels hold what no program writes there; the ends of its scans until then, and how often each restarts.

    Whoever writes packed pixels puts a zero behind each 255, so that only markers stand there without; restart markers count from 0
    to 7 and on. Decoders leave out the rest, or what they can, without a word.
    """
    ends: list[tuple[int, int]] = []
    place = 2  # of the first marker; 255s may fill up before each; a thumbnail lies inside one's segment
    while (marker := NEXT_JPEG_MARKER.match(data, place)) and marker[1][0] != JPEG_SCAN:
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    if data.find(b"\xff\xd9", place) < 0:
        return "it is cut off, its end is missing", ends
    if marker is None:
        return "", ends  # what stands before the pixels is odd: the decoder tells, or can read it
    while marker := NEXT_JPEG_MARKER.match(data, place):
        kind = marker[1][0]
        if kind not in BETWEEN_SCANS:
            told = f"its packed pixels hold the marker {kind:02X} at byte {place:,}"
            return "" if kind == JPEG_END else told, ends
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if kind != JPEG_SCAN:
            continue
        for count, found in enumerate(JPEG_MARKER.finditer(data, place)):
            place = found.start()
            if found[1][0] not in JPEG_RESTARTS:
                break
            if found[1][0] != JPEG_RESTARTS[count % 8]:
                return f"parts of its packed pixels are missing or doubled at byte {place:,}", ends
        else:
            return "it is cut off, its end is missing", ends
        ends.append((place, count))
    return f"its packed pixels are followed by what is no marker at byte {place:,}", ends
