"""What is said about an adapter beside its file: the model card, and the sidecars that A1111, ComfyUI and their add-ons read.

All of them are made from the same facts, MLflow's description of a logged model too. Facts are texts by name; what is not known
is left out. The sidecars' fields are those that programs were seen to read (docs/howto/comfyui.md names them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

LABELS = {
    "character": "Character",
    "prompt": "Made from",
    "trigger": "Trigger",
    "recommended_prompt": "Say in a prompt",
    "traits": "Shown by the trigger alone, share of pictures",
    "checkpoint_step": "Checkpoint, steps",
    "recommended_strength": "Strength to load this file at",
    "picked_strength": "Strength that was picked for the adapter as trained",
    "dataset": "Data set",
    "base_model": "Base model",
    "base_family": "Fits",
    "base_licence": "Licence of the base model",
}
LICENCES = {"openrail++": "CreativeML Open RAIL++-M", "apache-2.0": "Apache-2.0"}
"""Identifiers on the Hugging Face hub, and what they are called."""


@dataclass(frozen=True)
class Shown:
    """A picture beside the adapter: its path from there, and the prompt it was drawn with."""

    path: str
    prompt: str


def model_card(facts: Mapping[str, str]) -> str:
    """The facts as a list in Markdown; what is not known is left out.

    A checkpoint has no recommended strength: that is the sweep's to find.
    """
    lines = [f"- {label}: {_plain(facts[name])}" for name, label in LABELS.items() if facts.get(name)]
    if "recommended_strength" not in facts:
        lines.append("- Strength: the sweep tries several; the registered pick says the one to use")
    return "\n".join(lines)


def pick_facts(step: int, strength: float, rescaled: bool) -> dict[str, str]:
    """What is said of a pick; a rescaled file is loaded at 1, whatever strength was picked."""
    return {
        "checkpoint_step": str(step),
        "picked_strength": str(strength),
        "recommended_strength": str(1.0 if rescaled else strength),
    }


def readme(file: str, facts: Mapping[str, str], pictures: Sequence[Shown]) -> str:
    """The model card of a folder with an adapter, with the front matter that the Hugging Face hub reads.

    Args:
        file: name of the recommended adapter.
        facts: see `LABELS`; "hub_base" (a hub id) and "licence" (a hub identifier) go into the front matter alone.
        pictures: shown by the hub as a gallery.
    """
    title = _plain(facts.get("character", file))
    front: dict[str, object] = {
        "license": facts.get("licence"),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": facts.get("hub_base"),
        "instance_prompt": facts.get("recommended_prompt"),
        "tags": ["text-to-image", "stable-diffusion-xl", "lora", "template:sd-lora", "diffusers", "character"],
        "widget": [{"text": shown.prompt, "output": {"url": shown.path}} for shown in pictures],
    }
    known = yaml.safe_dump({name: value for name, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    prompt = facts.get("recommended_prompt", "")
    gallery = " ".join(f"![{_plain(shown.prompt)}]({shown.path})" for shown in pictures)
    body = [
        f"# {title}",
        f"Begin a prompt with\n\n```text\n{prompt}\n```",
        f"and load `{file}` at strength {facts.get('recommended_strength', '1.0')}.",
        gallery,
        model_card(facts),
        f'```python\npipe.load_lora_weights(".", weight_name="{file}")\npipe("{prompt}, walking in a forest")\n```',
    ]
    return f"---\n{known}---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def webui_json(facts: Mapping[str, str]) -> str:
    """`NAME.json`, which A1111 and Forge show on an adapter's card and fill prompts from."""
    return _json(
        {
            "description": _plain(facts.get("prompt", "")),
            "sd version": "SDXL",
            "activation text": facts.get("recommended_prompt", ""),
            "preferred weight": float(facts.get("recommended_strength", 1.0)),
            "negative text": "",
            "notes": model_card(facts),
        }
    )


def civitai_info(file: str, sha256: str, size: int, facts: Mapping[str, str], preview: str) -> str:
    """`NAME.civitai.info`: the answer that Civitai would give about the file, for add-ons that read it instead of asking.

    Args:
        file: the adapter's name.
        sha256: of its content.
        size: bytes.
        facts: see `LABELS`.
        preview: name of the picture beside it.
    """
    subject = " ".join(word for word in (facts.get("trigger", ""), facts.get("class_noun", "")) if word)
    words = dict.fromkeys(word for word in (facts.get("recommended_prompt", ""), subject) if word)
    return _json(
        {
            "id": "",  # not on Civitai; `skeleton_file` tells its helper not to ask again
            "modelId": "",
            "name": facts.get("checkpoint_step", ""),
            "trainedWords": list(words),
            "baseModel": facts.get("civitai_base", "Other"),
            "description": model_card(facts),
            "model": {"name": facts.get("character", file), "type": "LORA", "nsfw": False, "poi": False},
            "files": [
                {
                    "name": file,
                    "type": "Model",
                    "sizeKB": size / 1024,
                    "primary": True,
                    "metadata": {"format": "SafeTensor"},
                    "hashes": {"SHA256": sha256.upper(), "AutoV2": sha256[:10].upper()},
                }
            ],
            "images": [{"url": preview, "nsfw": False, "type": "image", "meta": {"prompt": subject}}],
            "settings": {"strength": float(facts.get("recommended_strength", 1.0))},
            "downloadUrl": "",
            "skeleton_file": True,
            "extensions": {"sd_civitai_helper": {"skeleton_file": True}},
        }
    )


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split())
