"""The template is three white boxes between black rules, at any size."""

import numpy as np
import pytest

from charengine.figures.template import boxes, rule_width, template


@pytest.mark.parametrize("size", [(96, 96), (384, 384), (1024, 1024), (1536, 1024)])
def test_every_box_is_white_inside_and_everything_else_is_a_black_rule(size):
    image = template(*size)
    assert image.mode == "RGB" and image.size == size
    pixels = np.asarray(image)
    outside = np.ones(pixels.shape[:2], bool)
    for x0, y0, x1, y1 in boxes(*size):
        assert (pixels[y0:y1, x0:x1] == 255).all()
        outside[y0:y1, x0:x1] = False
    assert (pixels[outside] == 0).all()


def test_the_boxes_are_equally_wide_and_the_rules_scale_with_the_sheet():
    widths = [x1 - x0 for x0, _, x1, _ in boxes(1536, 1024)]
    assert max(widths) - min(widths) <= 1
    assert rule_width(384, 384) == 2
    assert rule_width(1536, 1024) == 5
    assert boxes(384, 384)[0] == (2, 2, 127, 382)


def test_a_template_too_small_to_hold_three_figures_is_refused():
    with pytest.raises(ValueError, match="at least 96"):
        template(95, 384)
