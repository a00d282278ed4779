"""Optimizers over stacked parameters: batched Adafactor, fused AdamW, and the packaged ones by name.

All move the float32 masters of a `StackedParameters`; none waits for the device.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import torch
from torch import Tensor

from charengine.config import TrainSettings
from charengine.errors import MissingDependency
from charengine.stages.train.storage import StackedParameters

PACKAGES = {
    "adamw8bit": ("bitsandbytes", "optim", "AdamW8bit"),
    "prodigy": ("prodigyopt", "", "Prodigy"),
    "prodigy-schedulefree": ("prodigy-plus-schedule-free", "", "ProdigyPlusScheduleFree"),
}


class Optimizer(Protocol):
    """What a training step needs of an optimizer."""

    capturable: bool

    def prepare(self, step: int, rate: float) -> None:
        """Set this step's number (0-based) and learning rate; outside a captured graph."""
        ...

    def update(self, factor: Tensor) -> None:
        """Move the masters by the gradients times `factor` (a device scalar: clipping), then publish them."""
        ...

    def rehearse(self) -> None:
        """Run a step that changes nothing, before one is captured."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to go on exactly, by name."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state."""
        ...

    def evaluating(self, on: bool) -> None:
        """Switch the parameters to evaluation weights (schedule-free methods) and back."""
        ...


def build_optimizer(settings: TrainSettings, parameters: StackedParameters) -> Optimizer:
    """The optimizer the settings name.

    Raises:
        MissingDependency: its package is not installed.
    """
    if settings.optimizer == "adafactor":
        return BatchedAdafactor(parameters, settings.weight_decay)
    return TorchOptimizer(settings, parameters)


class BatchedAdafactor:
    """transformers' Adafactor (scale_parameter, relative_step and warmup_init off), one shape at a time.

    Shazeer & Stern 1804.04235: factored second moments over the last two dimensions, update clipping by its RMS, β₂ = 1 − t^−0.8.
    Statistics are per parameter, as if each were stepped alone.
    """

    capturable = True

    def __init__(
        self,
        parameters: StackedParameters,
        weight_decay: float = 0.0,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
    ) -> None:
        self.parameters, self.weight_decay = parameters, weight_decay
        self.eps, self.clip_threshold, self.decay_rate = eps, clip_threshold, decay_rate
        masters = parameters.masters
        self.rows = [m.new_zeros(m.shape[:-1]) if m.dim() > 2 else torch.zeros_like(m) for m in masters]
        self.columns = [m.new_zeros(m.shape[:-2] + m.shape[-1:]) if m.dim() > 2 else None for m in masters]
        self.rate = masters[0].new_zeros(())
        self.decay = masters[0].new_zeros(())

    def prepare(self, step: int, rate: float) -> None:
        """Set this step's number (0-based) and learning rate."""
        self.rate.fill_(rate)
        self.decay.fill_((step + 1) ** self.decay_rate)

    @torch.no_grad()
    def update(self, factor: Tensor) -> None:
        """One step; `factor` scales the gradients."""
        for stack, row, column in zip(self.parameters.stacks, self.rows, self.columns, strict=True):
            grad = stack.grad.to(stack.master.dtype) * factor
            square = grad.square().add_(self.eps)
            if column is None:
                row.lerp_(square, self.decay)
                change = grad.mul_(row.rsqrt())
            else:
                row.lerp_(square.mean(-1), self.decay)
                column.lerp_(square.mean(-2), self.decay)
                scale = (row / row.mean(-1, keepdim=True)).rsqrt_()
                change = grad.mul_(scale.unsqueeze(-1)).mul_(column.rsqrt().unsqueeze(-2))
            size = change[0].numel() ** 0.5
            rms = torch.linalg.vector_norm(change.flatten(1), dim=1) / size
            limit = (rms / self.clip_threshold).clamp_(min=1.0)
            if self.weight_decay:
                stack.master.mul_(1 - self.weight_decay * self.rate)
            stack.master.addcmul_(change, (self.rate / limit).view(-1, *[1] * (change.dim() - 1)), value=-1)
        self.parameters.publish()

    def rehearse(self) -> None:
        """Run a step at rate 0 and put the statistics back."""
        before = {name: tensor.clone() for name, tensor in self.state().items()}
        self.prepare(0, 0.0)
        self.update(self.rate.new_ones(()))
        self.load_state(before)

    def state(self) -> dict[str, Tensor]:
        """Row and column statistics."""
        tensors = {f"row.{i}": row for i, row in enumerate(self.rows)}
        return tensors | {f"column.{i}": column for i, column in enumerate(self.columns) if column is not None}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up saved statistics."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def evaluating(self, on: bool) -> None:
        """The weights trained with are the weights evaluated."""


