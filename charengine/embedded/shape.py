"""Sizes of the embedded family that its users need."""

SHEET_SIZE = 384  # pixels, both sides of the sheets it was trained on
VIEW_SIZE = (SHEET_SIZE // 3, SHEET_SIZE)  # of a view cut from one
PICTURE_SIZE = (256, 256)  # of single pictures in scenes
EMBEDDED_VAE_AREA = SHEET_SIZE * SHEET_SIZE
EMBEDDED_CONDITION_AREA = 96 * 96
