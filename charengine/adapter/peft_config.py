"""What PEFT writes beside an adapter of its own: part of it, like its bytes. Without torch, for a stage's key counts it too."""

from __future__ import annotations

from pathlib import Path

from charengine import files
from charengine.adapter.header import read_header

SETTINGS = "lora_adapter_metadata"  # of a file's metadata: the same settings, as diffusers writes them
CONFIG, OWN_KEYS = "adapter_config.json", "base_model.model."  # `PeftModel.save_pretrained`


def settings_beside(path: Path) -> str:
    """The settings beside a file of PEFT's own keys, where alone they say the alpha; "" where there are none, or the file says them.

    Raises:
        BadInput: no such file, or the settings are no text, or too long.
        UnsafeFile: it is not a safetensors file.
    """
    place = path.with_name(CONFIG)
    if not files.is_file(place):
        return ""
    header = read_header(path)
    own = SETTINGS not in header.metadata and any(key.startswith(OWN_KEYS) for key in header.tensors)
    return files.read_text(place) if own else ""
