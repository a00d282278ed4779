"""What an adapter of each algorithm computes, and that rescaling it changes no more than its strength."""

from __future__ import annotations

import pytest
import torch
from adapter_samples import ALGORITHMS, CONV, LINEAR, WIDE, file_of, output, parts_of, spelt, tensors_of

from charengine.adapter.files import by_module, load_adapter
from charengine.adapter.keys import file_names
from charengine.adapter.network import apply_adapter
from charengine.adapter.rescaling import rescale
from charengine.errors import BadInput
from charengine.stages.sweep import adapters as sweep_adapters


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_computes_what_lycoris_own_formulas_say(unet, algorithm: str) -> None:
    from lycoris.functional import loha, lokr
    from lycoris.functional.general import rebuild_tucker, weight_decompose

    tensors = tensors_of(unet, algorithm, alpha=3.0)
    base = output(unet)
    applied = apply_adapter(unet, file_of(tensors), 1.0)
    got = output(unet)
    applied.remove()
    assert torch.equal(output(unet), base)
    for name, stem in file_names(unet).items():
        parts = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(stem + ".")}
        if not parts:
            continue
        weight = unet.get_submodule(name).weight
        get = parts.get
        if "hada_w1_a" in parts:
            names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
            change = loha.diff_weight(*map(get, names), gamma=torch.tensor(1.5)).reshape(weight.shape)
        elif "lokr_w1" in parts:
            names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
            scale = 1.0 if "lokr_w2" in parts else 1.5
            change = lokr.kron_weight(*map(get, names), scale=scale).reshape(weight.shape)
        else:
            down, up = parts["lora_down.weight"], parts["lora_up.weight"].flatten(1)
            if "lora_mid.weight" in parts:
                change = 1.5 * rebuild_tucker(parts["lora_mid.weight"], up.T, down.flatten(1))
            else:
                change = 1.5 * (up @ down.flatten(1)).reshape(weight.shape)
        merged = weight + change
        weight.copy_(weight_decompose(merged, parts["dora_scale"]) if "dora_scale" in parts else merged)
    assert torch.allclose(output(unet), got, atol=3e-5)


def test_a_dora_with_norms_by_input_is_applied_along_that_axis(unet) -> None:
    parts = parts_of("LoRA", (32, 24), alpha=2.0) | {"dora_scale": torch.rand(1, 24) + 0.5}
    stem = file_names(unet)[WIDE]
    applied = apply_adapter(unet, file_of({f"{stem}.{part}": value for part, value in parts.items()}))
    got = output(unet)
    applied.set_strength(0.5)
    half = output(unet)
    applied.remove()
    weight = unet.get_submodule(WIDE).weight
    before = weight.clone()
    sum_ = before + parts["lora_up.weight"] @ parts["lora_down.weight"]
    after = sum_ * parts["dora_scale"] / sum_.norm(dim=0, keepdim=True)
    weight.copy_(after)
    assert torch.allclose(output(unet), got, atol=1e-5)
    weight.copy_(before + 0.5 * (after - before))  # as ComfyUI and A1111 do at half strength
    assert torch.allclose(output(unet), half, atol=1e-5)


def test_peft_doras_norms_of_a_convolution_are_by_output(unet) -> None:
    norms = torch.rand(32) + 0.5
    parts = parts_of("LoRA", (32, 16, 3, 3), alpha=None)
    key = f"unet.{CONV}"
    peft = {
        f"{key}.lora_A.weight": parts["lora_down.weight"],
        f"{key}.lora_B.weight": parts["lora_up.weight"],
        f"{key}.lora_magnitude_vector.weight": norms.view(1, 32, 1, 1),
    }
    assert by_module(peft, unet)[CONV]["dora_scale"].shape == (32, 1, 1, 1)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_float8_adapter_is_applied_and_rescaled_in_float32(unet, kind: torch.dtype) -> None:
    small = {key: value.to(kind) for key, value in tensors_of(unet, alpha=1.5).items()}
    same = {key: value.float() for key, value in small.items()}
    results = []
    for tensors in (small, same):
        applied = apply_adapter(unet, rescale(file_of(tensors), 0.7))
        results.append(output(unet))
        applied.remove()
        applied = apply_adapter(unet, file_of(tensors), 0.7)
        assert torch.allclose(output(unet), results[-1], atol=2e-6)
        applied.remove()
    assert torch.equal(*results)


