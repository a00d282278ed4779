"""The adapter's parameters as a few stacked tensors, one for each shape, so that an optimizer touches dozens, not thousands.

Each parameter becomes a slice of its stack, and so does its gradient. With a half-precision working copy the optimizer
moves float32 masters and copies them down, so that small updates are not rounded away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Stack:
    """All parameters of one shape.

    Args:
        places: file key → index, in network order.
        master: (n, *shape) float32, what the optimizer moves.
        value: (n, *shape) in the compute dtype, what the forward reads; `master` itself in float32.
        grad: (n, *shape) in the compute dtype.
    """

    places: dict[str, int]
    master: Tensor
    value: Tensor
    grad: Tensor


class StackedParameters:
    """Re-homes parameters into stacks; the parameter objects stay what the modules hold.

    Args:
        parameters: by file key, in network order.
        dtype: of the working copy and of the gradients.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
        groups: dict[tuple[int, ...], list[str]] = {}
        for key in sorted(parameters, key=lambda key: key.partition(".")[2]):  # downs, then ups: q, k, v stay together
            groups.setdefault(tuple(parameters[key].shape), []).append(key)
        self.stacks = [self._stack([(key, parameters[key]) for key in keys], dtype) for keys in groups.values()]

    @staticmethod
    def _stack(members: list[tuple[str, nn.Parameter]], dtype: torch.dtype) -> Stack:
        wide = torch.promote_types(dtype, torch.float32)
        master = torch.stack([parameter.detach().to(wide) for _, parameter in members])
        value = master if dtype == wide else master.to(dtype)
        grad = torch.zeros_like(value)
        for i, (_, parameter) in enumerate(members):
            parameter.data = value[i]
            parameter.grad = grad[i]
            parameter.grad_sink = grad[i]  # type: ignore[attr-defined]
        return Stack({key: i for i, (key, _) in enumerate(members)}, master, value, grad)

    def run(self, keys: list[str]) -> tuple[Tensor, Tensor]:
        """Working values and gradients of parameters that lie one after the other, (len(keys), *shape) each."""
        stack = next(stack for stack in self.stacks if keys[0] in stack.places)
        first = stack.places[keys[0]]
        if [stack.places.get(key) for key in keys] != list(range(first, first + len(keys))):
            raise ValueError(f"{keys} do not lie one after the other")
        return stack.value[first : first + len(keys)], stack.grad[first : first + len(keys)]

    @property
    def masters(self) -> list[Tensor]:
        """The stacks an optimizer moves."""
        return [stack.master for stack in self.stacks]

    @property
    def grads(self) -> list[Tensor]:
        """The gradient stacks, in the same order."""
        return [stack.grad for stack in self.stacks]

    def named(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Values by file key, float32 or as asked; on another device each stack is rounded and copied once, not each parameter."""
        moved = [(one.places, one.master.to(dtype or one.master.dtype)) for one in self.stacks]
        moved = [(places, master.to(device or master.device)) for places, master in moved]
        return {key: master[i] for places, master in moved for key, i in places.items()}

    def zero_grad(self) -> None:
        """Set all gradients to zero; they stay where they are."""
        torch._foreach_zero_(self.grads)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters to the working copy."""
        for stack in self.stacks:
            if stack.value is not stack.master:
                stack.value.copy_(stack.master)

    def count(self) -> int:
        """Trainable numbers."""
        return sum(stack.master.numel() for stack in self.stacks)
