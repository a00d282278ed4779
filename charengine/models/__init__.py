"""The model protocols every stage sees, and `load(profile)`."""

from charengine.models.load import load
from charengine.models.protocols import (
    BatchCaptioner,
    Captioner,
    Description,
    Diffusion,
    Embedder,
    LatentPosterior,
    Models,
    Questioner,
    SheetEditor,
    TextConditioning,
    TraitReader,
    describe_all,
    reads_plain_words,
)

__all__ = [
    "BatchCaptioner",
    "Captioner",
    "Description",
    "Diffusion",
    "Embedder",
    "LatentPosterior",
    "Models",
    "Questioner",
    "SheetEditor",
    "TextConditioning",
    "TraitReader",
    "describe_all",
    "load",
    "reads_plain_words",
]
