"""Where an adapter file loads: what is said against what the loaders' sources do, and against diffusers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_samples import BASE, LAYERS, LEFT_OUT, SPELLINGS, file_of, parts_of, spelt, tensors_of, tiny_unet

from charengine.adapter.header import read_header
from charengine.adapter.loaders import BASE_NORMS, NOT_ATTENTION, OTHER_NORMS, loads_in
from charengine.cli.inspection import adapter_facts, inspect_file


def _entries(tensors: dict[str, torch.Tensor], tmp_path: Path):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of(tensors))
    return read_header(path).tensors


def _diffusers_layers(tensors: dict[str, torch.Tensor]) -> set[str] | None:
    """The layers that diffusers' own loader adapts; None where it raises or says that it leaves parts out."""
    from diffusers import StableDiffusionXLPipeline

    if any("dora_scale" in key for key in tensors):
        return None  # lora_state_dict drops them with a warning
    unet = tiny_unet()
    try:
        state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
            dict(tensors), unet_config=unet.config, return_lora_metadata=True
        )
        if not all("lora" in key for key in state):
            return None  # what load_lora_weights raises a ValueError for
        StableDiffusionXLPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet, metadata=metadata)
    except (ValueError, KeyError, RuntimeError):
        return None
    return {name.split(".lora_A")[0] for name, _ in unet.named_modules() if name.endswith(".lora_A")}


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr", "DoRA LoRA", "LoRA Tucker"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_diffusers_is_named_exactly_where_its_own_loader_takes_the_whole_file(
    tmp_path: Path, skeleton, spelling: str, algorithm: str
) -> None:
    tensors = spelt(skeleton, tensors_of(tiny_unet(), algorithm), spelling)
    said = "diffusers (load_lora_weights)" in loads_in(_entries(tensors, tmp_path))
    assert said == (_diffusers_layers(tensors) == set(LAYERS))


@pytest.mark.parametrize("key", [key for key in LEFT_OUT if "text_model" not in key])
def test_diffusers_is_not_named_for_a_file_with_keys_that_stop_it(tmp_path: Path, skeleton, key: str) -> None:
    tensors = tensors_of(tiny_unet()) | {key: torch.ones(LEFT_OUT[key][1])}
    assert _diffusers_layers(tensors) is None
    assert "diffusers (load_lora_weights)" not in loads_in(_entries(tensors, tmp_path))


@pytest.mark.parametrize(
    ("spelling", "algorithm", "wanted"),
    [
        ("kohya", "LoRA", {"ComfyUI": "all", "Forge": "all", "AUTOMATIC1111": "all", "kohya's scripts": "all"}),
        (
            "kohya",
            "LoHa",
            {"ComfyUI": "all", "Forge": "all", "AUTOMATIC1111": "all", "kohya's scripts": "with LyCORIS"},
        ),
        (
            "kohya",
            "DoRA LoRA",
            {
                "ComfyUI": BASE_NORMS,
                "Forge": BASE_NORMS,
                "AUTOMATIC1111": OTHER_NORMS,
                "kohya's scripts": "with LyCORIS",
            },
        ),
        (
            "kohya-diffusers",
            "LoKr",
            {"ComfyUI": "all", "Forge": "all", "AUTOMATIC1111": "all", "kohya's scripts": "with LyCORIS"},
        ),
        ("lycoris", "LoKr", {"ComfyUI": "all", "Forge": "all"}),
        ("unet.", "LoRA", {"ComfyUI": "not the attention layers", "Forge": "not the attention layers"}),
        ("bare", "LoRA", {"ComfyUI": "not the attention layers", "Forge": "not the attention layers"}),
        ("base_model.model.", "LoRA", {}),
    ],
)
def test_other_loaders_are_named_by_the_keys_they_read(
    tmp_path: Path, skeleton, spelling: str, algorithm: str, wanted: dict[str, str]
) -> None:
    told = loads_in(_entries(spelt(skeleton, tensors_of(tiny_unet(), algorithm), spelling), tmp_path))
    told.pop("diffusers (load_lora_weights)", None)
    assert told == wanted


