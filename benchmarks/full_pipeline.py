"""Prompt to report on full-size models under a memory budget: every stage's seconds, GPU peak and host memory.

    python benchmarks/full_pipeline.py --out results/            # one CUDA GPU of 24 GiB or more, capped to 12 GiB; 7 minutes
    python benchmarks/full_pipeline.py --profile                 # also what the GPU does in each stage, and how long it waits
    python benchmarks/full_pipeline.py --tiny --device cpu       # under a minute: checks that every stage runs
    python benchmarks/full_pipeline.py --beside diffusers        # the same work by diffusers' own pipelines; a minute more
    python benchmarks/full_pipeline.py --only captions           # one group of stages

Models have the published sizes and random weights, so pictures mean nothing while time and memory do. Nothing is
extrapolated silently: a stage cut short by --minutes says what it ran, and marks what it concludes from that. The JSON
is written after each stage, so that a cut run loses nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random_models  # noqa: E402
import torch  # noqa: E402
from adapter_stages import PROMPT, AdapterStages  # noqa: E402
from beside_diffusers import BesideDiffusers  # noqa: E402
from PIL import Image  # noqa: E402
from stages import Bench, prompt_to_report, table  # noqa: E402
from watching import Kernels, Stopwatch  # noqa: E402

from charengine.figures.template import template  # noqa: E402
from charengine.models import qwen_edit  # noqa: E402
from charengine.models.captioners import QUESTION, QwenCaptioner  # noqa: E402
from charengine.models.memory import GIB, MemoryPlan, Part, TakingTurns, cap_memory, place, transformer_workspace  # noqa: E402
from charengine.models.qwen_edit import LIGHTNING_STEPS, QwenEdit  # noqa: E402
from charengine.models.qwen_parts import load_text_encoder  # noqa: E402
from charengine.models.sdxl import SDXL  # noqa: E402
from charengine.profiles.loading import load_profile  # noqa: E402
from charengine.store import Store  # noqa: E402

GUIDED_STEPS = (
    LIGHTNING_STEPS + 2
)  # the fewest that are surely drawn with guidance: shorter ones use the Lightning LoRA
SLOW_STEPS = 40  # as the model's makers recommend; the profile takes fewer (decision 67)
GROUPS = ("sheets", "captions", "training", "sweep")


def main() -> int:
    """Every stage in the pipeline's order, then the table; 1 if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and sizes")
    parser.add_argument("--budget", type=float, default=12.0, help="GiB of GPU memory")
    parser.add_argument(
        "--beside", choices=("diffusers",), help="the same work by the stock pipelines, in the same run"
    )
    parser.add_argument("--profile", action="store_true", help="what the GPU does in each stage")
    parser.add_argument("--minutes", type=float, default=7.5, help="stages are cut short to end by then")
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=GROUPS, help="groups of stages")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(bench, arguments, Path(folder))
        for part in run.parts_of(arguments.only):
            bench.group(part.__name__, part)
        if arguments.beside:
            bench.group(f"beside {arguments.beside}", run.stock)
    bench.results["prompt_to_report_s"] = prompt_to_report(bench.results["stages"])
    bench.path.write_text(json.dumps(bench.results, indent=1))
    print(table(bench.results))
    return int(any("error" in facts for facts in bench.results["stages"].values()))


