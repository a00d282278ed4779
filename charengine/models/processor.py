"""A Qwen2.5-VL processor that needs no torchvision, and the position-id fix that Qwen-Image-Edit needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import ProcessorMixin  # diffusers looks the base class up in this module, by name, to load the class
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from charengine.embedded.captioning import CAPTION_PIXELS, CAPTION_PROMPT

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch.utils.hooks import RemovableHandle

__all__ = [
    "CAPTION_PIXELS",
    "CAPTION_PROMPT",
    "ImageTextProcessor",
    "ProcessorMixin",
    "caption_inputs",
    "fix_position_ids",
]


class ImageTextProcessor(Qwen2VLProcessor):  # type: ignore[misc]  # transformers is not read by mypy
    """`Qwen2VLProcessor` for pictures and text: no video processor, the one part that has no PIL backend."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that are saved and loaded."""
        return ["image_processor", "tokenizer"]


def fix_position_ids(text_encoder: Any) -> RemovableHandle:
    """Give a Qwen2.5-VL encoder the `mm_token_type_ids` that diffusers' pipelines forget to pass on.

    Without them transformers 5 falls back from 3-D to 1-D positions silently (diffusers #14194, open in 0.42.1).

    Args:
        text_encoder: a `Qwen2_5_VLForConditionalGeneration`.

    Returns:
        The hook's handle; `.remove()` undoes the fix.
    """
    image_token = text_encoder.config.image_token_id

    def add_token_types(
        _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = kwargs.get("input_ids")
        if kwargs.get("image_grid_thw") is not None and ids is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = (ids == image_token).int()
        return args, kwargs

    handle: RemovableHandle = text_encoder.register_forward_pre_hook(add_token_types, with_kwargs=True)
    return handle


def caption_inputs(processor: ImageTextProcessor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
    """Inputs that ask the embedded captioner for the tags of each picture.

    Args:
        processor: the family's own.
        images: RGB pictures; any sizes.

    Returns:
        What `Qwen2_5_VLForConditionalGeneration.generate` takes, `mm_token_type_ids` included; padded on the left.
    """
    size = {"shortest_edge": CAPTION_PIXELS[0], "longest_edge": CAPTION_PIXELS[1]}
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=[CAPTION_PROMPT] * len(images), images=list(images), size=size, padding=True, return_tensors="pt"
    )
    processor.tokenizer.padding_side = "right"
    if "mm_token_type_ids" not in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == processor.image_token_id).int()
    return dict(inputs)
