"""Words on the page can be read: in light and dark, on paper, card and soft ground, in the chart's colours too."""

from __future__ import annotations

import pytest

from charengine.stages.report.style import CSS, DARK, LIGHT

GROUNDS = ("paper", "card", "soft")
WRITTEN = ("ink", "muted", "accent", "good", "warn", "s0", "s1", "s2", "s3", "s4", "s5")


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_wcag_says() -> None:
    assert contrast("#000000", "#ffffff") == 21
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_that_words_have_stands_out_from_every_ground(colours: dict[str, str]) -> None:
    weak = {(w, g): round(contrast(colours[w], colours[g]), 2) for w in WRITTEN for g in GROUNDS}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}
    assert contrast(colours["faint"], colours["paper"]) >= 3  # a line, no words


def test_the_style_sheet_has_these_colours() -> None:
    light, dark = CSS.split("@media (prefers-color-scheme:dark)")[:2]
    assert all(f"--{name}:{colour}" in light for name, colour in LIGHT.items())
    assert all(f"--{name}:{colour}" in dark for name, colour in DARK.items())
