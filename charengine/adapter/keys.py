"""Names of SDXL U-Net modules in adapter files: diffusers' own, and the original ("sgm") ones kohya's files use.

The map is derived from the U-Net's structure, so it holds for SDXL and for any smaller U-Net of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PREFIX = "lora_unet_"
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by width of the text embedding

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """Diffusers name of every weighted module → its original SDXL name, both dotted.

    `down_blocks.1.attentions.0.…` → `input_blocks.4.1.…`, as in the single-file checkpoints by Stability AI.
    """
    return named([name for name, one in unet.named_modules() if getattr(one, "weight", None) is not None], unet)


def named(layers: Iterable[str], structure: Any) -> dict[str, str]:
    """As `sgm_names`, of layers' diffusers names and the blocks of their U-Net."""
    prefixes = dict(_block_prefixes(structure))
    names = {}
    for name in layers:
        if name in _TOP:
            names[name] = _TOP[name]
            continue
        block = next((p for p in _ancestors(name) if p in prefixes), None)
        if block is not None:
            names[name] = prefixes[block] + _inside(name[len(block) + 1 :])
    return names


def file_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """Diffusers module name → the stem of its keys in an adapter file, `lora_unet_input_blocks_4_1_…`."""
    return {name: PREFIX + sgm.replace(".", "_") for name, sgm in sgm_names(unet).items()}


def known_stems(unet: UNet2DConditionModel) -> dict[str, str]:
    """Every spelling of a module in the files this engine reads → its diffusers name.

    Spellings: kohya with original or diffusers names, LyCORIS (`lycoris_…`), diffusers and PEFT (dotted), OneTrainer's own (`unet.` before
    original names, which no other program loads).
    """
    return stems_of(sgm_names(unet))


def stems_of(names: Mapping[str, str]) -> dict[str, str]:
    """As `known_stems`, of layers' diffusers names and original ones."""
    stems = {}
    for name, sgm in names.items():
        flat = name.replace(".", "_")
        for stem in (
            PREFIX + sgm.replace(".", "_"),
            PREFIX + flat,
            "lycoris_" + flat,
            "lycoris_" + sgm.replace(".", "_"),
        ):
            stems[stem] = name
        for prefix in ("unet.", "", "base_model.model.", "base_model.model.unet."):
            stems[prefix + name] = name
        for stem in ("diffusion_model." + sgm, "unet." + sgm, "unet_" + flat):
            stems[stem] = name
    return stems


def _block_prefixes(unet: Any) -> Iterator[tuple[str, str]]:
    """(diffusers block, original block) pairs, in network order."""
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers is not None:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        has_attention = getattr(block, "attentions", None) is not None
        for j in range(len(block.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1"
            if block.upsamplers is not None and j == len(block.resnets) - 1:
                position = 2 if has_attention else 1
                yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{number}.{position}.conv"
            number += 1


def _ancestors(name: str) -> Iterator[str]:
    """The name itself and its dotted prefixes, longest first."""
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def _inside(rest: str) -> str:
    """Name inside a block; transformer blocks are spelt alike in both conventions."""
    return f".{_RESNET.get(rest, rest)}" if rest else ""
