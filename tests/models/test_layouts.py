from __future__ import annotations

from pathlib import Path

import original_layouts as original
import pytest
import torch

from charengine.embedded.making.family import TINY, build_qwen_vae, build_transformer, build_vision_language
from charengine.embedded.making.vocabulary import build_qwen_tokenizer
from charengine.errors import BadInput
from charengine.models import layouts
from charengine.models.identify import identify_path
from charengine.models.low_rank import add_adapter
from charengine.models.quantised import Packed, PackedLinear, fill, pack_fp8

Tensors = dict[str, torch.Tensor]


def assert_same(found: dict[str, object], expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        value = found[name]
        value = value.unpack() if isinstance(value, Packed) else value
        assert torch.equal(value.float(), tensor.float()), name


def transformer_state() -> Tensors:
    torch.manual_seed(1)
    return {k: v.clone() for k, v in build_transformer(TINY).state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("old", [True, False])
def test_scaled_fp8_transformers_unpack_to_weight_times_scale(tmp_path: Path, prefix: str, old: bool) -> None:
    stored, expected = original.scaled_fp8(transformer_state(), old=old, prefix=prefix)
    path = original.write(tmp_path / "qwen_image_edit_2511_fp8_scaled.safetensors", stored)
    state = layouts.qwen_transformer(layouts.read_state(path))
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        value = state[name]
        value = value.unpack() if isinstance(value, Packed) else value
        torch.testing.assert_close(value.float(), tensor, rtol=1e-6, atol=0)


def test_a_scale_reaches_weights_that_are_not_matrices_too(tmp_path: Path) -> None:
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    tensors = {"conv.weight": (kernel / 0.5).to(torch.float8_e4m3fn), "conv.scale_weight": torch.tensor([0.5])}
    state = layouts.read_state(original.write(tmp_path / "x.safetensors", tensors))
    assert torch.equal(state["conv.weight"], tensors["conv.weight"].float() * 0.5)


def test_a_plain_fp8_file_keeps_its_matrices_packed_and_every_value_exact(tmp_path: Path) -> None:
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in transformer_state().items()}
    stored["__index_timestep_zero__"] = torch.zeros(0)
    path = original.write(tmp_path / "qwen_image_edit_2511_fp8_e4m3fn.safetensors", stored)
    assert identify_path(path).note == "2511"
    state = layouts.qwen_transformer(layouts.read_state(path))
    model = fill(build_transformer(TINY), state, torch.float32, str(path))
    layer = model.transformer_blocks[0].attn.to_q
    assert isinstance(layer, PackedLinear) and layer.packed.dtype == torch.uint8
    assert torch.equal(layer.weight, stored["transformer_blocks.0.attn.to_q.weight"].float())
    assert torch.equal(model.txt_norm.weight, stored["txt_norm.weight"].float())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_gguf_transformers_unpack_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / f"Qwen-Image-Edit-2511-{kind}.gguf"
    expected = original.write_gguf(path, transformer_state(), kind)
    assert identify_path(path).layout == "gguf"
    state = layouts.read_state(path)
    assert any(isinstance(value, Packed) for value in state.values()) == kind.startswith("Q")
    for name, tensor in expected.items():
        value = state[name]
        value = value.unpack() if isinstance(value, Packed) else value
        torch.testing.assert_close(value.float(), tensor, rtol=1e-5, atol=1e-7)


def test_comfyuis_scaled_text_encoder_is_qwens_own_model(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = build_vision_language(TINY, build_qwen_tokenizer())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    stored, expected = original.scaled_fp8(original.qwen_text_encoder(state))
    path = original.write(tmp_path / "qwen_2.5_vl_7b_fp8_scaled.safetensors", stored)
    assert identify_path(path).kind == "qwen2.5-vl"
    found = layouts.qwen_text_encoder(layouts.read_state(path))
    assert found.keys() == state.keys()
    layer = "model.language_model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(
        found[layer].unpack(), expected["model.layers.0.self_attn.q_proj.weight"], rtol=1e-6, atol=0
    )
    vision = "model.visual.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(found[vision].unpack(), expected["visual.blocks.0.attn.qkv.weight"], rtol=1e-6, atol=0)


def test_the_wan_style_vae_file_gives_the_same_tensors_at_both_depths(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLQwenImage

    real = AutoencoderKLQwenImage(base_dim=4, z_dim=4, num_res_blocks=2, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    for resnets, vae in ((1, build_qwen_vae(TINY)), (2, real)):
        state = vae.state_dict()
        path = original.write(tmp_path / f"qwen_image_vae{resnets}.safetensors", original.wan_vae(state, resnets))
        assert identify_path(path).layout == "wan"
        assert_same(layouts.qwen_vae(layouts.read_state(path), resnets), dict(state))


def lora(state: Tensors, layer: str, down: str, up: str, name: str, alpha: float | None = None) -> Tensors:
    rows, columns = state[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(3)
    parts = {
        f"{name}{down}": torch.randn(2, columns, generator=generator),
        f"{name}{up}": torch.randn(rows, 2, generator=generator),
    }
    return parts if alpha is None else parts | {f"{name}.alpha": torch.tensor(alpha)}


LAYER = "transformer_blocks.1.attn.to_out.0"


@pytest.mark.parametrize(
    ("name", "down", "up", "alpha", "strength"),
    [
        (LAYER, ".lora_down.weight", ".lora_up.weight", 1.0, 0.5),
        (f"transformer.{LAYER}", ".lora_A.weight", ".lora_B.weight", None, 1.0),
        (f"diffusion_model.{LAYER}", ".lora_A.default.weight", ".lora_B.default.weight", None, 1.0),
        ("lora_unet_" + LAYER.replace(".", "_"), ".lora_down.weight", ".lora_up.weight", 2.0, 1.0),
    ],
)
def test_a_lightning_lora_adds_up_times_down_times_alpha_over_rank(
    tmp_path: Path, name, down, up, alpha, strength
) -> None:
    state = transformer_state()
    tensors = lora(state, LAYER, down, up, name, alpha)
    path = original.write(tmp_path / "Qwen-Image-Edit-Lightning-8steps.safetensors", tensors)
    delta = strength * tensors[name + up] @ tensors[name + down]
    for fp8 in (lambda _: True, None):
        model = fill(build_transformer(TINY), dict(state), torch.float32, "state", fp8=fp8)
        layer = model.get_submodule(LAYER)
        before = layer(torch.eye(layer.in_features)).T
        add_adapter(model, layouts.adapter_layers(path, dict(model.named_modules())))
        after = layer(torch.eye(layer.in_features)).T
        torch.testing.assert_close(after - before, delta, rtol=1e-4, atol=1e-4)


def test_a_state_that_does_not_fit_names_what_is_missing_and_left_over() -> None:
    state = transformer_state()
    state["banana"] = state.pop("img_in.weight")
    with pytest.raises(BadInput, match=r"1 weights are missing \(img_in.weight\); 1 are left over \(banana\)"):
        fill(build_transformer(TINY), dict(state), torch.float32, "file")


def test_rounding_to_fp8_keeps_each_row_to_four_percent() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 64)[:, None]
    error = (pack_fp8(weight).unpack() - weight).norm(dim=1) / weight.norm(dim=1)
    assert error.max() < 0.04
