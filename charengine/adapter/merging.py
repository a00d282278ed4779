"""Adapter files merged into a U-Net's weights, and the weights' own bits put back.

A hook beside each of SDXL's 788 layers costs about a fifth of a picture; a merged adapter costs nothing while pictures are drawn. What
is merged is always computed from the base's kept bits, never from what was merged before: a picture does not depend on the cells before
it, and taking an adapter off puts bits back instead of subtracting. Where the model computes on the CPU, the base's own storage is kept
and merged weights get another; on a GPU merged weights lie where the base's did, and the base's bits wait on the host, so that
not a byte more of the card is taken. Layers whose weight cannot be exchanged keep a hook (`why_hooked`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from charengine.adapter.applied import AppliedLayer, merged_weight
from charengine.adapter.files import by_module, load_adapter
from charengine.adapter.parts import Parts
from charengine.host_memory import HostCopies

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)

MERGED = (torch.float32, torch.float16, torch.bfloat16)


class AdapterMerger:
    """Puts adapters on a U-Net, one at a time; a context manager, which leaves the U-Net with the base's bits whatever ends it, and
    then holds it no longer.

    Args:
        unet: frozen; nobody else may change its weights meanwhile.
        merge: False: every layer keeps a hook beside it and no weight is touched.
        in_place: merged weights lie where the base's did; None: unless the model is on the CPU.
    """

    def __init__(self, unet: UNet2DConditionModel, *, merge: bool = True, in_place: bool | None = None) -> None:
        self.unet, self.merge, self.in_place = unet, merge, in_place
        self._kept: dict[str, _KeptWeight | None] = {}  # by layer; None where a hook it must be
        self._hooked: list[str] = []

    def __enter__(self) -> AdapterMerger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.take_off()
        self._kept = {}
        del self.unet  # 5 GB of a card, which whoever comes next may need

    def read(self, data: bytes) -> dict[str, Parts]:
        """An adapter file, ready for `put_on`: the parts of each layer, in host memory.

        Args:
            data: a safetensors file: kohya, LyCORIS, diffusers or PEFT keys; text-encoder keys are ignored.

        Raises:
            BadInput: the file is not an adapter for this U-Net; says why.
        """
        layers = by_module(load_adapter(data)[0], self.unet)
        return layers if self._on_cpu else packed(layers)

    @property
    def _on_cpu(self) -> bool:
        return bool(self.unet.conv_in.weight.device.type == "cpu")

    @torch.no_grad()
    def prepare(self, layers: Mapping[str, Parts]) -> None:
        """Keep what these layers hold, ahead of `put_on` and on any thread, while nothing else of this is called.

        On a GPU that takes a second for SDXL's 5 GB, in which pictures can be drawn.
        """
        self._keep([name for name in layers if name not in self._kept])

    @torch.no_grad()
    def put_on(self, layers: Mapping[str, Parts], strength: float) -> None:
        """Compute with this adapter from the next forward on, instead of with what was on before.

        Args:
            layers: as `read` gives them.
            strength: 0 the base model, 1 as trained.
        """
        self.take_off(except_for=layers if strength else {})
        if not strength:
            return
        self.prepare(layers)
        merged = {name: kept for name in layers if (kept := self._kept[name])}
        there = _placed({name: layers[name] for name in merged}, self.unet.conv_in.weight.device)
        for name, parts in layers.items():
            if name in merged:
                merged[name].replace(there[name], strength)
            else:
                self._hook(name, parts, strength)

    @torch.no_grad()
    def take_off(self, *, except_for: Mapping[str, Parts] | None = None) -> None:
        """The base's own bits in every layer and no hook; nothing when nothing is on.

        Args:
            except_for: layers that get other weights at once, and need not have their own in between.
        """
        for name in self._hooked:
            self.unet.get_submodule(name).__dict__.pop("forward", None)
        self._hooked = []
        for name, kept in self._kept.items():
            if kept is not None and name not in (except_for or {}):
                kept.restore()

    def _keep(self, names: Sequence[str]) -> None:
        """These layers' own bits, kept before they are first replaced; None where they cannot be."""
        weights = {}
        for name in names:
            why = why_hooked(self.unet, name) if self.merge else "as asked"
            if why and self.merge:
                log.info("the adapter is hooked beside %s, not merged: %s", name, why)
            if not why:
                weights[name] = self.unet.get_submodule(name).weight
        in_place = not self._on_cpu if self.in_place is None else self.in_place
        pages = HostCopies([weight.data for weight in weights.values()]) if in_place else None
        bits = pages.copies if pages else [weight.data for weight in weights.values()]
        kept = {
            name: _KeptWeight(weight, own, pages) for (name, weight), own in zip(weights.items(), bits, strict=True)
        }
        self._kept |= {name: kept.get(name) for name in names}

    def _hook(self, name: str, parts: Parts, strength: float) -> None:
        self._hooked.append(name)  # first, so that an interrupt finds it
        applied, weight = AppliedLayer(self.unet.get_submodule(name), parts), self.unet.conv_in.weight
        applied.to(weight.device, weight.dtype).multiplier = strength


