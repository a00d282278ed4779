"""The template the edit model fills: three hard-edged boxes side by side, black rules on white."""

from __future__ import annotations

from PIL import Image, ImageDraw

from charengine.pictures import Box

RULE_SHARE = 5 / 1024  # the origin's template: 4-7 px rules on 1024 px
MIN_SIDE = 96


def template(width: int, height: int) -> Image.Image:
    """Draw the template.

    Args:
        width: pixels, at least 96.
        height: pixels, at least 96.

    Returns:
        RGB image, white with black rules around the three boxes of `boxes`.
    """
    image = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(image)
    for x0, y0, x1, y1 in boxes(width, height):
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill="white")
    return image


def boxes(width: int, height: int) -> tuple[Box, Box, Box]:
    """The insides of the front, side and back box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
    if width < MIN_SIDE or height < MIN_SIDE:
        raise ValueError(f"a template of {width}×{height} is too small: both sides must be at least {MIN_SIDE} pixels")
    rule = rule_width(width, height)
    edges = [round(k * (width - rule) / 3) for k in range(4)]
    front, side, back = ((edges[k] + rule, rule, edges[k + 1], height - rule) for k in range(3))
    return front, side, back


def rule_width(width: int, height: int) -> int:
    """Thickness of the rules in pixels."""
    return max(2, round(min(width, height) * RULE_SHARE))
