"""The second half of `full_pipeline.py`: training, sweep and report, over an SDXL with random weights."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import random_models
import torch
from PIL import Image
from stages import Bench, Drawing, quiet_step
from watching import Kernels, Stopwatch

from charengine import records
from charengine.adapter.merging import AdapterMerger
from charengine.config import Profile
from charengine.errors import Interrupted
from charengine.models import captioners
from charengine.models.captioners import QwenCaptioner
from charengine.models.embedders import ClipEmbedder, DinoEmbedder, PairEmbedder
from charengine.models.memory import TakingTurns, cap_memory
from charengine.models.readers import AskingReader
from charengine.models.sdxl import SDXL
from charengine.store import Store

DESCRIPTION = "A weathered orc woman sailor with green skin, a long blue coat with brass buttons, tall boots, and a hook for a right hand. "
PROMPT = DESCRIPTION * 3
PROFILED_STEP = 20  # of training; ten more are looked at
AFTER_DRAWING = 100  # seconds that reading traits and finding words may take


class AdapterStages:
    """Stages that need views, and what they share with those before."""

    bench: Bench
    kernels: Kernels
    profiled: bool
    profile: Profile
    folder: Path
    tiny: bool
    budget: float
    device: torch.device
    dtype: torch.dtype
    store: Store
    parts: random_models.RandomQwen
    loaded: TakingTurns
    diffusion: SDXL
    sheet: records.SheetRecord
    views: records.ViewsRecord
    dataset: records.DatasetRecord
    trained: records.AdapterRecord | None = None
    swept: records.SweepRecord | None = None

    def _image(self, ref: records.Ref) -> Image.Image:
        return Image.open(io.BytesIO(self.store.get(ref))).convert("RGB")

    def training(self) -> None:
        """Encode, then train: 1,200 samples."""
        self.bench.stage("encode captions and views", self._encode)
        self.bench.stage("train 1,200 samples (400 steps of 3 views)", self._train)
        if self.bench.left > 150:
            self.bench.stage("first step of the next training, its plan remembered", self._train_next)

    def sweep(self) -> None:
        """Draw and score with the trained adapter, or with one made up if training did not end."""
        if self.trained is None:
            self.bench.stage("make an adapter to sweep", self._adapter)
        self.bench.stage("make the scorers", self._scorers)
        asked = self.profile.sweep
        words = f"{asked.width}x{asked.height}, {asked.steps} steps ({asked.solver}), CFG"
        self.bench.stage(f"sweep of at most {asked.pictures} images, {words}", self._sweep)

    def report(self) -> None:
        """One page about all of it; without a finished cell there is none."""
        if self.swept is None:
            self.bench.skip("report", "no cell of a sweep was finished")
        else:
            self.bench.stage("report", self._report)

    def _dataset(self) -> records.DatasetRecord:
        from charengine.dataset.digest import dataset_digest

        captions = tuple(
            records.CaptionRecord(view=view.view, text=f"zorgal, woman, {view.view} view, full body")
            for view in self.views.views
        )
        return records.DatasetRecord(
            trigger="zorgal",
            class_noun="woman",
            views=self.views,
            captions=captions,
            digest=dataset_digest(self.views, captions),
            side_bound=True,
        )

    def _encode(self) -> dict[str, Any]:
        self.diffusion.encode_prompts([caption.text for caption in self.dataset.captions])
        self.diffusion.unload("text_encoders")
        self.diffusion.encode_images([self._image(view.image) for view in self.views.views])
        self.diffusion.unload()
        return {}

    def _train_settings(self) -> Any:
        changes = (
            {"rank": 4, "conv_rank": 2, "steps": 4, "checkpoints": 2, "warmup": 0, "precision": "fp32"}
            if self.tiny
            else {}
        )
        return self.profile.train.model_copy(update=changes)

    def _adapter(self) -> dict[str, Any]:
        from charengine.adapter.files import save_adapter
        from charengine.adapter.network import inject

        adapter = inject(self.diffusion.unet(), self._train_settings(), seed=0)
        tensors = {key: value.detach().cpu().to(torch.float16) for key, value in adapter.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        for key, value in tensors.items():
            if "lora_up" in key:
                value.normal_(0, 1e-3, generator=generator)
        self.diffusion.unload()
        refs = [
            self.store.put(save_adapter(tensors, {"step": str(step)}), f"zorgal-{step}.safetensors")
            for step in (200, 400)
        ]
        self.trained = records.AdapterRecord(
            checkpoints=tuple(records.CheckpointRecord(step=step, adapter=ref, loss=0.1) for step, ref in zip((200, 400), refs, strict=True)),
            steps=400, trigger="zorgal", class_noun="woman", dataset_digest=self.dataset.digest,
            curve=self.store.put(b"step,loss,smoothed,learning_rate\n1,0.1,0.1,0.0003\n", "curve.csv"),
        )  # fmt: skip
        return {"adapter_mib": round(refs[0].size / 2**20, 1)}

    def _scorers(self) -> dict[str, Any]:
        clip, dino = random_models.write_scorers(self.folder, self.tiny, self.device)
        dtype = self.dtype
        self.embedder = PairEmbedder(
            DinoEmbedder(dino, self.device, dtype, "random"), ClipEmbedder(clip, self.device, dtype, "random")
        )
        return {}

    def _sweep(self) -> dict[str, Any]:
        """The profile's race, the traits read once all is drawn, and what the trigger brings in words."""
        from charengine.stages.sweep.sweep import sweep_adapter
        from charengine.stages.sweep.words import Pick, find_words

        assert self.trained is not None, "there is no adapter to sweep"
        changes = {"pictures": 12, "seeds": 2, "width": 64, "height": 64, "steps": 2} if self.tiny else {}
        settings = self.profile.sweep.model_copy(update=changes)
        drawn, watch = Drawing(self.diffusion), Stopwatch(self.device)
        asked = QwenCaptioner(self.parts, self.device, "random", loaded=self.loaded, room=self.parts.plan.encoder_room)
        reader, facts = AskingReader(asked), {}
        start = time.perf_counter()
        try:
            with watch.on(
                merging=(AdapterMerger, "put_on"), decoding=(self.diffusion, "decode"), answering=(captioners, "choose"),
                reading=(reader, "shown"), making_up=(random_models, "random_state"),
                placing=(captioners, "load_text_encoder"), preparing=(asked, "_prepare"),
            ):  # fmt: skip
                swept = sweep_adapter(
                    self.trained, self.dataset, settings, drawn, self.embedder, self.store, seed=1, reader=reader,
                    description=DESCRIPTION, should_stop=lambda: self.bench.left < AFTER_DRAWING, keep_cut=True,
                )  # fmt: skip
                facts["race_s"] = round(time.perf_counter() - start, 1)
                self.swept, images, seconds = swept, drawn.images, [round(one, 1) for one in drawn.seconds]
                pick = Pick(self.trained, swept, settings, drawn, self.store, seed=1)
                self.swept = find_words(pick, DESCRIPTION, reader, should_stop=lambda: self.bench.left < 15)
        except Interrupted:
            drawn.stopped = True
        finally:
            self.diffusion.unload()
            self.embedder.unload()
            reader.unload()
        facts |= watch.facts() | {
            "images": images,
            "most_images": settings.pictures,
            "seconds_per_image": round(sum(drawn.seconds) / drawn.images, 3),
            "sample_s": seconds,  # strength 0 first, without an adapter
            "images_for_words": drawn.images - images,
            "pictures": "noise, the slowest to encode",
        }
        return facts | ({"stopped": True} if drawn.stopped or _was_cut(self.swept) else {})

    def _train(self) -> dict[str, Any]:
        from charengine.stages.train.loop import Progress, StateWriter, TrainingStopped, _Training, train_adapter
        from charengine.stages.train.setup import Setup

        seen: list[tuple[float, Progress]] = []
        launched: list[float] = []
        settings = self._train_settings()
        facts: dict[str, Any] = {}

        def on_step(progress: Progress) -> None:
            if not progress.step:  # the lessons are drawn
                return
            seen.append((time.perf_counter(), progress))
            if self.profiled and progress.step == PROFILED_STEP:
                self.kernels.start()
            elif self.profiled and progress.step > PROFILED_STEP:
                facts.setdefault("profile", self.kernels.stop())

        def should_stop() -> bool:
            launched.append(time.perf_counter())
            return self.bench.left < 60

        watch = Stopwatch(self.device)
        parts = {"adapt": (Setup, "_adapt"), "leave_out": (Setup, "_possible"), "try": (Setup, "_first_that_fits")}
        parts |= {
            "validate": (_Training, "_validate"),
            "keep": (_Training, "_checkpoint"),
            "save": (StateWriter, "save"),
        }
        start = time.perf_counter()
        try:
            with watch.on(unet=(self.diffusion, "unet"), **parts):
                record = train_adapter(
                    self.dataset, settings, self.diffusion, self.store, seed=1, state_dir=self.folder / "state",
                    should_stop=should_stop, on_step=on_step, plans=self.folder / "plans.json",
                )  # fmt: skip
            self.trained = record
            facts |= {"plan": record.plan}
        except TrainingStopped:
            rest = (settings.steps - seen[-1][1].step) * seen[-1][1].ms_per_step / 1000
            facts |= {"ran_steps": seen[-1][1].step, "extrapolated_rest_seconds": round(rest, 1)}
        finally:
            self.diffusion.unload()
            cap_memory(self.device, self.budget)
        last = seen[-1][1]
        return (
            facts
            | watch.facts()
            | {
                "steps": last.step,
                "first_step_after_s": round(launched[0] - start, 2),
                "ms_per_step": round(last.ms_per_step, 1),
                "ms_per_step_between_reads": quiet_step(seen),
            }
        )

    def _train_next(self) -> dict[str, Any]:
        """Another character's first step, for which the plan is known."""
        from charengine.stages.train.loop import train_adapter

        launched: list[float] = []
        settings = self._train_settings().model_copy(update={"steps": 2, "checkpoints": 1})
        start = time.perf_counter()
        try:
            record = train_adapter(
                self.dataset, settings, self.diffusion, self.store, seed=2, state_dir=self.folder / "next",
                should_stop=lambda: bool(launched.append(time.perf_counter())), plans=self.folder / "plans.json",
            )  # fmt: skip
        finally:
            self.diffusion.unload()
            cap_memory(self.device, self.budget)
        return {"first_step_after_s": round(launched[0] - start, 2), "plan": record.plan}

    def _report(self) -> dict[str, Any]:
        from charengine.stages.report.page import write_report

        assert self.trained is not None, "there is no training to report"
        run = records.RunRecord(
            name="zorgal", prompt=PROMPT, trigger="zorgal", class_noun="woman", seed=1, profile="sdxl-12gb",
            config={"profile": self.profile.model_dump(mode="json")},
            sheet=self.sheet, views=self.views, dataset=self.dataset, training=self.trained, sweep=self.swept, stages=(),
        )  # fmt: skip
        facts = {"html_mib": round(write_report(run, self.store).html.size / 2**20, 2)}
        return facts | ({"sweep": "cut short"} if _was_cut(self.swept) else {})


def _was_cut(swept: records.SweepRecord | None) -> bool:
    return swept is not None and any("was cut" in warning for warning in swept.warnings)
