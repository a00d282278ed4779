"""Adapters on an SDXL U-Net through LyCORIS: inject, strength, save, load, rescale, apply.

LoCon and LoRA run through `adapter_forward` (low-rank, LyCORIS' "bypass" mathematics); the other algorithms run LyCORIS'
own forward. Files are kohya's: `lora_unet_<original SDXL name>.lora_down.weight / .lora_up.weight / .alpha`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from charengine.adapter.applied import AppliedLayer
from charengine.adapter.files import by_module, load_adapter, modules_of, save_adapter
from charengine.adapter.forward import low_rank_forward, plain_forward, tlora_forward
from charengine.adapter.fresh import by_name, create_network
from charengine.adapter.keys import file_names
from charengine.adapter.rescaling import rescale
from charengine.adapter.sorting import shown
from charengine.adapter.starting import start_layers
from charengine.config import TrainSettings
from charengine.errors import BadInput, ConfigError
from charengine.together import rank_problems

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["Adapter", "apply_adapter", "examine_adapter", "inject", "load_adapter", "rescale", "save_adapter"]

log = logging.getLogger(__name__)


class Adapter:
    """LyCORIS modules on a U-Net, with one strength for all of them.

    Args:
        unet: the frozen U-Net the modules are hooked on.
        modules: diffusers module name → LyCORIS module, already applied.
        algorithm: how the modules are made, as in the settings.
    """

    def __init__(self, unet: UNet2DConditionModel, modules: dict[str, nn.Module], algorithm: str) -> None:
        self.unet, self.modules, self.algorithm = unet, modules, algorithm
        self.stems = file_names(unet)
        self.strength = 1.0

    @property
    def low_rank(self) -> bool:
        """Whether all modules are plain down and up matrices."""
        return self.algorithm in ("locon", "lora")

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that are made at the start and needed to go on, by file key (T-LoRA's frozen start)."""
        return {
            f"{self.stems[name]}.{part}": buffer
            for name, module in self.modules.items()
            for part, buffer in module.named_buffers()
            if part.startswith("base_")
        }

    def attach_dropout(self) -> Tensor:
        """Give every module a view of one mask of rank components, ones for now, to be drawn anew at every step."""
        ranks = [int(module.lora_dim) for module in self.modules.values()]  # type: ignore[arg-type]
        masks = torch.ones(sum(ranks), device=self.unet.conv_in.weight.device)
        for module, mask in zip(self.modules.values(), masks.split(ranks), strict=True):
            module.rank_mask = mask
        return masks

    def attach_timesteps(self, timesteps: Tensor, total: int) -> None:
        """T-LoRA: the less noise, the more rank components take part, one at least (Soboleva et al. 2507.05964).

        Args:
            timesteps: (n,) of the samples about to go through the U-Net.
            total: timesteps of the noise schedule.
        """
        for module in self.modules.values():
            rank: int = module.lora_dim  # type: ignore[assignment]
            active = ((total - timesteps) * (rank - 1)).div(total, rounding_mode="floor") + 1
            mask = torch.arange(rank, device=timesteps.device) < active.unsqueeze(1)
            module.timestep_mask = mask

    def use_plain_forward(self) -> None:
        """Hook layers with plain operations, which torch.compile can look into."""
        for name, module in self.modules.items():
            layer = self.unet.get_submodule(name)
            layer.forward = partial(plain_forward, layer, module)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by file key, in network order."""
        found = {}
        for name, module in self.modules.items():
            for part, parameter in module.named_parameters():
                if parameter.requires_grad:
                    found[f"{self.stems[name]}.{part}"] = parameter
        return found

    def set_strength(self, strength: float) -> None:
        """0 is the base model, 1 as trained; takes effect at the next forward."""
        self.strength = strength
        for module in self.modules.values():
            module.multiplier = strength  # type: ignore[assignment]

    def to(self, device: torch.device) -> None:
        """Move the modules to another device."""
        for module in self.modules.values():
            module.to(device)

    def train(self, mode: bool = True) -> None:
        """Training mode (dropout) on or off."""
        for module in self.modules.values():
            module.train(mode)

    def state_dict(
        self, dtype: torch.dtype | None = None, values: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Tensors under the file's keys, copied to the CPU; a T-LoRA as the plain LoRA of twice its rank it amounts to.

        Args:
            dtype: of all tensors but the alphas; None keeps theirs.
            values: more precise values of parameters, by key (the optimizer's float32 masters).
        """
        tensors = {}
        for name, module in self.modules.items():
            stem = self.stems[name]
            parts = {part: (values or {}).get(f"{stem}.{part}", value) for part, value in module.state_dict().items()}
            if self.algorithm == "tlora":
                parts = _tlora_as_lora(module, parts)
            for part, value in parts.items():
                kind = torch.float32 if part == "alpha" else (dtype or value.dtype)
                tensors[f"{stem}.{part}"] = value.detach().to("cpu", kind, copy=True).contiguous()
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from a file's adapter, exactly: a lower rank is padded, its alpha folded into the matrices.

        Raises:
            BadInput: the file's layers or shapes do not fit these settings.
        """
        found, keys = modules_of(tensors, self.unet)
        if keys.norms:
            raise BadInput(
                f"continue_from: the file holds trained norms ({shown(keys.norms)}), which are not trained here"
            )
        for sentence in keys.left_out():
            log.warning(sentence)
        start_layers(self.modules, found, self.algorithm)

    def remove(self) -> None:
        """Take the hooks off; the U-Net computes what it did before."""
        for name, module in self.modules.items():
            module.restore()  # type: ignore[operator]
            self.unet.get_submodule(name).__dict__.pop("forward", None)
        self.modules = {}


def inject(unet: UNet2DConditionModel, settings: TrainSettings, *, seed: int = 0) -> Adapter:
    """Hook a fresh adapter on a U-Net; it changes nothing until trained.

    Args:
        unet: frozen; the adapter is made on its device, in float32.
        settings: algorithm, rank, alpha, conv_rank, conv_alpha.
        seed: of the down matrices (Kaiming uniform); up matrices are zero.

    Raises:
        ConfigError: the U-Net is too small for the rank.
    """
    _check_rank(unet, settings)
    network = create_network(unet, settings)
    modules = by_name(unet, network)
    generator = torch.Generator().manual_seed(seed)
    for module in modules.values():
        _initialise(module, generator)
    network.apply_to()
    adapter = Adapter(unet, modules, settings.algorithm)
    for module in modules.values():
        _hook(module, adapter.low_rank)
        module.to(unet.conv_in.weight.device, torch.float32).requires_grad_(True)
    return adapter


def apply_adapter(unet: UNet2DConditionModel, data: bytes, strength: float = 1.0) -> Adapter:
    """Hook an adapter file on a U-Net for inference; `set_strength` is live and `remove` restores the exact base.

    Args:
        unet: its weights are never touched.
        data: a safetensors file: kohya, LyCORIS, diffusers or PEFT keys; text-encoder keys are ignored.
        strength: 0 the base model, 1 as trained.

    Raises:
        BadInput: the file is not an adapter for this U-Net; says why.
    """
    weight = unet.conv_in.weight
    modules: dict[str, nn.Module] = {}
    for name, parts in by_module(load_adapter(data)[0], unet).items():
        applied = AppliedLayer(unet.get_submodule(name), parts)
        modules[name] = applied.to(weight.device, weight.dtype).eval()
    adapter = Adapter(unet, modules, "file")
    adapter.set_strength(strength)
    return adapter


def examine_adapter(unet: UNet2DConditionModel, data: bytes) -> tuple[str, ...]:
    """Look at every layer and every value of an adapter file before anything is drawn with it.

    Args:
        unet: what it is to adapt; nothing is hooked on it.
        data: the file.

    Returns:
        What would be left out, a sentence each.

    Raises:
        BadInput: the file is not an adapter for this U-Net, or damaged; names the layer.
    """
    return modules_of(load_adapter(data)[0], unet)[1].left_out()


def _check_rank(unet: UNet2DConditionModel, settings: TrainSettings) -> None:
    if problems := rank_problems(settings, min(unet.config.block_out_channels)):
        raise ConfigError(problems)


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw LyCORIS' own initial distributions again, from our generator instead of the global one."""
    for name, parameter in module.named_parameters():
        part = name.removesuffix(".weight")
        if part in ("lora_down", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a"):
            fan_in = parameter[0].numel()
            bound = 1 / math.sqrt(fan_in)  # kaiming_uniform with a = sqrt(5)
            parameter.data = (torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound
        elif part in ("hada_w1_a", "hada_w1_b", "hada_w2_b"):
            spread = 0.1 if part == "hada_w1_a" else 1.0
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread


def _hook(module: Any, low_rank: bool) -> None:
    """Make the frozen layer call the adapter: our forward for plain low-rank modules, else LyCORIS' own."""
    layer = module.org_module[0]
    layer.forward = partial(low_rank_forward if low_rank else _lycoris_forward, layer, module)


def _lycoris_forward(layer: nn.Module, module: Any, x: Tensor) -> Tensor:
    """LyCORIS' forward; at strength 0 the base itself, which a DoRA's normalisation would miss."""
    if module.multiplier == 0:
        base: Tensor = module.org_forward(x)
        return base
    if module.name == "tlora":
        return tlora_forward(module, x)
    adapted: Tensor = module.forward(x)
    return adapted


def _tlora_as_lora(module: Any, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """P λ Q − P₀ λ₀ Q₀ as one product of twice the rank."""
    shape = (1, -1, *[1] * (parts["p_layer.weight"].dim() - 2))
    now = parts["p_layer.weight"].float() * parts["lambda_layer"].float().view(shape)
    start = module.base_p.float() * module.base_lambda.float().view(shape)
    down = torch.cat([parts["q_layer.weight"].float(), module.base_q.float()])
    up = torch.cat([now, -start.to(now.device)], dim=1)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0 * module.lora_dim * module.scale)}
