"""Fixed-noise, fixed-timestep loss of every view: the number that shows overfitting, which the training loss does not.

Pictures held out from training are measured too, under a name of their own: their distance to the views is what was not learnt
but remembered.

Plain mean squared error (no min-SNR weight, no mask) of what the U-Net predicts (noise or velocity), on the same noise at every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charengine.errors import StageFailed
from charengine.models.prediction import Kind, target
from charengine.records import HELD_OUT, LossPoint
from charengine.stages.train.data import Bucket, TrainingData
from charengine.stages.train.step import predict

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

THIRDS = ("low", "mid", "high")
PER_THIRD = 2  # timesteps a third
NOISE_SEED = 20_231_107  # the same noise for every run, so that runs compare


@dataclass(frozen=True)
class _Batch:
    """One view of one bucket at all timesteps."""

    view: str
    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    embeds: Tensor
    pooled: Tensor
    time_ids: Tensor


class TrainingDiverged(StageFailed):
    """The loss is no longer a number."""


class Validation:
    """Measures a U-Net on noise drawn once.

    Args:
        unet: with the adapter hooked on.
        data: its views and what is held out are measured, not its class images.
        alphas_cumprod: (1000,) noise schedule.
        chunk: most samples in one forward.
        prediction: what the U-Net predicts.
        pool: a CUDA graph memory pool: the forward of each shape is captured there; None runs eagerly.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        data: TrainingData,
        alphas_cumprod: Tensor,
        *,
        chunk: int,
        prediction: Kind = "epsilon",
        pool: Any = None,
    ) -> None:
        self.unet, self.chunk, self.pool = unet, max(1, chunk), pool
        count = len(THIRDS) * PER_THIRD
        steps = torch.tensor([int((i + 0.5) * len(alphas_cumprod) / count) for i in range(count)])
        generator = torch.Generator().manual_seed(NOISE_SEED)
        shown = [("", bucket) for bucket in data.views] + [(HELD_OUT, bucket) for bucket in data.held_out]
        self.batches = [
            batch
            for mark, bucket in shown
            for batch in _batches(bucket, steps, alphas_cumprod, generator, mark, prediction)
        ]
        self.graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    @torch.no_grad()
    def measure(self, step: int) -> LossPoint:
        """Mean loss, by view and by third of the timesteps (low = little noise).

        Raises:
            TrainingDiverged: it is no number: the last step spoiled the adapter, or the base model cannot do it.
        """
        losses = {batch.view: torch.cat(self._errors(batch)).cpu().double() for batch in self.batches}
        table = torch.stack(list(losses.values()))
        if not table.isfinite().all():
            raise TrainingDiverged(
                _no_number(step, [view for view, values in losses.items() if not values.isfinite().all()])
            )
        thirds = table.reshape(len(table), len(THIRDS), PER_THIRD).mean((0, 2)).tolist()
        return LossPoint(
            step=step,
            loss=float(table.mean()),
            by_view={view: float(values.mean()) for view, values in losses.items()},
            by_third=dict(zip(THIRDS, thirds, strict=True)),
        )

    def rehearse(self) -> None:
        """Capture every shape, so that what does not fit fails now."""
        with torch.no_grad():
            for batch in self.batches:
                self._errors(batch)

    def _errors(self, batch: _Batch) -> list[Tensor]:
        """Squared error of each timestep, in chunks."""
        found = []
        for start in range(0, len(batch.timesteps), self.chunk):
            part = slice(start, start + self.chunk)
            count = len(batch.timesteps[part])
            inputs = [
                batch.noisy[part],
                batch.timesteps[part],
                batch.embeds.expand(count, -1, -1),
                batch.pooled.expand(count, -1),
                batch.time_ids.expand(count, -1),
            ]
            predicted = self._predict(inputs).to(batch.target.dtype)
            found.append((predicted - batch.target[part]).square().mean((1, 2, 3)))
        return found

    def _predict(self, inputs: list[Tensor]) -> Tensor:
        if self.pool is None:
            return predict(self.unet, *inputs)
        shape = tuple(inputs[0].shape)
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(inputs)
        captured, held, output = self.graphs[shape]
        for place, source in zip(held, inputs, strict=True):
            place.copy_(source)
        captured.replay()
        return output.clone()

    def _capture(self, inputs: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """Record the forward, in memory the training step does not use at the same time; that step has warmed it up."""
        held = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = predict(self.unet, *held)
        return graph, held, output


def _batches(
    bucket: Bucket, steps: Tensor, alphas_cumprod: Tensor, generator: torch.Generator, mark: str, prediction: Kind
) -> list[_Batch]:
    device, kind = bucket.mean.device, bucket.mean.dtype
    alphas = alphas_cumprod[steps].to(device, kind).view(-1, 1, 1, 1)
    batches = []
    for i, view in enumerate(bucket.names):
        shape = (len(steps), *bucket.mean.shape[2:])
        noise = torch.randn(shape, generator=generator).to(device, kind)
        latents, signal, sigma = bucket.mean[i, :1], alphas.sqrt(), (1 - alphas).sqrt()
        noisy = signal * latents + sigma * noise
        rows = slice(i, i + 1)
        batches.append(
            _Batch(
                mark + view,
                noisy,
                target(prediction, latents, noise, signal, sigma),
                steps.to(device),
                bucket.embeds[rows],
                bucket.pooled[rows],
                bucket.time_ids[rows],
            )
        )
    return batches


def _no_number(step: int, views: list[str]) -> str:
    shown = f"the validation loss of {', '.join(views)} became nan at step {step}"
    if step:
        return f"{shown}; lower train.learning_rate or set train.precision to bf16 or fp32"
    return f"{shown}, before anything was learnt; set train.precision to bf16 or fp32, or models.sdxl to another file"