class TorchOptimizer:
    """A `torch.optim` style optimizer over the masters, with its scalars kept on the device where it allows that."""

    def __init__(self, settings: TrainSettings, parameters: StackedParameters) -> None:
        self.parameters = parameters
        self.leaves = [torch.nn.Parameter(master) for master in parameters.masters]
        for leaf in self.leaves:
            leaf.grad = torch.zeros_like(leaf)
        cuda = self.leaves[0].is_cuda
        self.capturable = cuda and settings.optimizer == "adamw"
        self.inner = self._make(settings, cuda)
        self.schedule_free = settings.optimizer == "prodigy-schedulefree"
        if self.schedule_free:
            self.inner.train()
        if settings.optimizer == "adamw":
            self._allocate()

    def _allocate(self) -> None:
        """Let the optimizer make its state now, not inside a captured graph: a step of nothing at rate 0, then zeros."""
        self.prepare(0, 0.0)
        self.inner.step()
        for values in self.inner.state.values():
            for tensor in values.values():
                tensor.zero_()

    def _make(self, settings: TrainSettings, cuda: bool) -> Any:
        common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        if settings.optimizer == "adamw":
            rate = (
                torch.tensor(settings.learning_rate, device=self.leaves[0].device) if cuda else settings.learning_rate
            )
            return torch.optim.AdamW(
                self.leaves, lr=rate, weight_decay=settings.weight_decay, fused=cuda or None, capturable=cuda
            )
        package, place, name = PACKAGES[settings.optimizer]
        try:
            module = importlib.import_module(".".join(filter(None, (_import_name(package), place))))
        except ImportError as error:
            raise MissingDependency(
                f"train.optimizer={settings.optimizer} needs the package {package}: pip install {package} "
                "(or choose adafactor or adamw)"
            ) from error
        return getattr(module, name)(self.leaves, **common)

    def prepare(self, step: int, rate: float) -> None:
        """Set the learning rate; the optimizer counts steps itself."""
        for group in self.inner.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @torch.no_grad()
    def update(self, factor: Tensor) -> None:
        """One step; `factor` scales the gradients."""
        for leaf, stack in zip(self.leaves, self.parameters.stacks, strict=True):
            torch.mul(stack.grad.to(leaf.dtype), factor, out=leaf.grad)
        self.inner.step()
        self.parameters.publish()

    def rehearse(self) -> None:
        """Nothing: the step that allocated the state has run every kernel."""

    def state(self) -> dict[str, Tensor]:
        """Per-parameter and group values; what is no tensor as one, its kind told by the end of its name."""
        return {
            f"{kind}.{i}.{name}{_mark(value)}": _as_tensor(value)
            for kind, places in self._places().items()
            for i, values in enumerate(places)
            for name, value in values.items()
            if kind == "state" or isinstance(value, Tensor | float) or type(value) is int
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state; tensors that exist are filled in place, for a captured graph points at them."""
        places = self._places()
        for key, tensor in state.items():
            kind, number, name = key.split(".", 2)
            values = places[kind][int(number)]
            held = values.get(name)
            if isinstance(held, Tensor):
                held.copy_(tensor)
            elif name[-1] in MARKS:
                plain = tensor.tolist()
                values[name[:-1]] = tuple(plain) if name[-1] == "@" else plain
            else:
                values[name] = tensor

    def _places(self) -> dict[str, list[dict[str, Any]]]:
        """The optimizer's own dictionaries; its `state_dict` may wrap them, as that of bitsandbytes does."""
        return {"state": [self.inner.state[leaf] for leaf in self.leaves], "group": self.inner.param_groups}

    def evaluating(self, on: bool) -> None:
        """Schedule-free methods evaluate at the averaged weights."""
        if self.schedule_free:
            (self.inner.eval if on else self.inner.train)()
            self.parameters.publish()


def _import_name(package: str) -> str:
    return {"prodigy-plus-schedule-free": "prodigyplus"}.get(package, package)


MARKS = "#@"  # the end of a saved name: a number, a tuple of numbers


def _mark(value: Any) -> str:
    return "" if isinstance(value, Tensor) else "@" if isinstance(value, tuple) else "#"


def _as_tensor(value: Any) -> Tensor:
    """Exact: integers as int64, floats as float64, truths as truths."""
    if isinstance(value, Tensor):
        return value
    kinds = {type(one) for one in (value if isinstance(value, tuple) else (value,))}
    if not kinds <= {bool, int, float}:
        raise TypeError(f"an optimizer keeps {value!r}, which cannot be saved exactly")
    return torch.tensor(value, dtype=torch.float64 if float in kinds else None)
