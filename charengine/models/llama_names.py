"""Qwen2.5-VL as llama.cpp stores it: the language model in one GGUF file, the vision tower in another ("mmproj")."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from charengine import files
from charengine.errors import BadInput
from charengine.models.files import Header, read_header, tensors_together
from charengine.models.quantised import State
from charengine.models.reading import joined, unpacked

LANGUAGE = {
    "blk.": "model.layers.", "attn_norm.": "input_layernorm.", "attn_output.": "self_attn.o_proj.", "attn_q.": "self_attn.q_proj.",
    "attn_k.": "self_attn.k_proj.", "attn_v.": "self_attn.v_proj.", "ffn_norm.": "post_attention_layernorm.",
    "ffn_gate.": "mlp.gate_proj.", "ffn_up.": "mlp.up_proj.", "ffn_down.": "mlp.down_proj.", "token_embd.": "model.embed_tokens.",
    "output_norm.": "model.norm.", "output.": "lm_head.",
}  # fmt: skip
VISION = {
    "v.blk.": "visual.blocks.", "v.post_ln.": "visual.merger.ln_q.", "v.patch_embd.": "visual.patch_embed.proj.", "mm.": "visual.merger.mlp.",
    "attn_out.": "attn.proj.", "ffn_gate.": "mlp.gate_proj.", "ffn_up.": "mlp.up_proj.", "ffn_down.": "mlp.down_proj.",
    "ln1.": "norm1.", "ln2.": "norm2.",
}  # fmt: skip
SPLIT = re.compile(r"^v\.blk\.(\d+)\.attn_([qkv])\.(weight|bias)$")
FRAME = "v.patch_embd.weight.1"  # the patch embedding of a pair's second picture, apart from the first's
VISION_KEY, MERGER_KEY, WIDTH_KEY = "v.blk.0.attn_out.weight", "mm.2.weight", "token_embd.weight"
QUANTISATION = re.compile(r"[-_.]?(ud-)?(i?q\d\w*|b?f16|f32|fp16)$")
GET_MMPROJ = (
    "an mmproj-*.gguf of Qwen2.5-VL-7B (about 1.4 GB in f16) from the page the GGUF came from, e.g. "
    "https://huggingface.co/unsloth/Qwen2.5-VL-7B-Instruct-GGUF, into the same folder"
)


def from_llama_names(state: State) -> State:
    """llama.cpp's names as Qwen's own (`visual.`, `model.`); split q/k/v joined; other names as they are."""
    renamed: State = {}
    fused: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        split = SPLIT.match(key)
        if split:
            block, letter, kind = split.groups()
            fused.setdefault(f"visual.blocks.{block}.attn.qkv.{kind}", {})[letter] = value  # type: ignore[assignment]
        elif key != FRAME:
            renamed[_renamed(key)] = value
    for name, parts in fused.items():
        if len(parts) == 3:
            renamed[name] = joined([parts[letter] for letter in "qkv"])
    if FRAME in state:
        frames = [unpacked(state[FRAME.removesuffix(".1")]).float(), unpacked(state[FRAME]).float()]
        renamed["visual.patch_embed.proj.weight"] = torch.stack(frames, dim=2)
    return renamed


def _renamed(key: str) -> str:
    table = VISION if key.startswith(("v.", "mm.")) else LANGUAGE if _is_language(key) else {}
    for old, new in table.items():
        if key.startswith(old) or f".{old}" in key:
            key = key.replace(old, new, 1)
    return key


def _is_language(key: str) -> bool:
    return key.startswith(("blk.", "token_embd.", "output_norm.", "output."))


def vision_beside(path: Path) -> Path:
    """The vision tower that belongs to a language model's GGUF: in its folder, of its width, the closest name first.

    Raises:
        BadInput: there is none; says what is needed and where to get it.
    """
    width = read_header(path).tensors[WIDTH_KEY].shape[1]
    stem = QUANTISATION.sub("", path.stem.lower())
    found = []
    for file in files.entries(path.parent):
        if file.suffix != ".gguf" or file == path or "mmproj" not in file.name.lower():
            continue
        header = read_header(file)
        if is_vision(header) and header.tensors[MERGER_KEY].shape[0] == width:
            found.append(file)
    if not found:
        raise BadInput(
            f"{path} is a language model without eyes: the edit model shows it the template, so it needs {GET_MMPROJ}"
        )
    return max(found, key=lambda file: (stem in file.name.lower(), "f16" in file.name.lower()))


def is_vision(header: Header) -> bool:
    """Whether a GGUF holds Qwen2.5-VL's vision tower."""
    return VISION_KEY in header.tensors and MERGER_KEY in header.tensors


def is_language(header: Header) -> bool:
    """Whether a GGUF holds the language model of a Qwen2.5-VL."""
    return header.metadata.get("general.architecture") == "qwen2vl" and WIDTH_KEY in header.tensors


def renamed_header(path: Path) -> Header:
    """One header for a language model and its vision tower, under Qwen's own names."""
    return Header(path, "gguf", tensors_together(map(read_header, files_of_text_encoder(path)), _renamed))


def files_of_text_encoder(path: Path) -> list[Path]:
    """The files of a text encoder: itself, and for a GGUF its vision tower too."""
    return [path, vision_beside(path)] if path.suffix.lower() == ".gguf" else [path]
