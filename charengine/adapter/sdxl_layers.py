"""The layers of SDXL's U-Net that are adapted, as `models/configs/sdxl/unet/config.json` has them; known without torch."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from charengine.adapter.keys import named, stems_of

TEXT, TIME, ADDED = 2048, 1280, 2816  # widths of the text embedding, the time embedding and what is added to that
WIDTHS, DEPTHS = (320, 640, 1280), (0, 2, 10)  # by level: channels, and transformer blocks of an attention


def layer_shapes() -> dict[str, tuple[int, ...]]:
    """Diffusers name of a layer → its weight's shape, (out, in, *kernel)."""
    into, skips = WIDTHS[0], [WIDTHS[0]]
    shapes: dict[str, tuple[int, ...]] = {"conv_in": (into, 4, 3, 3), "conv_out": (4, into, 3, 3)}
    for name, wide in (("time", into), ("add", ADDED)):
        shapes |= {f"{name}_embedding.linear_1": (TIME, wide), f"{name}_embedding.linear_2": (TIME, TIME)}
    for level, width in enumerate(WIDTHS):
        for n in range(2):
            shapes |= _block(f"down_blocks.{level}", n, into, width, DEPTHS[level])
            into = width
            skips.append(width)
        if level < 2:
            shapes[f"down_blocks.{level}.downsamplers.0.conv"] = (width, width, 3, 3)
            skips.append(width)
    shapes |= _block("mid_block", 0, into, into, DEPTHS[2]) | _block("mid_block", 1, into, into, 0)
    for level in range(3):
        for n in range(3):
            shapes |= _block(f"up_blocks.{level}", n, into + skips.pop(), WIDTHS[2 - level], DEPTHS[2 - level])
            into = WIDTHS[2 - level]
        if level < 2:
            shapes[f"up_blocks.{level}.upsamplers.0.conv"] = (into, into, 3, 3)
    return shapes


@cache
def layers_by_stem() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every spelling of a layer in the files that are read → its diffusers name and its weight's shape."""
    shapes = layer_shapes()
    down, up = (
        [
            SimpleNamespace(resnets=range(n), attentions=one, downsamplers=one, upsamplers=one)
            for one in (True, True, None)
        ]
        for n in (2, 3)
    )
    structure = SimpleNamespace(down_blocks=down, up_blocks=up)
    return {stem: (name, shapes[name]) for stem, name in stems_of(named(shapes, structure)).items()}


def _block(place: str, n: int, into: int, out: int, depth: int) -> dict[str, tuple[int, ...]]:
    """A resnet and the attention behind it."""
    resnet, attention = f"{place}.resnets.{n}", f"{place}.attentions.{n}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{resnet}.conv1": (out, into, 3, 3),
        f"{resnet}.conv2": (out, out, 3, 3),
        f"{resnet}.time_emb_proj": (out, TIME),
    }
    if into != out:
        shapes[f"{resnet}.conv_shortcut"] = (out, into, 1, 1)
    if depth:
        shapes |= {f"{attention}.proj_in": (out, out), f"{attention}.proj_out": (out, out)}
    for block in (f"{attention}.transformer_blocks.{one}" for one in range(depth)):
        shapes |= {f"{block}.ff.net.0.proj": (8 * out, out), f"{block}.ff.net.2": (out, 4 * out)}
        for to in ("q", "k", "v", "out.0"):
            shapes |= {
                f"{block}.attn1.to_{to}": (out, out),
                f"{block}.attn2.to_{to}": (out, TEXT if to in "kv" else out),
            }
    return shapes