class Run(AdapterStages):
    """The pipeline's stages over random models."""

    def __init__(self, bench: Bench, arguments: argparse.Namespace, folder: Path) -> None:
        self.bench, self.folder, self.tiny, self.budget = bench, folder, arguments.tiny, arguments.budget
        self.device = bench.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.kernels, self.profiled = Kernels(self.device), arguments.profile
        self.profile = load_profile("sdxl-12gb", [f"train.budget_gib={arguments.budget:g}"])
        self.store = Store(folder / "store")
        self.steps, self.answer = (8, 120) if not self.tiny else (2, 4)
        changes = {"steps": GUIDED_STEPS} if self.tiny else {}
        self.drawing = self.profile.sheet.model_copy(update=changes)
        self.sizes = ((1536, 1024), (1024, 1024)) if not self.tiny else ((192, 96), (96, 96))  # the profile's first
        cap_memory(self.device, self.budget)
        bench.stage(
            "configurations", lambda: {"folder": bool(random_models.write_configs(folder / "configs", self.tiny))}
        )

    def parts_of(self, groups: Sequence[str]) -> list[Callable[[], None]]:
        """The groups of stages, in the pipeline's order, with what all of them need before and the report behind."""
        wanted = [getattr(self, name) for name in GROUPS if name in groups]
        return [self.models, *wanted, self.report]

    # --- sheet and captions ---

    def models(self) -> None:
        """What every group needs: where the models come from, and views to work on."""
        plan, configs = self._plan(), self.folder / "configs"
        self.parts = random_models.RandomQwen(configs / "qwen", self.device, self.dtype, plan, answer=self.answer)
        self.loaded = TakingTurns(frozenset({"text_encoder", "transformer"}), self.parts.release, self.parts.drop)
        area = 1024 * 1024 if not self.tiny else 64 * 64
        sdxl = random_models.RandomSDXL(configs / "sdxl", self.device, self.dtype)
        self.diffusion = SDXL(sdxl, self.device, self.dtype, area, "random")
        self.bench.stage("crop", self._crop)
        self.dataset = self._dataset()

    def sheets(self) -> None:
        """Load, then drafts and full sheets at two sizes."""
        configs = self.folder / "configs" / "qwen"
        lightning = self.folder / "lightning.safetensors"
        write = partial(random_models.write_lightning, lightning, configs, self.device)
        self.bench.stage("make a Lightning LoRA", lambda: {"mib": round(write().stat().st_size / 2**20)})
        self.editor = QwenEdit(
            self.parts, self.device, "random", loaded=self.loaded, lightning=lightning, on_step=self._tick
        )
        if self.tiny:
            self.editor.vae_area, self.editor.condition_area = 96 * 96, 56 * 56
        for name in ("text_encoder", "transformer"):
            self.bench.stage(f"make and place the {name.replace('_', ' ')}", partial(self._load, name))
        few, many, led = self.steps, self.drawing.steps, self.drawing.guidance
        for width, height in self.sizes:
            name = f"sheet {width}x{height}"
            self.bench.stage(f"{name}, {few} steps, Lightning, no CFG", partial(self._draw, width, height, few, 1.0))
            if (width, height) == self.sizes[0]:
                words = f"the profile's {name}, {many} steps, CFG above {self.drawing.guided_above:g}"
                self.bench.stage(words, partial(self._draw, width, height, many, led, self.drawing.guided_above))
            else:
                part = partial(self._draw, width, height, GUIDED_STEPS, led, 0.0, SLOW_STEPS)
                self.bench.stage(f"{name}, {SLOW_STEPS} steps, CFG in all", part)
        if self.profiled:
            sheet, draft = (
                partial(self._profile_sheet, *size, led) for size, led in zip(self.sizes, (4.0, 1.0), strict=True)
            )
            self.bench.stage("profile of two steps of the sheet, CFG", partial(sheet, GUIDED_STEPS))
            self.bench.stage("profile of two steps of the smaller draft, Lightning, no CFG", partial(draft, few))
        self.loaded.forget("transformer", "vae")

    def _plan(self) -> MemoryPlan:
        """The planner's own arithmetic, over the sizes of what will be made up."""
        config = self.folder / "configs" / "qwen"
        sizes = {
            name: random_models.part_of(random_models.meta(config, name), name)
            for name in ("text_encoder", "transformer")
        }
        width, height = self.sizes[0]
        work = {"text_encoder": int(1.4 * GIB), "transformer": transformer_workspace(width, height) + int(0.85e9)}
        encoder, transformer = (
            place(Part(name, part.blocks, part.block, part.rest, work[name]), self.budget)
            for name, part in sizes.items()
        )
        plan = MemoryPlan(self.budget, encoder, transformer, tile_vae=False)
        self.bench.results["plan"] = plan.describe()
        return plan

    def _load(self, name: str) -> dict[str, Any]:
        getattr(self.parts, name)()
        facts = {"resident_gib": round(torch.cuda.memory_allocated() / GIB, 2)} if self.device.type == "cuda" else {}
        self.parts.release(name)
        return facts

    def _tick(self, done: int, steps: int) -> None:
        self.bench._wait()
        self.ticks.append(time.perf_counter())

    def _draw(
        self, width: int, height: int, steps: int, guidance: float, above: float = 0.0, wanted: int | None = None
    ) -> dict[str, Any]:
        """One whole `draw`: encode, encode the template, denoise, decode; step times from the pipeline's own callback."""
        self.ticks: list[float] = []
        self.editor._encoded.clear()
        start = time.perf_counter()
        counting = Stopwatch(torch.device("cpu"))  # waits for nothing
        with counting.on(passes=(qwen_edit, "_predict")):
            image = self.editor.draw(
                template(width, height), PROMPT, seed=1, steps=steps, guidance=guidance, guided_above=above
            )
        end = time.perf_counter()
        each = [b - a for a, b in itertools.pairwise(self.ticks)] or [0.0]
        step = statistics.median(each)
        first = self.ticks[0] - start - max(each)  # which is led by both prompts
        stream = self.parts._streams["transformer"]
        streamed = sum(stream.hosts[index].nbytes for index in stream.streamed)
        facts = {
            "encode_and_place_s": round(first, 2),
            "passes": counting.calls["passes"],
            "step_s": round(step, 3),
            "quickest_step_s": round(min(each), 3),
            "slowest_step_s": round(max(each), 3),
            "decode_s": round(end - self.ticks[-1], 2),
            "size": list(image.size),
            "resident_blocks": len(stream.blocks) - len(stream.streamed),
            "streamed_gb_per_pass": round(streamed / 1e9, 2),
        }
        if rate := self.bench.results["machine"].get("host_to_gpu_gb_per_s"):
            facts["copy_s_per_pass"] = round(streamed / 1e9 / rate, 3)  # hidden while a pass computes for longer
        if wanted and wanted != steps:
            facts |= {"ran_steps": steps, "extrapolated_seconds": round(end - start + (wanted - steps) * step, 1)}
        return facts

    def _profile_sheet(self, width: int, height: int, guidance: float, steps: int) -> dict[str, Any]:
        """Of the second and third step: the first waits for the weights."""
        found: dict[str, Any] = {}

        def tick(done: int, steps: int) -> None:
            if done == 1:
                self.kernels.start()
            elif done == min(3, steps):
                found.update(self.kernels.stop())

        self.editor.on_step = tick
        self.editor.draw(template(width, height), PROMPT, seed=1, steps=steps, guidance=guidance)
        self.editor.on_step = self._tick
        return found

    def captions(self) -> None:
        """Three answers of a fixed length about three views at once, with the encoder's own weights."""
        room = self.parts.plan.encoder_room
        captioner = QwenCaptioner(self.parts, self.device, "random", loaded=self.loaded, room=room)
        try:
            if "text_encoder" not in self.parts._streams:
                self.bench.stage("make and place the text encoder", partial(self._load, "text_encoder"))
            self.bench.stage(f"captions of three views, {self.answer} tokens each", lambda: self._caption(captioner))
            self.bench.stage("first token and further ones", lambda: self._first_token(captioner))
            if self.profiled:
                few = partial(captioner.ask_all, self._shown(), QUESTION.format(noun=" woman"), max_tokens=9)
                self.bench.stage("profile of nine tokens of a caption", partial(self.kernels.of, few))
        finally:
            self.loaded.forget("text_encoder", "transformer", "vae", "processor")

    def stock(self) -> None:
        """What diffusers takes for a sheet, captions and pictures."""
        configs = self.folder / "configs"
        sdxl = random_models.RandomSDXL(configs / "sdxl", self.device, self.dtype)
        size = (832, 1216, 20) if not self.tiny else (64, 64, 2)
        self.loaded.forget("text_encoder", "transformer", "vae", "processor")
        beside = BesideDiffusers(self.bench, self.parts, sdxl, configs / "qwen")
        beside.run(template(*self.sizes[0]), PROMPT, self._shown(), QUESTION.format(noun=" woman"), size)

    def _crop(self) -> dict[str, Any]:
        from charengine.stages.crop import crop_views
        from charengine.stages.sheet.given import take_sheet

        path = self.folder / "sheet.png"
        random_models.figures(1536, 1024).save(path)
        settings = self.profile.crop.model_copy(update={"bucket_area": 64 * 192} if self.tiny else {})
        self.sheet = take_sheet(path, self.store)
        self.views = crop_views(self.sheet, settings, self.store)
        return {"views": [[view.width, view.height] for view in self.views.views]}

    def _caption(self, captioner: QwenCaptioner) -> dict[str, Any]:
        """All views in one batch; placing the weights and making the processor are told apart from answering."""
        images, question = self._shown(), QUESTION.format(noun=" woman")
        facts = {
            "place_s": self._seconds(partial(load_text_encoder, self.loaded, self.parts)),
            "processor_s": self._seconds(partial(self.loaded.get, "processor", self.parts.processor)),
        }
        ask = partial(captioner.ask_all, images, question)
        facts["answers_s"] = self._seconds(partial(ask, max_tokens=self.answer))
        facts["ms_per_token_of_all"] = round(1000 * facts["answers_s"] / self.answer, 1)
        return facts

    def _first_token(self, captioner: QwenCaptioner) -> dict[str, Any]:
        """Reading question and pictures, which the first token waits for; not a part of a run of its own."""
        ask = partial(captioner.ask_all, self._shown(), QUESTION.format(noun=" woman"))
        facts = {}
        for way, recorded, tokens in (("", True, self.answer), ("_not_recorded", False, min(24, self.answer))):
            captioner.recorded = recorded
            first, few, whole = (self._seconds(partial(ask, max_tokens=count)) for count in (1, 4, tokens))
            facts[f"first_token{way}_s"] = first
            facts[f"ms_per_further_token{way}"] = round(1000 * (whole - few) / max(1, tokens - 4), 1)
        captioner.recorded = True
        return facts

    def _shown(self) -> list[Image.Image]:
        return [self._image(view.image) for view in self.views.views]

    def _seconds(self, work: Callable[[], Any]) -> float:
        self.bench._wait()
        start = time.perf_counter()
        work()
        self.bench._wait()
        return round(time.perf_counter() - start, 2)


if __name__ == "__main__":
    sys.exit(main())
