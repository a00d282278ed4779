"""Pictures rendered a second, eager and as a build renders them, and where the time goes.

python -m charengine.embedded.making.render_speed [--device cuda] [--seconds 5] [--n 1024] [--chunk 256,1024]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from charengine.embedded import raster, world
from charengine.embedded.making.data import Renderer, compile_renderer

STAGES: tuple[tuple[Any, str], ...] = (
    (world, "build_figures"), (world, "_fit"), (raster, "draw_smooth"), (raster, "trace"), (raster, "shade"),
    (raster, "outline"), (world, "draw_background"), (world, "_render"),
)  # fmt: skip
"""Those inside another count in it too; the kernels do trace, shade and outline inside `draw_smooth`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--n", type=int, default=1024, help="pictures a call, rounded down to whole sheets for sheets")
    parser.add_argument("--chunk", default="256,1024", help="pictures drawn at once; several to compare")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    for how in ("eager", ""):
        print(how or compile_renderer(device), flush=True)
        for chunk in (int(c) for c in args.chunk.split(",")):
            renderer = Renderer(device, 0)
            renderer.chunk = chunk if device.type == "cuda" else None
            sheets = max(1, args.n // 3)
            measure(f"128x384 sheet views, {chunk} at once", partial(renderer.sheets, sheets), 3 * sheets, args)
            indices = renderer.characters(args.n)
            measure(
                f"256x256 scenes, {chunk} at once",
                partial(renderer.pictures, indices, (256, 256), plain=0.2, exact=0.5),
                args.n,
                args,
            )
        if device.type != "cuda":
            break
    return 0


def measure(name: str, draw: Callable[[], object], pictures: int, args: argparse.Namespace) -> None:
    """Print pictures a second over `args.seconds`, then the stages of one call."""
    draw()  # compiles, fills caches
    wait(args.device)
    started, calls = time.monotonic(), 0
    while time.monotonic() - started < args.seconds:
        draw()
        wait(args.device)
        calls += 1
    rate = calls * pictures / (time.monotonic() - started)
    print(f"  {name}: {rate:.0f} a second", flush=True)
    print("    ms a call: " + ", ".join(f"{k} {v:.1f}" for k, v in stages(draw, args.device).items()), flush=True)


def stages(draw: Callable[[], object], device: str) -> dict[str, float]:
    """Milliseconds each stage takes on the device in one call, the host's delays included."""
    spans: dict[str, list[tuple[Any, Any]]] = {}
    originals = [(module, name, getattr(module, name)) for module, name in STAGES]

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = mark(device)
            result = function(*args, **kwargs)
            spans.setdefault(name, []).append((start, mark(device)))
            return result

        return call

    for module, name, function in originals:
        setattr(module, name, timed(name, function))
    try:
        start = mark(device)
        draw()
        spans["all"] = [(start, mark(device))]
        wait(device)
    finally:
        for module, name, function in originals:
            setattr(module, name, function)
    return {name: sum(elapsed(a, b) for a, b in pairs) for name, pairs in spans.items()}


def mark(device: str) -> Any:
    """A point in time: a CUDA event, or the clock."""
    if not device.startswith("cuda"):
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(start: Any, end: Any) -> float:
    """Milliseconds between two marks."""
    return float(1000 * (end - start) if isinstance(start, float) else start.elapsed_time(end))


def wait(device: str) -> None:
    """Let the device finish."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
