"""The renderer of a build draws what the package's renderer draws."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from charengine.embedded import figure, raster, scenery, world
from charengine.embedded.making import data, render_graph
from charengine.embedded.traits import BACKGROUNDS, POSES, TRAITS, sample_indices

ROOT = Path(__file__).parents[2]

COMPARE = """
import sys
import torch
from charengine.embedded import raster, world
from charengine.embedded.making import render_kernel
from charengine.embedded.traits import COLUMN, POSES, TRAITS, sample_indices

first, last, width, height = (int(v) for v in sys.argv[1:])
torch.set_num_threads(1)
render_kernel._BLOCK_HEIGHT = render_kernel._BLOCK_WIDTH = 64  # the interpreter pays for each block
indices = sample_indices(12, torch.Generator().manual_seed(3))
place = torch.arange(12)
indices[:, COLUMN["species"]] = place % len(TRAITS["species"])
indices[:, COLUMN["top"]] = place % len(TRAITS["top"])
indices[:, COLUMN["pattern"]] = place % len(TRAITS["pattern"])
indices[:, COLUMN["tattoo"]] = place % len(TRAITS["tattoo"])
indices[::2, COLUMN["left_item"]] = TRAITS["left_item"].index("eye patch")
part = slice(first, last)

def draw():
    return world.render(
        indices[part], yaw=place[part] * 0.06, pose=place[part], background=place[part] * 0, size=(width, height),
        framing=torch.where(place % 3 == 1, 1.8, 0.9)[part], chunk=12,
    )

wanted = draw()
raster.draw_smooth = render_kernel.draw_smooth
got = draw()
print((wanted.image - got.image).abs().mean().item(), (wanted.alpha - got.alpha).abs().mean().item(),
      wanted.alpha.mean().item())
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which CUDA builds of torch bring")
@pytest.mark.parametrize(
    ("first", "last", "size"),
    [(0, 12, (17, 47)), (0, 1, (40, 40)), (2, 6, (33, 31))],
    ids=["every pose, species and paint; odd size", "one picture, square", "zoomed in, cut off by the edges"],
)
def test_the_kernel_draws_the_figures_that_the_package_draws(first: int, last: int, size: tuple[int, int]) -> None:
    """In a process of its own: Triton decides at import whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(first), str(last), *map(str, size)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    image, alpha, covered = (float(v) for v in done.stdout.split())
    assert covered > 0.05
    assert image < 1e-4 and alpha < 1e-4


def test_scenes_drawn_for_their_own_pictures_only_are_the_same_scenes() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 2 * len(BACKGROUNDS)
    background = torch.randperm(n, generator=generator) % len(BACKGROUNDS)
    shift, ground = torch.rand(n, generator=generator), 0.8 + 0.2 * torch.rand(n, generator=generator)
    drawn = scenery.draw_background(background, (41, 30), shift, ground)
    alone = [scenery.draw_background(background[i], (41, 30), shift[i], ground[i]) for i in torch.arange(n).split(1)]
    torch.testing.assert_close(drawn, torch.cat(alone), atol=1e-6, rtol=0)
    white = drawn[background == 0]
    assert torch.equal(white, torch.ones_like(white))


def test_figures_built_from_kept_constants_are_the_same_and_need_no_new_ones() -> None:
    constants = render_graph.Constants()
    pose = torch.arange(12) % len(POSES)
    first, second = (sample_indices(12, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    with constants:
        figure.build_figures(first, pose)
        kept = len(constants.kept)
        solids, face = figure.build_figures(second, pose)
    assert kept > 100 and len(constants.kept) == kept, "a constant made anew would copy from the host during a capture"
    wanted_solids, wanted_face = figure.build_figures(second, pose)
    for name, value in wanted_solids.__dict__.items():
        assert torch.equal(getattr(solids, name), value), name
    assert all(torch.equal(face[name], value) for name, value in wanted_face.items())


def test_without_cuda_nothing_is_replaced() -> None:
    before = (world.build_figures, world.draw_background)
    assert data.compile_renderer(torch.device("cpu")) == "eager (CPU)"
    assert (world.build_figures, world.draw_background) == before


def test_kernels_that_cannot_run_or_draw_otherwise_are_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(torch.tensor([0.0, 0.5, 0.5]))  # what is wanted, then what two sets of kernels draw
    monkeypatch.setattr(data, "allow_recompiles", lambda: None)
    monkeypatch.setattr(data, "_renderer_samples", lambda device: (next(drawn),))
    before = (raster.draw_smooth, world.build_figures, world.draw_background)
    said = data.compile_renderer(SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    assert said.startswith("eager: not with 2 parts: ") and ("differ by [0.5]" in said or "triton" in said)
    assert (raster.draw_smooth, world.build_figures, world.draw_background) == before


def test_the_paints_compared_include_every_trait_that_is_painted() -> None:
    """The comparison above deals out twelve characters: every species, top and pattern must come up."""
    assert max(len(TRAITS[name]) for name in ("species", "top", "pattern", "tattoo")) <= 12
