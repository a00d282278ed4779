"""The embedded family as `Models`: tiny models of the real classes, from the package or from folders a profile names."""

from __future__ import annotations

from pathlib import Path

import torch

from charengine.config import Profile
from charengine.embedded.grammar import parse_tags, unknown_words
from charengine.embedded.shape import EMBEDDED_CONDITION_AREA, EMBEDDED_VAE_AREA
from charengine.models.captioners import EmbeddedCaptioner
from charengine.models.embedded_known import family_of, fingerprint
from charengine.models.embedders import ClipEmbedder
from charengine.models.loading import Loaded, resolve_device
from charengine.models.onlookers import EmbeddedOnlooker
from charengine.models.protocols import Captioner, Models
from charengine.models.qwen_edit import PARTS, QwenEdit
from charengine.models.qwen_parts import QwenEditFolder
from charengine.models.readers import ProbeReader
from charengine.models.sdxl import SDXL
from charengine.models.sdxl_parts import SDXLFolder
from charengine.models.tagger import WD14Captioner

NATIVE_AREA = 128 * 384  # pixels of the pictures the family's SDXL was trained on, and upwards
DTYPE = torch.float32  # the weights are fp16 files; so small, they are computed in full precision everywhere


def load(profile: Profile) -> Models:
    """The embedded family; `models.edit`, `.sdxl` and `.clip` name other folders of the same kind.

    Raises:
        MissingDependency: a folder lacks a part.
        ConfigError: a setting that only the full-size family has.
    """
    family, device = family_of(profile), resolve_device(profile.models.device)
    parts, shared = QwenEditFolder(family.edit, device, DTYPE), Loaded()
    editor = QwenEdit(
        parts,
        device,
        family.editor,
        vae_area=EMBEDDED_VAE_AREA,
        enlarges=False,
        condition_area=EMBEDDED_CONDITION_AREA,
        keep=PARTS,
        unknown_words=unknown_words,
        prompt_style="plain",
        loaded=shared,
    )
    sees = EmbeddedCaptioner(parts, device, fingerprint(family.edit), parse=parse_tags, loaded=shared)
    return Models(
        editor=editor,
        captioner=_tagger(family.tagger, profile) if family.tagger else sees,
        diffusion=SDXL(
            SDXLFolder(family.sdxl, device, DTYPE),
            device,
            DTYPE,
            NATIVE_AREA,
            fingerprint(family.sdxl),
            prediction=family.prediction,
            usage=family.usage,
            recorded=profile.models.cuda_graphs == "auto",
        ),
        embedder=ClipEmbedder(family.clip, device, DTYPE, fingerprint(family.clip)),
        reader=ProbeReader(device),
        onlooker=EmbeddedOnlooker(sees, device),
    )


def _tagger(folder: Path, profile: Profile) -> Captioner:
    tagger = WD14Captioner(folder, "", threshold=profile.caption.threshold)  # says which of its files are not there
    tagger.fingerprint = fingerprint(folder)
    return tagger