# --- rescaling --------------------------------------------------------------------------------------------------------


def _mixed(unet) -> dict[str, torch.Tensor]:
    """LoCon with and without alpha, LoHa without, LoKr of all splits: in one file."""
    stems = file_names(unet)
    kinds = {
        LINEAR: ("LoRA", None),
        WIDE: ("LoRA", 1.0),
        CONV: ("LoHa", None),
        "mid_block.attentions.0.proj_in": ("LoKr", 1.0),
        "mid_block.attentions.0.proj_out": ("LoKr whole", 1.0),
    }
    found = {}
    for name, (kind, alpha) in kinds.items():
        shape = tuple(unet.get_submodule(name).weight.shape)
        found |= {f"{stems[name]}.{part}": value for part, value in parts_of(kind, shape, alpha=alpha).items()}
    stem = stems["mid_block.resnets.0.time_emb_proj"]
    into, out = unet.get_submodule("mid_block.resnets.0.time_emb_proj").weight.shape[::-1]
    product = {
        "lokr_w1_a": torch.randn(4, 2),
        "lokr_w1_b": torch.randn(2, 4),
        "lokr_w2": torch.randn(out // 4, into // 4),
    }
    return found | {f"{stem}.{part}": value for part, value in (product | {"alpha": torch.tensor(1.0)}).items()}


@pytest.mark.parametrize("spelling", ["kohya", "lycoris", "diffusion_model"])
def test_every_layer_of_a_mixed_file_is_rescaled_alike(unet, spelling: str) -> None:
    tensors = _mixed(unet)
    if spelling == "lycoris":
        tensors = spelt(unet, tensors, "lycoris")
    if spelling == "diffusion_model":  # dotted names, where a missing alpha is no key that loaders know
        from charengine.adapter.keys import sgm_names

        stems = {"lora_unet_" + name.replace(".", "_"): "diffusion_model." + name for name in sgm_names(unet).values()}
        tensors = {stems[key.split(".", 1)[0]] + "." + key.split(".", 1)[1]: value for key, value in tensors.items()}
    applied = apply_adapter(unet, file_of(tensors), 0.4)
    wanted = {name: layer.merged(unet.get_submodule(name).weight, 0.4) for name, layer in applied.modules.items()}
    applied.remove()
    applied = apply_adapter(unet, rescale(file_of(tensors), 0.4))
    assert len(wanted) == 6
    for name, layer in applied.modules.items():
        weight = unet.get_submodule(name).weight
        assert torch.allclose(layer.merged(weight, 1.0), wanted[name], atol=1e-5), name
        assert not torch.allclose(wanted[name], weight, atol=1e-3), name


def test_trained_norms_are_rescaled_too_and_embeddings_are_not(unet) -> None:
    more = {
        "lora_unet_out_0.w_norm": torch.ones(16),
        "bundle_emb.x.clip_l": torch.ones(2, 8),
        "lora_te1_a.alpha": torch.tensor(4.0),
    }
    scaled = load_adapter(rescale(file_of(tensors_of(unet) | more), 0.5))[0]
    assert torch.equal(scaled["lora_unet_out_0.w_norm"], torch.full((16,), 0.5))
    assert torch.equal(scaled["bundle_emb.x.clip_l"], torch.ones(2, 8))
    assert scaled["lora_te1_a.alpha"] == 2.0


@pytest.mark.parametrize("error", [BadInput("no"), NotImplementedError("mul"), RuntimeError("x")])
def test_a_finished_sweep_is_not_lost_when_its_pick_cannot_be_rescaled(unet, monkeypatch, error: Exception) -> None:
    from run_samples import sample_cell

    def fail(data: bytes, strength: float) -> bytes:
        raise error

    monkeypatch.setattr(sweep_adapters, "rescale", fail)
    data, doubts = sweep_adapters.recommended(file_of(tensors_of(unet)), sample_cell(4, 0.5), None)
    assert len(doubts) == 1 and "use it at strength 0.5" in doubts[0]
    assert load_adapter(data)[0].keys() == tensors_of(unet).keys()
