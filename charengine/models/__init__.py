"""The model protocols every stage sees, and `load(profile)`."""

from charengine.models.load import known, load
from charengine.models.protocols import (
    BatchCaptioner,
    Captioner,
    Description,
    Diffusion,
    Embedder,
    LatentPosterior,
    Models,
    Onlooker,
    Questioner,
    SheetEditor,
    Sight,
    TextConditioning,
    Trace,
    TraitReader,
    describe_all,
    pictures_seen,
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
    "Onlooker",
    "Questioner",
    "SheetEditor",
    "Sight",
    "TextConditioning",
    "Trace",
    "TraitReader",
    "describe_all",
    "known",
    "load",
    "pictures_seen",
    "reads_plain_words",
]
