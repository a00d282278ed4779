"""One optimisation step, everything on the device: draw, forward, backward, clip, optimize.

On CUDA the whole step is one graph for each shape of step; elsewhere the same code runs eagerly. Nothing waits for the
device: losses go to a buffer that is read every few steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from charengine.adapter.network import Adapter
from charengine.config import TrainSettings
from charengine.models.prediction import Kind, target
from charengine.stages.train.data import Bucket, TrainingData
from charengine.stages.train.lessons import WEIGHT, Lessons
from charengine.stages.train.optimizers import Optimizer
from charengine.stages.train.sampler import LESSONS, Group, hash_seed
from charengine.stages.train.schedule import learning_rate, min_snr_weights
from charengine.stages.train.storage import StackedParameters

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

BUFFER = 64  # steps whose losses are kept before they must be read


@dataclass(frozen=True)
class Draws:
    """Random choices for the n samples of a group."""

    noise: Tensor
    spread: Tensor
    timesteps: Tensor
    variant: Tensor
    dropped: Tensor


class TrainStep:
    """Runs optimizer steps on cached data.

    Args:
        adapter: hooked on the frozen U-Net.
        parameters: the adapter's, stacked.
        optimizer: over `parameters`.
        data: resident on the U-Net's device.
        alphas_cumprod: (1000,) noise schedule.
        settings: the training settings.
        seed: of all noise; step s draws from (seed, s) alone.
        micro_batch: most samples in one forward; 0 = no limit. A larger group is accumulated over parts.
        graph: capture steps as CUDA graphs.
        prediction: what the U-Net predicts.
    """

    def __init__(
        self,
        adapter: Adapter,
        parameters: StackedParameters,
        optimizer: Optimizer,
        data: TrainingData,
        alphas_cumprod: Tensor,
        settings: TrainSettings,
        *,
        seed: int,
        micro_batch: int = 0,
        graph: bool = False,
        prediction: Kind = "epsilon",
    ) -> None:
        self.prediction: Kind = prediction
        self.adapter, self.unet, self.parameters, self.optimizer = adapter, adapter.unet, parameters, optimizer
        self.data, self.settings = data, settings
        self.seed, self.micro_batch, self.graph = seed, micro_batch, graph
        weight = self.unet.conv_in.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.precise = torch.promote_types(self.dtype, torch.float32)
        alphas = alphas_cumprod.to(self.device, self.precise)
        self.signal, self.sigma = alphas.sqrt(), (1 - alphas).sqrt()
        self.snr_weight = min_snr_weights(alphas, settings.min_snr_gamma, velocity=prediction == "v_prediction")
        self.generator = torch.Generator(self.device)
        self.masks = adapter.attach_dropout() if settings.dropout else None
        self.losses = torch.zeros(BUFFER, device=self.device, dtype=self.precise)
        self.slots = torch.arange(BUFFER, device=self.device)
        self.slot = torch.zeros((), dtype=torch.long, device=self.device)
        self.factor = torch.ones((), device=self.device, dtype=self.precise)
        self.scaling = LossScaling(parameters, self.device) if self.dtype == torch.float16 else None
        self.indices: dict[tuple[tuple[int, int], ...], list[Tensor]] = {}
        self.graphs: dict[tuple[tuple[int, int], ...], torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.graph else None

    def run(self, step: int, groups: tuple[Group, ...]) -> None:
        """Do step `step` (0-based); its loss can be read with `read_losses` within `BUFFER` steps."""
        shape = tuple((group.bucket, len(group.samples)) for group in groups)
        indices = self._indices(shape, groups)
        self.optimizer.prepare(step, learning_rate(self.settings, step))
        self.slot.fill_(step % BUFFER)
        if self.graph and shape not in self.graphs:
            self.graphs[shape] = self._capture(shape, indices)
        self.generator.manual_seed(hash_seed(self.seed, step))
        if self.graph:
            self.graphs[shape].replay()
        else:
            self._step(shape, indices)
        if not (self.graph and self.optimizer.capturable):
            self.optimizer.update(self.factor)

    def rehearse(self, shapes: list[tuple[Group, ...]]) -> None:
        """Capture every shape of step, or run its forward and backward once, so that what does not fit fails now."""
        for groups in shapes:
            shape = tuple((group.bucket, len(group.samples)) for group in groups)
            indices = self._indices(shape, groups)
            if self.graph:
                self.graphs[shape] = self._capture(shape, indices)
            else:
                self._backward(shape, indices)

    def read_losses(self, first: int, last: int) -> list[float]:
        """Losses of steps first … last − 1; waits for the device."""
        values = self.losses.tolist()
        return [values[step % BUFFER] for step in range(first, last)]

    def _indices(self, shape: tuple[tuple[int, int], ...], groups: tuple[Group, ...]) -> list[Tensor]:
        """Device tensors of the samples' indices, the same ones for every step of this shape."""
        fresh = [torch.tensor(group.samples, dtype=torch.long) for group in groups]
        if shape not in self.indices:
            self.indices[shape] = [tensor.to(self.device) for tensor in fresh]
        elif self.settings.batch or len(self.data.buckets) > len(self.data.views):
            for held, tensor in zip(self.indices[shape], fresh, strict=True):
                held.copy_(tensor, non_blocking=True)
        return self.indices[shape]

    def _capture(self, shape: tuple[tuple[int, int], ...], indices: list[Tensor]) -> torch.cuda.CUDAGraph:
        """Record the step, after running it once without consequences so that every kernel is compiled and loaded."""
        scaling = {name: tensor.clone() for name, tensor in self.scaling.state().items()} if self.scaling else {}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(shape, indices)
            self.optimizer.rehearse()
            if self.scaling:
                for name, tensor in scaling.items():
                    self.scaling.state()[name].copy_(tensor)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, pool=self.pool):
            self._step(shape, indices)
            if self.optimizer.capturable:
                self.optimizer.update(self.factor)
        return graph

    def _step(self, shape: tuple[tuple[int, int], ...], indices: list[Tensor]) -> None:
        loss = self._backward(shape, indices)
        self.losses.copy_(torch.where(self.slots == self.slot, loss, self.losses))
        self.factor.copy_(self._clip_factor())

    def _backward(self, shape: tuple[tuple[int, int], ...], indices: list[Tensor]) -> Tensor:
        """Gradients of the step's mean loss; the loss, of lessons without their weight."""
        self.parameters.zero_grad()
        if self.masks is not None:
            keep = 1 - self.settings.dropout
            chance = torch.rand(self.masks.shape, generator=self.generator, device=self.device)
            self.masks.copy_((chance < keep) / keep)
        total = sum(count for _, count in shape)
        loss = self.losses.new_zeros(())
        for (number, count), index in zip(shape, indices, strict=True):
            weight, losses = self._of_lessons(count) if number == LESSONS else (1.0, self._of_bucket(number, index))
            size = self.micro_batch or count
            for start in range(0, count, size):
                piece = losses(slice(start, start + size)).sum() / total
                weighted = weight * piece
                (weighted * self.scaling.scale if self.scaling else weighted).backward()
                loss += piece.detach()
        return loss

    def _of_bucket(self, number: int, index: Tensor) -> Callable[[slice], Tensor]:
        """Losses of a part of a group of a bucket's samples, all of its random choices made."""
        bucket = self.data.buckets[number]
        draws = self._draw(bucket, len(index))
        return lambda part: self._loss(bucket, index[part], _cut(draws, part))

    def _of_lessons(self, count: int) -> tuple[float, Callable[[slice], Tensor]]:
        """The weight that lessons have beside views, and losses of a part of `count` of them, chosen."""
        lessons = self.data.lessons
        assert lessons is not None
        index, told = lessons.choose(count, self.generator)
        return WEIGHT, lambda part: self._lesson_loss(lessons, index[part], told[part])

    def _lesson_loss(self, lessons: Lessons, index: Tensor, told: Tensor) -> Tensor:
        """Weighted loss of each lesson, (n,) float32."""
        timesteps, picture = lessons.timesteps[index], lessons.picture[index]
        if self.adapter.algorithm == "tlora":
            self.adapter.attach_timesteps(timesteps.long(), len(self.signal))
        ids = lessons.time_ids.expand(len(index), -1)
        embeds, pooled = lessons.embeds[told, picture], lessons.pooled[told, picture]
        predicted = predict(self.unet, lessons.noisy[index], timesteps, embeds, pooled, ids)
        wanted = lessons.wanted[(told == 2).long(), index]
        error = (predicted.to(self.precise) - wanted.to(self.precise)).square()
        return error.mean((1, 2, 3)) * lessons.weight[index]

    def _draw(self, bucket: Bucket, count: int) -> Draws:
        """All random choices of a group at once, so that they do not depend on how it is split."""
        shape = (count, *bucket.mean.shape[2:])
        kind = {"generator": self.generator, "device": self.device}
        noise = torch.randn(shape, dtype=self.precise, **kind)
        spread = torch.randn(shape, dtype=self.precise, **kind)
        timesteps = torch.randint(0, len(self.signal), (count,), **kind)
        chance = torch.rand(4, count, **kind)
        if self.settings.noise_offset:
            noise += self.settings.noise_offset * torch.randn(count, shape[1], 1, 1, dtype=self.precise, **kind)
        colour = 1 + (chance[1] * (bucket.backgrounds - 1)).long().clamp(max=max(0, bucket.backgrounds - 2))
        background = torch.where(chance[0] < self.settings.random_backgrounds, colour, 0)
        if bucket.backgrounds == 1:
            background = torch.zeros_like(background)
        variant = background * bucket.flips + (chance[2] * bucket.flips).long().clamp(max=bucket.flips - 1)
        return Draws(noise, spread, timesteps, variant, chance[3] < self.settings.caption_dropout)

    def _loss(self, bucket: Bucket, index: Tensor, draws: Draws) -> Tensor:
        """Weighted loss of each sample, (n,) float32."""
        latents = bucket.mean[index, draws.variant]
        if self.settings.resample_latents:
            latents = latents + bucket.std[index, draws.variant] * draws.spread
        signal, sigma = self.signal[draws.timesteps].view(-1, 1, 1, 1), self.sigma[draws.timesteps].view(-1, 1, 1, 1)
        dropped = draws.dropped.view(-1, 1, 1)
        embeds = torch.where(dropped, self.data.empty_embeds, bucket.embeds[index])
        pooled = torch.where(dropped[:, 0], self.data.empty_pooled, bucket.pooled[index])
        if self.adapter.algorithm == "tlora":
            self.adapter.attach_timesteps(draws.timesteps, len(self.signal))
        predicted = predict(
            self.unet, signal * latents + sigma * draws.noise, draws.timesteps, embeds, pooled, bucket.time_ids[index]
        )
        wanted = target(self.prediction, latents, draws.noise, signal, sigma)
        error = (predicted.to(self.precise) - wanted).square() * bucket.mask[index, draws.variant]
        return error.mean((1, 2, 3)) * self.snr_weight[draws.timesteps] * bucket.weight[index]

    def _clip_factor(self) -> Tensor:
        """What the gradients are multiplied by, so that their global norm is at most `max_grad_norm`."""
        if not self.settings.max_grad_norm and self.scaling is None:
            return self.losses.new_ones(())
        norm = torch.stack(torch._foreach_norm(self.parameters.grads, 2.0, dtype=self.precise)).norm()
        unscale = self.scaling.settle(norm) if self.scaling else norm.new_ones(())
        if not self.settings.max_grad_norm:
            return unscale
        clipped: Tensor = (self.settings.max_grad_norm / (norm * unscale + 1e-6)).clamp(max=1.0) * unscale
        return clipped