def packed(layers: Mapping[str, Parts]) -> dict[str, Parts]:
    """The same parts as slices of one tensor for each element type, so that one copy takes them to a GPU; alphas stay alone.

    Two thousand small copies from memory that is not locked take a quarter of a second of every cell.
    """
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for value in _values(layers):
        kinds.setdefault(value.dtype, []).append(value)
    slices = {}
    for values in kinds.values():
        whole = torch.cat([value.flatten() for value in values])
        ends = itertools.accumulate(value.numel() for value in values)
        for value, end in zip(values, ends, strict=True):
            slices[id(value)] = whole[end - value.numel() : end].view(value.shape)
    return {name: {part: slices.get(id(v), v) for part, v in parts.items()} for name, parts in layers.items()}


def _placed(layers: Mapping[str, Parts], device: torch.device) -> dict[str, Parts]:
    """The parts on a device, alphas where they are; what shares a storage is copied once."""
    storages: dict[int, Tensor] = {}
    for value in _values(layers):
        own = value.untyped_storage()
        if own.data_ptr() not in storages:
            storages[own.data_ptr()] = torch.empty(0, dtype=value.dtype).set_(own).to(device)

    def there(value: Tensor) -> Tensor:
        whole = storages[value.untyped_storage().data_ptr()]
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())

    return {
        name: {part: value if part == "alpha" else there(value) for part, value in parts.items()}
        for name, parts in layers.items()
    }


def _values(layers: Mapping[str, Parts]) -> Iterator[Tensor]:
    return (value for parts in layers.values() for part, value in parts.items() if part != "alpha")


def why_hooked(unet: nn.Module, name: str) -> str:
    """Why an adapter of this layer cannot be merged into its weight; "" where it can.

    Args:
        unet: the whole model.
        name: of the layer in it.
    """
    layer = unet.get_submodule(name)
    weight = layer.weight
    if not isinstance(weight, nn.Parameter) or weight.dtype not in MERGED or hasattr(layer, "weight_scale"):
        kind = str(getattr(weight, "dtype", type(weight).__name__)).removeprefix("torch.")
        return f"its weight is packed ({kind}), and merged it would be rounded once more"
    if weight.device != unet.get_submodule("conv_in").weight.device:
        return f"its weight waits elsewhere ({weight.device.type}) and is copied when the layer runs"
    path = name.split(".")
    around = (unet.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1))
    if any(module._forward_pre_hooks for module in around):
        return "something runs before it in each pass, which may exchange its weight (streaming, offloading)"
    return ""


class _KeptWeight:
    """The base's weight of one layer, its bits, and what computes in its place; `pages` holds the bits where merged weights lie in theirs."""

    def __init__(self, weight: nn.Parameter, bits: Tensor, pages: HostCopies | None) -> None:
        self.weight, self.bits, self.pages = weight, bits, pages
        self.replaced = False

    def replace(self, parts: Parts, strength: float) -> None:
        """Compute with the adapter at a strength; the sum is made in float32 and rounded once."""
        # parts and bits are converted there: half the bytes to copy
        base = self.bits.to(self.weight.device, non_blocking=self.weight.is_cuda).to(torch.float32)
        wide = {part: value.to(torch.float32) for part, value in parts.items()}
        self._write(merged_weight(base, wide, strength).to(self.weight.dtype))

    def restore(self) -> None:
        """Compute with the base's bits again."""
        if self.replaced:
            self._write(self.bits)
            self.replaced = False

    def _write(self, value: Tensor) -> None:
        self.replaced = True
        if self.pages:
            self.weight.data.copy_(value, non_blocking=self.weight.is_cuda)
        else:
            self.weight.data = value
