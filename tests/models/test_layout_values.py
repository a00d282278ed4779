"""Layouts people have, with values: what is loaded is what the file says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import original_layouts as original
import pytest
import torch
from models import hollow
from safetensors.torch import load_file, save_file

from charengine.embedded.making.family import TINY, build_transformer
from charengine.models import layouts
from charengine.models.embedders import DinoEmbedder
from charengine.models.file_parts import SDXLFiles
from charengine.models.low_rank import add_adapter, switch_adapter
from charengine.models.quantised import Packed, PackedLinear, fill, hadamard, rotate
from charengine.models.sdxl_parts import SDXLFolder

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]
LAYER = "transformer_blocks.0.attn.to_q"


def transformer_state() -> Tensors:
    torch.manual_seed(1)
    return {k: v.clone() for k, v in build_transformer(TINY).state_dict().items()}


@pytest.mark.parametrize("size", [4, 16, 256])
def test_the_rotation_is_comfyuis_symmetric_and_its_own_inverse(size: int) -> None:
    matrix = four = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    matrix = matrix / size**0.5
    assert torch.equal(hadamard(size), matrix) and torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size), rtol=0, atol=1e-6)
    weight = torch.randn(3, 2 * size)
    turned = (weight.view(3, 2, size) @ matrix).flatten(1)
    torch.testing.assert_close(rotate(weight, size), turned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0, 16])
def test_int8_weights_rotated_or_not_come_back_to_a_percent_and_stay_packed(tmp_path: Path, size: int) -> None:
    stored = transformer_state()
    weight = stored[f"{LAYER}.weight"]
    turned = rotate(weight.float(), size)
    scale = turned.abs().amax(1, keepdim=True) / 127
    note = {"format": "int8_tensorwise", "per_row": True} | (
        {"convrot": True, "convrot_groupsize": size} if size else {}
    )
    stored[f"{LAYER}.weight"] = (turned / scale).round().to(torch.int8)
    stored[f"{LAYER}.weight_scale"] = scale
    stored[f"{LAYER}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    path = original.write(tmp_path / "qwen_image_edit_2511_int8_convrot.safetensors", stored)
    model = fill(build_transformer(TINY), layouts.qwen_transformer(layouts.read_state(path)), torch.float32, str(path))
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, PackedLinear) and layer.packed.element_size() == 1
    assert ((layer.weight - weight).norm() / weight.norm()) < 0.01
    x = torch.randn(5, weight.shape[1])
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, rtol=1e-4, atol=1e-4)


def test_a_gguf_with_an_empty_marker_loads(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    state = transformer_state()
    path = tmp_path / "Qwen-Image-Edit-2511-Q8_0.gguf"
    expected = original.write_gguf(path, state | {"__index_timestep_zero__": torch.zeros(0)}, "Q8_0")
    found = layouts.read_state(path)
    assert found.keys() == state.keys()
    model = fill(build_transformer(TINY), found, torch.float32, str(path))
    torch.testing.assert_close(model.get_submodule(LAYER).weight, expected[f"{LAYER}.weight"], rtol=1e-5, atol=1e-7)


def test_a_gguf_text_encoder_and_its_vision_tower_are_the_model_they_were_made_from(
    tmp_path: Path, qwen_folder: Path
) -> None:
    pytest.importorskip("gguf")
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen_folder / "text_encoder", dtype=torch.float32)
    state = model.state_dict()
    language, vision = hollow.llama_files(original.qwen_text_encoder(state))
    original.write_gguf(tmp_path / "vl.gguf", language, "F32")
    original.write_gguf(tmp_path / "mmproj.gguf", vision, "F32")
    raw = layouts.read_state(tmp_path / "vl.gguf") | layouts.read_state(tmp_path / "mmproj.gguf")
    found = layouts.qwen_text_encoder(raw)
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name


def lora(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)


@pytest.mark.parametrize("packed", [True, False])
def test_switching_lightning_off_leaves_the_users_own_loras_on_whatever_the_layer_is(packed: bool) -> None:
    state = transformer_state()
    fp8 = (lambda _name: True) if packed else None
    model = fill(build_transformer(TINY), dict(state), torch.float32, "x", fp8=fp8)
    layer = model.get_submodule(LAYER)
    eye = torch.eye(layer.in_features)
    plain = layer(eye)
    own, more, lightning = (lora(layer.out_features, layer.in_features, seed) for seed in (1, 2, 3))
    add_adapter(model, {LAYER: own})
    add_adapter(model, {LAYER: more})
    add_adapter(model, {LAYER: lightning}, switched=True)
    mine = (own[1] @ own[0] + more[1] @ more[0]).T
    torch.testing.assert_close(layer(eye) - plain, mine + (lightning[1] @ lightning[0]).T, rtol=1e-3, atol=1e-3)
    switch_adapter(model, False)
    torch.testing.assert_close(layer(eye) - plain, mine, rtol=1e-3, atol=1e-3)
    switch_adapter(model, True)
    torch.testing.assert_close(layer(eye) - plain, mine + (lightning[1] @ lightning[0]).T, rtol=1e-3, atol=1e-3)


def sgm(folder: Path) -> Tensors:
    weights = "diffusion_pytorch_model.safetensors"
    encoders = [load_file(folder / name / "model.safetensors") for name in ("text_encoder", "text_encoder_2")]
    unet = original.sgm_unet(load_file(folder / "unet" / weights), layers=1, levels=2)
    return (
        unet | original.sgm_vae(load_file(folder / "vae" / weights), levels=4) | original.sgm_text_encoders(*encoders)
    )


def same_weights(files: SDXLFiles, folder: SDXLFolder, rtol: float = 0.0) -> None:
    for one, other in zip(
        (*files.text_encoders(), files.vae(), files.unet()),
        (*folder.text_encoders(), folder.vae(), folder.unet()),
        strict=True,
    ):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=rtol, atol=rtol)


def test_a_merge_saved_by_comfyui_loads(sdxl_folder: Path, tmp_path: Path) -> None:
    tensors = sgm(sdxl_folder) | {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.0.transformer.text_projection.weight": torch.eye(32),
        "conditioner.embedders.0.logit_scale": torch.tensor(4.6),
        "v_pred": torch.zeros(0),
    }
    file = original.write(tmp_path / "merge.safetensors", tensors)
    same_weights(
        SDXLFiles(file, sdxl_folder, None, None, CPU, torch.float32), SDXLFolder(sdxl_folder, CPU, torch.float32)
    )
    del tensors["conditioner.embedders.1.model.text_projection"]
    file = original.write(tmp_path / "without.safetensors", tensors)
    second = SDXLFiles(file, sdxl_folder, None, None, CPU, torch.float32).text_encoders()[1]
    assert torch.equal(second.text_projection.weight, torch.eye(32))


def test_a_scaled_fp8_checkpoint_is_unpacked_as_its_scales_say(sdxl_folder: Path, tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    tensors = sgm(sdxl_folder)
    weight, scale = tensors[name], tensors[name].abs().max() / 448
    tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
    tensors[name.replace(".weight", ".scale_weight")] = scale.reshape(1)
    file = original.write(tmp_path / "scaled.safetensors", tensors)
    unet = SDXLFiles(file, sdxl_folder, None, None, CPU, torch.float32).unet()
    found = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    assert ((found - weight).norm() / weight.norm()) < 0.04


def test_a_folder_of_fp16_variants_in_shards_too_loads_what_the_plain_one_does(
    sdxl_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sdxl"
    shutil.copytree(sdxl_folder, folder)
    for file in list(folder.rglob("*.safetensors")):
        save_file({key: value.half() for key, value in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    file = next((folder / "unet").glob("*.safetensors"))
    state, places = load_file(file), {}
    file.unlink()
    for number, keys in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        name = f"{number}.fp16.safetensors"
        save_file({key: state[key] for key in keys}, file.with_name(name))
        places |= dict.fromkeys(keys, name)
    (folder / "unet" / "x.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": places}))
    same_weights(
        SDXLFiles(folder, folder, None, None, CPU, torch.float32), SDXLFolder(sdxl_folder, CPU, torch.float32), 1e-3
    )


def test_dinov2_with_registers_is_loaded_with_them(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    model = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28, patch_size=14
        )
    )
    model.embeddings.register_tokens.data.normal_()
    model.half().float().save_pretrained(tmp_path, variant="fp16")
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 28}, "crop_size": 28, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8))
    embedder = DinoEmbedder(tmp_path, CPU, torch.float32, "x")
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval()(pixels).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(embedder.embed_images([picture]), expected, rtol=1e-3, atol=1e-4)


def test_joined_weights_stay_packed_where_all_are() -> None:
    from charengine.models.reading import joined

    parts = [Packed(torch.full((2, 34), i, dtype=torch.uint8), "Q8_0", (2, 32)) for i in range(3)]
    whole = joined(parts)
    assert isinstance(whole, Packed) and whole.shape == (6, 32) and whole.data.shape == (6, 34)
    assert joined([parts[0], torch.zeros(2, 32)]).shape == (4, 32)
