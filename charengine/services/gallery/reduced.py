"""Pictures made small for pages, remembered while there is room."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict

WIDTHS = (160, 320, 640)  # pixels
MOST_KEPT = 1000  # some ten kilobytes each


class Reduced:
    """Makes small pictures; one that was asked for before is not made again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, data: bytes, width: int) -> bytes:
        """At most so wide and one and a half times as tall, as WebP.

        Args:
            data: of a PNG, JPEG or WebP picture.
            width: one of `WIDTHS`.
        """
        key = (hashlib.blake2b(data, digest_size=16).digest(), width)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = _make(data, width)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return made


def _make(data: bytes, width: int) -> bytes:
    from PIL import Image

    from charengine.pictures import webp

    image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    image.draft("RGB", (width * 2, width * 3))
    small = image.convert("RGB")
    small.thumbnail((width, width * 3 // 2), Image.Resampling.LANCZOS)
    return webp(small)
