"""Sizes of the embedded family that its users need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from charengine.embedded.making.family import SHEET_SIZE

EMBEDDED_VAE_AREA = SHEET_SIZE * SHEET_SIZE
EMBEDDED_CONDITION_AREA = 96 * 96
