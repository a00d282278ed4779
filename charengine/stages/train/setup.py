"""Everything on the device that training moves: adapter, stacked parameters, optimizer, step, validation.

`set_up` tries memory plans until one runs within the budget.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charengine.adapter.files import load_adapter, read_adapter
from charengine.adapter.network import Adapter, inject
from charengine.config import TrainSettings
from charengine.errors import OutOfBudget, ran_out_of_memory
from charengine.models import Diffusion
from charengine.records import LossPoint
from charengine.stages.train.data import TrainingData
from charengine.stages.train.fused import fuse_blocks, transformer_blocks
from charengine.stages.train.optimizers import build_optimizer
from charengine.stages.train.plan import (
    RESERVE_GIB,
    Plan,
    candidates,
    let_segments_grow,
    set_cap,
    set_checkpointing,
    store_in_float8,
)
from charengine.stages.train.remembered import PlanMemory, plan_key
from charengine.stages.train.sampler import LESSONS, Group, groups_of_step, hash_seed
from charengine.stages.train.step import TrainStep
from charengine.stages.train.storage import StackedParameters
from charengine.stages.train.validation import Validation

log = logging.getLogger(__name__)

SHAPES_LOOKED_FOR = 64  # steps looked ahead for the shapes that must fit
NO_ROOM = "the base model and the adapter's state do not fit; give more"


class Setup:
    """A U-Net made ready for training under one plan.

    Args:
        diffusion: the base model.
        settings: the training settings.
        data: on the U-Net's device.
        seed: of the adapter's first values and all noise.
        plan: the plan of a saved state, which must be kept; None to choose one.
        fresh: False when a state is about to be restored, so that `continue_from` is not read.
        memory: file that says which plan fitted the same work before; None: all are tried.

    Raises:
        OutOfBudget: no plan fits.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        settings: TrainSettings,
        data: TrainingData,
        seed: int,
        plan: Plan | None,
        fresh: bool,
        memory: Path | None = None,
    ) -> None:
        self.diffusion, self.settings, self.seed = diffusion, settings, seed
        self.device = torch.device(diffusion.device)
        shrink = settings.fp8_base and self.device.type == "cuda"  # made smaller before it meets the GPU
        if shrink:
            let_segments_grow()
        try:
            self.unet = diffusion.unet(torch.device("cpu")) if shrink else diffusion.unet()
        except torch.OutOfMemoryError as error:
            raise _budget_error(settings, NO_ROOM) from error
        self.data = data.to(self.device)
        self.alphas, self.prediction = diffusion.alphas_cumprod(), diffusion.prediction.kind
        upcoming = [
            groups_of_step(data, settings, seed, step) for step in range(min(settings.steps, SHAPES_LOOKED_FOR))
        ]
        self.shapes: list[tuple[Group, ...]] = list({_shape(groups): groups for groups in upcoming}.values())
        largest = max(len(group.samples) for groups in self.shapes for group in groups)
        plans = [plan] if plan else candidates(settings, data, largest, self.device)
        self.altered = self.unet.conv_in.weight.dtype != plans[0].compute_dtype or plans[0].fp8_base
        with self._explained(plans):
            self._adapt(plans[0], fresh)
            self.base = self._base() if settings.continue_from and fresh else None
            self.plan, self.step, self.validation = self._chosen(plans, memory)

    def _adapt(self, plan: Plan, fresh: bool) -> None:
        """What all plans share: the adapter, its parameters and the optimizer."""
        if self.unet.conv_in.weight.dtype != plan.compute_dtype:
            self.unet.to(plan.compute_dtype)
        self.unet.requires_grad_(False)
        self.adapter: Adapter = inject(self.unet, self.settings, seed=hash_seed(self.seed, 0))
        if self.settings.continue_from and fresh:
            self.adapter.load(load_adapter(read_adapter(Path(self.settings.continue_from)))[0])
        if plan.fp8_base:
            store_in_float8([self.unet.get_submodule(name) for name in self.adapter.modules])
            self.unet.to(self.device)
            self.adapter.to(self.device)
        self.parameters = StackedParameters(self.adapter.parameters(), plan.compute_dtype)
        self.optimizer = build_optimizer(self.settings, self.parameters)
        altered, self.altered = self.altered, True  # a U-Net whose fusing was cut short is not used again
        self.fused = [] if plan.compile or not self.adapter.low_rank else fuse_blocks(self.adapter, self.parameters)
        self.altered = altered
        if plan.compile:
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = (
                1024  # one a block
            )
            self.adapter.use_plain_forward()
            for _, block in transformer_blocks(self.unet):
                block.compile()

    def _base(self) -> LossPoint:
        """The base model on the validation noise, before graphs with a strength built in are captured."""
        validation = Validation(self.unet, self.data, self.alphas, chunk=1, prediction=self.prediction)
        with self.evaluating(strength=0.0):
            return validation.measure(0)

    def _chosen(self, plans: list[Plan], memory: Path | None) -> tuple[Plan, TrainStep, Validation]:
        """What fitted the same work before, else the first that fits."""
        kept = PlanMemory(memory, plan_key(self.settings, self._sizes(), self._model(), self.device))
        known = kept.find(plans) if len(plans) > 1 else None
        found = self._first_that_fits([known]) if known else None
        if found is None:
            plans = self._possible(plans)
            found = self._first_that_fits(plans)
        if found is None:
            raise self._out_of_budget(plans)
        kept.keep(found[0], self.device)
        return found

    def _sizes(self) -> list[Any]:
        """Of everything that a step or a validation works on."""
        held = [bucket.mean.shape for bucket in (*self.data.buckets, *self.data.held_out)]
        lessons = [] if self.data.lessons is None else [self.data.lessons.noisy.shape]
        return [
            [list(shape) for shape in (*held, *lessons, self.data.empty_embeds.shape)],
            [_shape(g) for g in self.shapes],
        ]

    def _model(self) -> dict[str, Any]:
        """What of the base model takes memory."""
        weights = list(self.unet.parameters())
        return {"weights": sum(w.numel() for w in weights), "types": sorted({str(w.dtype) for w in weights})}

    def _possible(self, plans: list[Plan]) -> list[Plan]:
        """Leave out plans that, going by one measured sample, cannot fit; trying each takes seconds."""
        if self.device.type != "cuda" or len(plans) == 1:
            return plans
        areas = {i: bucket.mean.shape[-2] * bucket.mean.shape[-1] for i, bucket in enumerate(self.data.buckets)}
        if self.data.lessons:
            areas[LESSONS] = self.data.lessons.area
        largest = max(areas, key=lambda i: areas[i])
        self._free()
        held = torch.cuda.memory_allocated(self.device) / 2**30
        set_checkpointing(self.unet, Plan())
        step = self._make_step(replace(plans[0], micro_batch=1, graph=False))
        try:
            step.rehearse([(Group(largest, (0,)),)])
        except torch.OutOfMemoryError:
            return [plan for plan in plans if plan.micro_batch == 1 and plan.checkpointing != "none"] or plans
        sample = torch.cuda.max_memory_allocated(self.device) / 2**30 - held
        room = self.settings.budget_gib - RESERVE_GIB - held
        log.info("one sample takes %.2f GiB beside the %.2f GiB that are always held", sample, held)
        return [plan for plan in plans if plan.least_activations(sample) <= room] or plans[-1:]

    def _first_that_fits(self, plans: list[Plan]) -> tuple[Plan, TrainStep, Validation] | None:
        for i, plan in enumerate(plans):
            try:
                return self._try(plan)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                log.info("memory plan %d of %d does not fit: %s", i + 1, len(plans), describe(plan))
            self._free()
        return None

    def _try(self, plan: Plan) -> tuple[Plan, TrainStep, Validation]:
        set_checkpointing(self.unet, plan)
        self._free()
        step = self._make_step(plan)
        validation = Validation(
            self.unet, self.data, self.alphas, chunk=plan.micro_batch, prediction=self.prediction, pool=step.pool
        )
        if self.device.type == "cuda":
            step.rehearse(self.shapes)
            with self.evaluating():
                validation.rehearse()
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_reserved(self.device) / 2**30 + RESERVE_GIB
            plan = replace(plan, peak_gib=round(peak, 2))
        return plan, step, validation

    def _make_step(self, plan: Plan) -> TrainStep:
        return TrainStep(
            self.adapter,
            self.parameters,
            self.optimizer,
            self.data,
            self.alphas,
            self.settings,
            seed=hash_seed(self.seed, 1),
            micro_batch=plan.micro_batch,
            graph=plan.graph,
            prediction=self.prediction,
        )

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _out_of_budget(self, plans: list[Plan]) -> OutOfBudget:
        """Measure the most frugal plan without the cap, so that the error can say what would fit."""
        frugal = max(plans, key=lambda plan: (plan.checkpointing == "full", plan.recomputed, -plan.micro_batch))
        set_cap(1.0, self.device)
        smallest = None
        try:
            smallest = self._try(frugal)[0].peak_gib
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            log.info("the most frugal plan does not fit the whole device either")
        found = f"the smallest that fits is {smallest:.1f}" if smallest else "not even the whole device is enough"
        return _budget_error(self.settings, found, smallest)

    @contextmanager
    def _explained(self, plans: list[Plan]) -> Any:
        """Leave the U-Net clean on failure, and name the setting when memory ran out before any plan was tried."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.close()
            raise _budget_error(self.settings, NO_ROOM) from error
        except BaseException:
            self.close()
            raise

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed training needs, by name."""
        masters = {f"master.{i}": master for i, master in enumerate(self.parameters.masters)}
        buffers = {f"buffer.{name}": tensor for name, tensor in self._buffers().items()}
        return masters | buffers | {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}

    def _buffers(self) -> dict[str, Tensor]:
        return self.adapter.buffers() | (self.step.scaling.state() if self.step.scaling else {})

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up saved tensors, in place: captured graphs keep pointing at them."""
        for i, master in enumerate(self.parameters.masters):
            master.copy_(tensors[f"master.{i}"])
        for name, buffer in self._buffers().items():
            buffer.copy_(tensors[f"buffer.{name}"])
        self.parameters.publish()
        self.optimizer.load_state(dict(_under("optimizer.", tensors, self.device)))

    @contextmanager
    def evaluating(self, strength: float = 1.0) -> Any:
        """The adapter as a user would run it: no dropout, evaluation weights, at a strength."""
        self.optimizer.evaluating(True)
        self.adapter.train(False)
        self.adapter.set_strength(strength)
        try:
            yield
        finally:
            self.adapter.set_strength(1.0)
            self.adapter.train()
            self.optimizer.evaluating(False)

    def close(self) -> None:
        """Leave the U-Net as it was found; one whose weights were converted is unloaded."""
        for name in ("step", "validation"):
            self.__dict__.pop(name, None)
        set_checkpointing(self.unet, Plan())
        for block in self.__dict__.pop("fused", []):
            block.remove()
        if "adapter" in self.__dict__:
            self.adapter.remove()
        if self.altered:
            self.diffusion.unload("unet")
        self._free()


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, possibly hidden behind the error of the capture it ended."""
    while error is not None:
        if ran_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe(plan: Plan) -> str:
    """One line for people."""
    parts = [plan.precision, f"micro-batch {plan.micro_batch}", f"checkpointing {plan.checkpointing}"]
    if plan.checkpointing == "selective":
        parts[-1] += f" ({plan.recomputed:.0%} of the transformer blocks)"
    parts += [
        word for word, on in (("fp8 base", plan.fp8_base), ("CUDA graph", plan.graph), ("compiled", plan.compile)) if on
    ]
    if plan.peak_gib:
        parts.append(f"{plan.peak_gib:.1f} of {plan.budget_gib:g} GiB")
    return ", ".join(parts)


def _budget_error(settings: TrainSettings, found: str, smallest: float | None = None) -> OutOfBudget:
    ways = [] if settings.fp8_base else ["train.fp8_base=true"]
    ways += [f"a smaller train.rank than {settings.rank}", "a smaller crop.bucket_area"]
    return OutOfBudget(
        f"train.budget_gib={settings.budget_gib:g} is too small: {found}; or use {', or '.join(ways)}", smallest
    )


def _under(prefix: str, tensors: dict[str, Tensor], device: torch.device) -> Iterable[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), t.to(device)) for name, t in tensors.items() if name.startswith(prefix))


def _shape(groups: tuple[Group, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((group.bucket, len(group.samples)) for group in groups)
