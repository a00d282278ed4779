"""What an SDXL U-Net predicts, noise (epsilon) or velocity (v), and over which noise schedule; told from what files say.

Marks people's files carry: the empty keys `v_pred` and `ztsnr` (ComfyUI), `modelspec.prediction_type` and `ss_v_parameterization`
(sd-scripts), a diffusers folder's `scheduler_config.json`, the file's name. Where there is none, `prediction_probe` asks the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import BadInput
from charengine.models.files import Header, read_header, read_json, shown

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["epsilon", "v_prediction"]
GUIDANCE_RESCALE = 0.7  # Lin et al. 2305.08891: guidance overexposes where the last step holds no signal
SAID = {
    "v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction", "vpred": "v_prediction",
    "velocity": "v_prediction", "epsilon": "epsilon", "eps": "epsilon",
}  # fmt: skip
NAMED_V = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
NAMED_EPSILON = re.compile(r"eps[-_ ]?pred|epsilon[-_ ]?pred|[-_ ]eps[-_ .]", re.IGNORECASE)
BASES = ("sd_xl_base_1.0", "stable-diffusion-xl-base-1.0")
UNKNOWN_CURE = "set models.prediction_type to epsilon or v_prediction"


@dataclass(frozen=True)
class Prediction:
    """What the U-Net predicts.

    Args:
        kind: "epsilon" (the noise) or "v_prediction" (√ᾱ·noise − √(1−ᾱ)·image, Salimans & Ho 2202.00512).
        zero_terminal_snr: the last training step is pure noise (betas rescaled, Lin et al. 2305.08891).
        source: who says so.
    """

    kind: Kind = "epsilon"
    zero_terminal_snr: bool = False
    source: str = field(default="", compare=False)

    @property
    def velocity(self) -> bool:
        """Whether it predicts v."""
        return self.kind == "v_prediction"

    def fingerprint_of(self, weights: str) -> str:
        """Of weights that are read so: what was trained or drawn under another reading of the same weights is other work."""
        if self == Prediction():
            return weights
        return f"{weights}|{self.kind}{'|ztsnr' if self.zero_terminal_snr else ''}"

    def describe(self) -> str:
        """For people."""
        schedule = " with zero terminal SNR" if self.zero_terminal_snr else ""
        return f"{'v-prediction' if self.velocity else 'epsilon'}{schedule}{f' ({self.source})' if self.source else ''}"


def target(kind: Kind, latents: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """What the U-Net should predict for `signal·latents + sigma·noise` (signal = √ᾱ, sigma = √(1−ᾱ))."""
    return signal * noise - sigma * latents if kind == "v_prediction" else noise


def rescaled_guidance(combined: Tensor, guided: Tensor, amount: float) -> Tensor:
    """A guided prediction brought back, by `amount`, to the spread of the prompted one (Lin et al. 2305.08891, 3.4)."""
    axes = tuple(range(1, combined.ndim))
    rescaled = combined * (guided.std(dim=axes, keepdim=True) / combined.std(dim=axes, keepdim=True))
    return amount * rescaled + (1 - amount) * combined


def rescaled_for_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ shifted and scaled so that its last value is 0 and its first as before (algorithm 1 of 2305.08891)."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    rescaled: Tensor = ((roots - last) * first / (first - last)) ** 2
    return rescaled


def prediction_of(checkpoint: Path, settings: ModelSettings, measured: Prediction | None = None) -> Prediction | None:
    """What the settings or the checkpoint's files say, else what was measured; None where nothing does.

    Raises:
        BadInput: the files say something that is neither trained nor sampled here.
    """
    kind, where = settings.prediction_type, "models.prediction_type"
    known = measured if kind == "auto" else Prediction(kind, source=where)
    said = _of_folder(checkpoint, known) if files.is_dir(checkpoint) else _of_header(read_header(checkpoint), known)
    if kind != "auto" and said is not None:
        zero = said.zero_terminal_snr and kind == "v_prediction"
        said = Prediction(kind, zero, where if said.source == where else f"{where}; the file: {said.source}")
    if said is not None and settings.zero_terminal_snr is not None:
        said = Prediction(said.kind, settings.zero_terminal_snr, said.source)
    if said is not None and said.zero_terminal_snr and not said.velocity:
        raise BadInput(
            "models.zero_terminal_snr is true for an epsilon model: pure noise says nothing of the noise in it, so such a model "
            "learns nothing there; set models.prediction_type=v_prediction, or leave models.zero_terminal_snr empty"
        )
    return said


def _of_folder(folder: Path, known: Prediction | None) -> Prediction | None:
    file = folder / "scheduler" / "scheduler_config.json"
    if not files.is_file(file):
        return _of_name(folder.name) or known
    config = read_json(file)
    kind = _kind(str(config.get("prediction_type", "epsilon")), f"{file}: prediction_type", known)
    return Prediction(kind, bool(config.get("rescale_betas_zero_snr")), "scheduler_config.json")


def _of_header(header: Header, known: Prediction | None) -> Prediction | None:
    metadata = {key.lower(): value for key, value in header.metadata.items()}
    zero = "ztsnr" in header.tensors or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    if "v_pred" in header.tensors:
        return Prediction("v_prediction", zero, "key v_pred")
    if metadata.get("ss_v_parameterization", "").lower() == "true":
        return Prediction("v_prediction", zero, "ss_v_parameterization")
    named = _of_name(header.path.name) or known
    for key in ("modelspec.prediction_type", "modelspec.predict_key", "predict_key", "prediction_type"):
        if metadata.get(key):
            kind, source = _kind(metadata[key], f"{header.path}: {key}", known), f"{key}, {shown(metadata[key])}"
            if NAMED_V.search(header.path.name) and kind == "epsilon":  # metadata outlives merges
                source += f", but its name says v: {UNKNOWN_CURE}"
            return Prediction(kind, zero and kind == "v_prediction", source)
    if named is not None and named.velocity:
        return Prediction(named.kind, zero or named.zero_terminal_snr, named.source)
    return named


def _of_name(name: str) -> Prediction | None:
    if NAMED_V.search(name):
        return Prediction(
            "v_prediction", "noob" in name.lower(), "its name"
        )  # NoobAI's v-prediction models are of zero SNR
    if NAMED_EPSILON.search(name) or any(base in name for base in BASES):
        return Prediction("epsilon", source="its name")
    return None


def _kind(said: str, where: str, known: Prediction | None) -> Kind:
    found = SAID.get(said.strip().lower(), known and known.kind)
    if found is None:
        raise BadInput(
            f"{where} is {shown(said)!r}; only epsilon and v_prediction models are trained and sampled here: {UNKNOWN_CURE}"
        )
    return "v_prediction" if found == "v_prediction" else "epsilon"