def test_a_dora_by_input_is_the_same_in_every_program(tmp_path: Path, unet) -> None:
    tensors = tensors_of(unet, "DoRA LoRA")
    for key in [key for key in tensors if key.endswith("dora_scale")]:
        into = tensors[key.replace("dora_scale", "lora_down.weight")].shape[1]
        tensors[key] = torch.ones(1, into, *[1] * (tensors[key].dim() - 2))
    told = loads_in(_entries(tensors, tmp_path))
    assert told == {"ComfyUI": "all", "Forge": "all", "AUTOMATIC1111": "all", "kohya's scripts": "with LyCORIS"}


def test_forge_applies_nothing_of_a_file_with_more_than_twelve_keys_it_cannot_place(tmp_path: Path) -> None:
    def attention(count: int) -> dict[str, torch.Tensor]:
        names = [f"{BASE.replace('.1.', f'.{number}.', 1)}.to_k" for number in range(count)]
        parts = parts_of("LoRA", (32, 32), alpha=None)
        return {f"{name}.{part}": value.clone() for name in (*names, "unet.conv_in") for part, value in parts.items()}

    few, many = loads_in(_entries(attention(6), tmp_path)), loads_in(_entries(attention(7), tmp_path))
    assert few["Forge"] == few["ComfyUI"] == many["ComfyUI"] == NOT_ATTENTION and "Forge" not in many


def test_a1111_misses_two_layers_under_their_diffusers_names_and_takes_no_file_with_unknown_parts(
    tmp_path: Path,
) -> None:
    parts = parts_of("LoRA", (32, 32))
    names = ("up_blocks_0_upsamplers_0_conv", "up_blocks_1_upsamplers_0_conv", "add_embedding_linear_1")
    tensors = {f"lora_unet_{name}.{part}": value.clone() for name in names for part, value in parts.items()}
    assert loads_in(_entries(tensors, tmp_path))["AUTOMATIC1111"] == "1 of 3 layers"
    tensors |= {
        "lora_unet_conv_in.lora_A.weight": torch.ones(2, 2),
        "lora_unet_conv_in.lora_B.weight": torch.ones(2, 2),
    }
    assert "AUTOMATIC1111" not in loads_in(_entries(tensors, tmp_path))


def test_diffusers_finds_no_layer_under_the_name_of_an_added_embedding(tmp_path: Path) -> None:
    stem = "lora_unet_add_embedding_linear_1"
    tensors = {f"{stem}.{part}": value for part, value in parts_of("LoRA", (64, 64)).items()}
    assert _diffusers_layers(tensors) is None or not _diffusers_layers(tensors)
    assert "diffusers (load_lora_weights)" not in loads_in(_entries(tensors, tmp_path))


def test_old_diffusers_attention_keys_load_in_comfyui_whole(tmp_path: Path) -> None:
    parts = parts_of("LoRA", (32, 32), alpha=None)
    tensors = {
        f"{BASE}.processor.to_k_lora.down.weight": parts["lora_down.weight"],
        f"{BASE}.processor.to_k_lora.up.weight": parts["lora_up.weight"],
    }
    assert loads_in(_entries(tensors, tmp_path))["ComfyUI"] == "all"


def test_inspect_tells_a_file_for_another_stable_diffusion(tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    for width, base in ((768, "Stable Diffusion 1.x"), (2048, "SDXL"), (24, "")):
        path = tmp_path / "adapter.safetensors"
        path.write_bytes(file_of({f"{stem}.{part}": value for part, value in parts_of("LoRA", (8, width)).items()}))
        assert adapter_facts(path)["base"] == base


def test_an_incomplete_file_loads_nowhere_and_inspect_says_what_is_missing(tmp_path: Path, unet, capsys) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of({key: value for key, value in tensors_of(unet, "LoKr").items() if "lokr_w2" not in key}))
    inspect_file(path)
    told = capsys.readouterr().out
    assert "lokr_w2 missing" in told and "the file is incomplete" in told and "ComfyUI" not in told
