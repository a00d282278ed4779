"""Trains the embedded family.

    python -m charengine.embedded.making.train --part qwen_vae=1.5,sheets --minutes 8 --out DIR [--from DIR]
    python -m charengine.embedded.making.train --all --minutes 9 --out DIR [--from DIR]     every part, all GPUs
    python -m charengine.embedded.making.train --smoke --out DIR                            the same on a CPU, tiny, in seconds
    python -m charengine.embedded.making.train --unpack DIR                                 into charengine/embedded/weights
    python -m charengine.embedded.making.train --pack DIR                                   into DIR/packed
    python -m charengine.embedded.making.train --lay-flat DIR                               the shipped weights, for --from DIR

Parts: qwen_vae, sheets (denoiser and captioner), sdxl_vae, images (U-Net and text encoders), clip, probe; and, from
earlier weights, qwen_decoder and sdxl_decoder: the VAEs' decoders alone. A VAE trained after the part `eye` also keeps
what that reads in pictures; `drawn` teaches the U-Net by what the parts `eye` and `scene_eye`
(and `other_…` of each) read in pictures that it draws itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charengine.embedded.making.run import Run

PARTS = ("qwen_vae", "sheets", "sdxl_vae", "images", "probe", "clip")
LATER = (  # sharpen what is in use
    "eye", "other_eye", "scene_eye", "other_scene_eye", "qwen_decoder", "sdxl_decoder", "drawn",
)  # fmt: skip
RESERVE = 40.0  # seconds kept at the end for samples, scores and packing


def tracks(gpus: int, resumed: bool) -> list[tuple[str, str]]:
    """(device, plan) of each process; a plan is `part=minutes` in order, a part without minutes taking what is left.

    From earlier weights only the VAEs' decoders are trained: the models on their latents go on from where they were. On four
    cards not even these: two train the pictures together and two the sheets (processes of one plan are a team).
    """
    if resumed and gpus >= 4:
        return [(f"cuda:{i}", ("images", "sheets")[i // 2]) for i in range(4)]
    vae, minutes = ("decoder", (0.7, 0.6)) if resumed else ("vae", (1.7, 1.4))
    sheets, images = f"qwen_{vae}={minutes[0]},sheets", f"sdxl_{vae}={minutes[1]},images"
    rest = "probe=2.8,clip=2.4"
    if gpus == 0:
        return [("cpu", ",".join(f"{part}=5" for part in PARTS))]
    first, second = "cuda:0", f"cuda:{min(1, gpus - 1)}"
    return [(first, sheets), (second, images), (second, rest)]


def train_part(part: str, run: Run, minutes: float) -> None:
    """Train one part; imports only what it needs."""
    if part in ("qwen_vae", "sdxl_vae", "qwen_decoder", "sdxl_decoder"):
        from charengine.embedded.making.vae import train_vae

        train_vae(run, part.split("_")[0], minutes, decoder_only=part.endswith("decoder"))
    elif part == "sheets":
        from charengine.embedded.making.sheets import train_sheets

        train_sheets(run, minutes)
    elif part == "images":
        from charengine.embedded.making.images import train_images

        train_images(run, minutes)
    elif part == "clip":
        from charengine.embedded.making.clip import train_clip

        train_clip(run, minutes)
    elif part == "drawn":
        from charengine.embedded.making.drawn import train_drawn

        train_drawn(run, minutes)
    elif part in ("scene_eye", "other_scene_eye"):
        from charengine.embedded.making.scene_eye import train_scene_eye

        train_scene_eye(run, minutes, part)
    elif part in ("probe", "eye", "other_eye"):
        from charengine.embedded.making.judge import train_judge

        train_judge(run, minutes, part)
    else:
        raise SystemExit(f"part is {part!r}; allowed: {', '.join((*PARTS, *LATER))}")


def run_plan(plan: str, args: argparse.Namespace) -> int:
    """Train the parts of a plan one after the other in this process; a part that fails does not stop the next."""
    started = time.time()
    deadline = args.deadline or started + args.minutes * 60
    import torch

    from charengine.embedded.making.clock import Log
    from charengine.embedded.making.data import compile_renderer
    from charengine.embedded.making.run import Run
    from charengine.embedded.making.team import Team

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(args.seed)
    team = Team(args.rank, args.team, Path(args.out).resolve() / f"{plan}.meeting")
    out = Path(args.out) / f"rank{team.rank}" if team.rank else Path(args.out)
    source = Path(args.source) if args.source else None
    run = Run(out, device, source, args.tiny, args.seed, args.max_steps, team=team)
    log = Log(run.out, "driver")
    log.write(event="renderer", how=compile_renderer(device), device=str(device), plan=plan, torch=torch.__version__)
    failed = 0
    entries = plan.split(",")
    for entry in entries:
        part, _, given = entry.partition("=")
        left = (deadline - time.time()) / 60
        minutes = float(given) if given else left
        try:
            train_part(part, run, max(0.05, min(minutes, left)))
        except Exception:
            failed += 1
            log.write(event="failed", failed_part=part, error=traceback.format_exc()[-3000:])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 1 if failed else 0


def run_all(args: argparse.Namespace) -> int:
    """One process a track on every GPU; packs what came out, whatever happened."""
    started = time.time()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    gpus = 0 if args.tiny else count_gpus()
    deadline = started + args.minutes * 60 - RESERVE
    processes = []
    planned = tracks(gpus, bool(args.source))
    for i, (device, plan) in enumerate(planned):
        command = [sys.executable, "-u", "-m", "charengine.embedded.making.train", "--part", plan, "--device", device]
        command += ["--out", str(out), "--deadline", str(deadline), "--seed", str(args.seed + i)]
        command += ["--from", args.source] if args.source else []
        same = [j for j, (_, other) in enumerate(planned) if other == plan]
        command += ["--team", str(len(same)), "--rank", str(same.index(i))]
        command += ["--tiny", "--max-steps", "3"] if args.tiny else []
        environment = {**os.environ, "OMP_NUM_THREADS": "4" if gpus else "2"}
        output = (out / f"track{i}.txt").open("w", encoding="utf-8")
        processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
        print(f"track {i}: {device}: {plan}", flush=True)
    grace = 600 if args.tiny else RESERVE - 8
    for process in processes:
        try:
            process.wait(max(1.0, deadline + grace - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            print(f"killed process {process.pid} at the deadline", flush=True)
    from charengine.embedded.making.pack import pack

    for path in pack(out, out / "packed"):
        print(f"{path.name} {path.stat().st_size / 2**20:.2f} MiB", flush=True)
    failed = [path for path in out.glob("*.jsonl") if '"failed"' in path.read_text(encoding="utf-8")]
    print(f"done in {time.time() - started:.0f} s; {'a part FAILED, see driver.jsonl' if failed else 'no part failed'}")
    return 1 if failed else 0


def count_gpus() -> int:
    """CUDA devices, without initialising CUDA in this process."""
    import torch

    return torch.cuda.device_count()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", help="a part, or parts in order: qwen_vae=1.5,sheets")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--unpack", metavar="DIR", help="folder of packed files")
    parser.add_argument("--pack", metavar="DIR", help="folder of trained parts")
    parser.add_argument("--lay-flat", metavar="DIR", help="folder to get the shipped weights")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--deadline", type=float, default=0.0, help="Unix time at which training must end")
    parser.add_argument("--out", default="build-out")
    parser.add_argument("--from", dest="source", help="folder with weights to start from")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--team", type=int, default=1, help="processes that train these parts together")
    parser.add_argument("--rank", type=int, default=0, help="which of them this is")
    args = parser.parse_args(argv)
    if args.smoke:
        args.all = args.tiny = True
        args.minutes = 30.0  # its parts end after three steps
    if not (args.all or args.part or args.unpack or args.pack or args.lay_flat):
        parser.error("say --part, --all, --smoke, --pack, --unpack or --lay-flat")
    return args


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    logging.basicConfig(level=logging.INFO)
    args = parse(argv)
    if args.pack:
        from charengine.embedded.making.pack import pack

        pack(Path(args.pack), Path(args.pack) / "packed")
        return 0
    if args.lay_flat:
        from charengine.embedded.making.pack import WEIGHTS, lay_flat

        lay_flat(WEIGHTS, Path(args.lay_flat))
        return 0
    if args.unpack:
        from charengine.embedded.making.pack import WEIGHTS, unpack

        unpack(Path(args.unpack), WEIGHTS)
        return 0
    return run_all(args) if args.all else run_plan(args.part, args)


if __name__ == "__main__":
    sys.exit(main())
