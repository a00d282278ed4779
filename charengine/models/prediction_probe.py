"""Tells an epsilon from a v-prediction U-Net by its own loss at high noise, for checkpoints of which no file says it.

At the last steps of the schedule the input is almost pure noise. An epsilon model answers with that noise: its error is some
hundredths. A v model answers with the negative of the picture it imagines: against the noise its error is 1 or more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.locks import gpu_slot
from charengine.machine.memories import recall, remember
from charengine.models.loading import noise_from_seeds, release_memory
from charengine.models.prediction import UNKNOWN_CURE, Kind, Prediction, target

if TYPE_CHECKING:
    from charengine.models.sdxl_parts import SDXLParts

log = logging.getLogger(__name__)

TIMESTEPS = (999, 950, 900)
CELLS = 64  # side of the latents looked at: 512 pixels
CLEAR = 0.5  # the loss of the right target is far below, that of the other far above
TOKENS = 77
KINDS = ("epsilon", "v_prediction")


def measured_prediction(parts: SDXLParts, device: torch.device, weights: str, home: Home) -> Prediction:
    """What a checkpoint's U-Net predicts, measured on first use and remembered by the digest of its weights.

    Raises:
        BadInput: it is neither; says what to set.
    """
    file = home.root / "predictions.json"
    known = recall(file)
    if known.get(weights) not in KINDS:
        with gpu_slot(home.locks, device):
            unet = parts.unet().requires_grad_(False).eval()
            losses = high_noise_losses(unet, parts.scheduler().alphas_cumprod)
            del unet
            release_memory()
        known[weights] = kind_by_losses(losses)
        log.info("the SDXL checkpoint predicts %s (loss at high noise: %s)", known[weights], losses)
        remember(file, known)
    return Prediction(
        "v_prediction" if known[weights] == "v_prediction" else "epsilon", source="its loss at high noise"
    )


@torch.no_grad()
def high_noise_losses(unet: Any, alphas_cumprod: torch.Tensor, cells: int = CELLS) -> dict[str, float]:
    """Mean squared error of a U-Net at high noise against both targets, on a grey picture, without a prompt.

    Args:
        unet: SDXL's kind.
        alphas_cumprod: (1000,) of the schedule.
        cells: side of the latents.

    Raises:
        BadInput: it answers nothing.
    """
    config, weight = unet.config, unet.conv_in.weight
    noise = noise_from_seeds(range(len(TIMESTEPS)), (config["in_channels"], cells, cells)).to(weight.device)
    steps = torch.tensor(TIMESTEPS, device=weight.device)
    alphas = alphas_cumprod.to(weight.device, torch.float32)[steps].view(-1, 1, 1, 1)
    latents, signal, sigma = torch.zeros_like(noise), alphas.sqrt(), (1 - alphas).sqrt()
    side = 8 * cells
    rows = torch.tensor([[side, side, 0, 0, side, side]] * len(steps), device=weight.device, dtype=weight.dtype)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    unprompted = {"text_embeds": weight.new_zeros(len(steps), pooled), "time_ids": rows}
    embeds = weight.new_zeros(
        len(steps), TOKENS, config["cross_attention_dim"]
    )  # what SDXL was trained with for "no prompt"
    noisy = (signal * latents + sigma * noise).to(weight.dtype)
    answer = unet(noisy, steps, embeds, added_cond_kwargs=unprompted, return_dict=False)[0].float()
    if not answer.any():
        raise BadInput("models.sdxl answers nothing but zeros: download it again")
    kinds: tuple[Kind, ...] = ("epsilon", "v_prediction")
    return {kind: float((answer - target(kind, latents, noise, signal, sigma)).square().mean()) for kind in kinds}


def kind_by_losses(losses: dict[str, float]) -> str:
    """The kind whose target the U-Net meets at high noise.

    Raises:
        BadInput: it meets neither.
    """
    if losses["epsilon"] < CLEAR:
        return "epsilon"
    # against a grey picture a v model's error is what it imagines, up to a picture's own spread (about 1); against the noise
    # it is that plus the noise's
    if losses["v_prediction"] < losses["epsilon"]:
        return "v_prediction"
    raise BadInput(
        f"models.sdxl: at high noise this checkpoint predicts neither the noise (loss {losses['epsilon']:.2f}) nor the velocity "
        f"(loss {losses['v_prediction']:.2f}): it is damaged or of another kind; if you know better, {UNKNOWN_CURE}"
    )
