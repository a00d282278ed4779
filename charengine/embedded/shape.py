"""Sizes of the embedded family that its users need."""

SHEET_SIZE = 384  # pixels, both sides of the sheets it was trained on
EMBEDDED_VAE_AREA = SHEET_SIZE * SHEET_SIZE
EMBEDDED_CONDITION_AREA = 96 * 96