class LossScaling:
    """Dynamic loss scale for float16, on the device (Micikevicius et al. 1710.03740).

    A step whose gradients overflow is taken as a zero gradient and halves the scale; 200 good steps double it.
    """

    def __init__(self, parameters: StackedParameters, device: torch.device) -> None:
        self.parameters = parameters
        self.scale = torch.full((), 2.0**14, device=device)
        self.good = torch.zeros((), device=device)

    def settle(self, norm: Tensor) -> Tensor:
        """Drop overflowed gradients, adapt the scale; what undoes the scale in this step's gradients."""
        finite = torch.isfinite(norm)
        for grad in self.parameters.grads:
            grad.masked_fill_(~finite, 0.0)
        unscale = 1 / self.scale
        norm.copy_(torch.where(finite, norm, 0.0))
        self.good.copy_(torch.where(finite, self.good + 1, 0.0))
        grown = torch.where(self.good >= 200, self.scale * 2, self.scale)
        self.good.copy_(torch.where(self.good >= 200, 0.0, self.good))
        self.scale.copy_(torch.where(finite, grown, self.scale * 0.5))
        return unscale

    def state(self) -> dict[str, Tensor]:
        """The scale and the run of good steps."""
        return {"scale": self.scale, "good": self.good}


def predict(
    unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, embeds: Tensor, pooled: Tensor, time_ids: Tensor
) -> Tensor:
    """What the U-Net predicts of `noisy`, in its own dtype."""
    kind = unet.conv_in.weight.dtype
    conditions = {"text_embeds": pooled.to(kind), "time_ids": time_ids}
    result: Tensor = unet(noisy.to(kind), timesteps, embeds.to(kind), added_cond_kwargs=conditions, return_dict=False)[
        0
    ]
    return result


def _cut(draws: Draws, part: slice) -> Draws:
    return Draws(draws.noise[part], draws.spread[part], draws.timesteps[part], draws.variant[part], draws.dropped[part])
