"""Adapters: their names in files, what they compute, and every convention they are read in."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from benchmarks.random_sdxl import SDXL, TINY
from charengine.adapter.files import by_module
from charengine.adapter.header import read_metadata
from charengine.adapter.keys import file_names, sgm_names
from charengine.adapter.network import apply_adapter, inject, load_adapter, rescale, save_adapter
from charengine.config import TrainSettings
from charengine.errors import BadInput, ConfigError, UnsafeFile

ALGORITHMS = ("locon", "lora", "loha", "lokr", "dora", "tlora")


def make_unet(config, device="cpu", dtype=torch.float32):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(config)
    return unet.requires_grad_(False).eval() if device == "meta" else unet.to(dtype).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def sdxl():
    return make_unet(SDXL, "meta")


@pytest.fixture
def unet():
    return make_unet(TINY)


def settings(algorithm="locon", **changes):
    return TrainSettings(**({"algorithm": algorithm, "rank": 4, "alpha": 2, "conv_rank": 2, "conv_alpha": 1} | changes))


def run(unet, seed=1):
    """The U-Net's output on fixed inputs."""
    generator = torch.Generator().manual_seed(seed)
    kind = unet.conv_in.weight.dtype

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(kind)

    pooled = TINY["projection_class_embeddings_input_dim"] - 6 * TINY["addition_time_embed_dim"]
    conditions = {"text_embeds": draw(2, pooled), "time_ids": torch.ones(2, 6)}
    text = draw(2, 8, TINY["cross_attention_dim"])
    return unet(draw(2, 4, 16, 8), torch.tensor([10, 500]), text, added_cond_kwargs=conditions).sample


def trained(unet, algorithm="locon", **changes):
    """An adapter with values a training could have reached."""
    adapter = inject(unet, settings(algorithm, **changes), seed=1)
    generator = torch.Generator().manual_seed(7)
    for parameter in adapter.parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapter.train(False)
    return adapter


# ---------------------------------------------------------------------------------------- names


def test_every_layer_of_a_full_size_unet_has_the_name_it_has_in_the_original_checkpoint(sdxl):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = sgm_names(sdxl)
    parts = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    checkpoint = {
        f"model.diffusion_model.{names[part.rpartition('.')[0]]}.{part.rpartition('.')[2]}": part for part in parts
    }
    assert convert_ldm_unet_checkpoint(checkpoint, dict(sdxl.config)) == {part: part for part in parts}
    weighted = [name for name, module in sdxl.named_modules() if getattr(module, "weight", None) is not None]
    assert sorted(names) == sorted(weighted)


def test_a_full_size_locon_adapts_the_788_layers_kohya_does_in_92_7_million_parameters(sdxl):
    adapter = inject(sdxl, settings(rank=32, conv_rank=16), seed=0)
    parameters = adapter.parameters()
    assert len(adapter.modules) == 788
    assert len(parameters) == 1576
    assert round(sum(parameter.numel() for parameter in parameters.values()) / 1e6, 1) == 92.7
    stems = {key.split(".")[0] for key in parameters}
    assert {
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_middle_block_1_proj_in",
        "lora_unet_middle_block_2_emb_layers_1",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_8_0_out_layers_3",
    } <= stems
    assert not any("conv_in" in stem or "time_embed" in stem or "input_blocks_0_0" in stem for stem in stems)


def test_a_full_size_file_loads_key_by_key_in_diffusers_comfyui_and_a1111(sdxl):
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft

    adapter = inject(sdxl, settings(rank=1, conv_rank=1), seed=0)
    tensors = {key: torch.zeros(parameter.shape) for key, parameter in adapter.parameters().items()}
    tensors |= {f"{adapter.stems[name]}.alpha": torch.tensor(1.0) for name in adapter.modules}
    # ComfyUI (comfy/lora.py) and A1111 (Lora/networks.py) look layers up by checkpoint name with "_" for ".".
    layers = {"lora_unet_" + name.replace(".", "_") for name in sgm_names(sdxl).values()}
    assert {key.split(".", 1)[0] for key in tensors} <= layers
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    converted, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=sdxl.config)
    unet_keys = {key.removeprefix("unet."): value for key, value in converted.items()}
    found = {key.rsplit(".lora_", 1)[0] for key in convert_unet_state_dict_to_peft(unet_keys)}
    assert found == set(adapter.modules)
    assert len(alphas) == 788


def test_diffusers_computes_the_same_with_the_exported_file(unet):
    from diffusers import StableDiffusionXLPipeline

    adapter = trained(unet)
    with torch.no_grad():
        ours = run(unet)
    tensors = adapter.state_dict()
    adapter.remove()
    converted, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=unet.config)
    StableDiffusionXLPipeline.load_lora_into_unet(converted, network_alphas=alphas, unet=unet)
    with torch.no_grad():
        assert torch.allclose(run(unet), ours, atol=2e-6)


# ---------------------------------------------------------------------------------------- what they compute


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_adapter_starts_as_the_base_and_leaves_it_behind_bit_for_bit(unet, algorithm):
    with torch.no_grad():
        base = run(unet)
        adapter = inject(unet, settings(algorithm))
        assert torch.allclose(run(unet), base, atol=2e-6)
        for parameter in adapter.parameters().values():
            parameter.data.add_(0.02)
        assert not torch.allclose(run(unet), base, atol=1e-4)
        adapter.set_strength(0.0)
        assert torch.equal(run(unet), base)
        adapter.remove()
        assert torch.equal(run(unet), base)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_file_applied_at_a_strength_is_the_adapter(unet, algorithm):
    adapter = trained(unet, algorithm)
    with torch.no_grad():
        whole = run(unet)
        data = save_adapter(adapter.state_dict(), {})
        adapter.remove()
        applied = apply_adapter(unet, data, 1.0)
        assert torch.allclose(run(unet), whole, atol=2e-6)
        applied.set_strength(0.5)
        assert not torch.allclose(run(unet), whole, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["locon", "lora", "loha", "lokr", "tlora"])
def test_a_rescaled_file_at_strength_one_is_the_old_one_at_the_pick(unet, algorithm):
    adapter = trained(unet, algorithm)
    data = save_adapter(adapter.state_dict(), {"ss_network_dim": "4"})
    adapter.set_strength(0.6)
    with torch.no_grad():
        picked = run(unet)
        adapter.remove()
        apply_adapter(unet, rescale(data, 0.6), 1.0)
        assert torch.allclose(run(unet), picked, atol=2e-6)
    assert load_adapter(rescale(data, 0.6))[1]["charengine.strength"] == "0.6"


def test_a_dora_is_not_rescaled_but_refused(unet):
    data = save_adapter(trained(unet, "dora").state_dict(), {})
    assert load_adapter(rescale(data, 1.0))[0].keys() == load_adapter(data)[0].keys()
    with pytest.raises(BadInput, match="DoRA adapter cannot be rescaled to strength 0.7"):
        rescale(data, 0.7)


def test_the_seed_alone_decides_the_first_values(unet):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = inject(unet, settings(), seed=3)
    values = first.state_dict()
    first.remove()
    torch.manual_seed(99)
    second = inject(unet, settings(), seed=3)
    assert all(torch.equal(values[key], value) for key, value in second.state_dict().items())
    second.remove()
    other = inject(unet, settings(), seed=4).state_dict()
    assert any(not torch.equal(values[key], value) for key, value in other.items())
    assert before is not None


def test_no_garbage_is_looked_for_layer_by_layer(unet, monkeypatch):
    from lycoris.modules import tlora

    looked = []
    monkeypatch.setattr(gc, "collect", lambda: looked.append("full"))
    inject(unet, settings("tlora"))
    assert looked == [] and tlora.gc is gc


@pytest.mark.parametrize("dropped", [False, True])
def test_forward_and_gradients_are_those_of_lycoris_own_modules(dropped):
    unet = make_unet(TINY, dtype=torch.float64)
    adapter = trained(unet)
    for parameter in adapter.parameters().values():
        parameter.data = parameter.data.double()
    if dropped:
        adapter.train()
        masks = adapter.attach_dropout()
        masks.copy_(torch.arange(len(masks)) % 3 != 0)
    run(unet).square().mean().backward()
    ours = {key: parameter.grad.clone() for key, parameter in adapter.parameters().items()}
    for parameter in adapter.parameters().values():
        parameter.grad = None
    for name, module in adapter.modules.items():
        if dropped:  # the same components dropped by hand, in the up matrix
            shape = (1, -1, *[1] * (module.lora_up.weight.dim() - 2))
            module.mask_hook = module.lora_up.weight.register_hook(
                lambda grad, mask=module.rank_mask.double().view(shape): grad * mask
            )
            module.lora_up.weight.data.mul_(module.rank_mask.double().view(shape))
        unet.get_submodule(name).forward = module.forward
    run(unet).square().mean().backward()
    for key, parameter in adapter.parameters().items():
        assert torch.allclose(ours[key], parameter.grad, atol=1e-14), key


def test_a_rank_larger_than_the_narrowest_layer_is_refused_by_name(unet):
    with pytest.raises(ConfigError, match=r"train.rank=64 is larger than the U-Net's narrowest layer \(32\)"):
        inject(unet, settings(rank=64))


# ---------------------------------------------------------------------------------------- files


def test_the_same_adapter_makes_the_same_bytes(unet):
    tensors = trained(unet).state_dict()
    metadata = {f"ss_{i}": str(i) for i in range(30)}
    shuffled = dict(sorted(tensors.items(), key=lambda item: item[1].numel()))
    assert save_adapter(tensors, metadata) == save_adapter(shuffled, dict(reversed(metadata.items())))
    assert load_adapter(save_adapter(tensors, metadata))[1] == metadata


def _spelt(unet, tensors, convention):
    """Our file in another program's convention."""
    names = {stem: name for name, stem in file_names(unet).items()}
    parts = {"peft": ("lora_A.weight", "lora_B.weight"), "diffusers": ("lora.down.weight", "lora.up.weight")}.get(
        convention, ("lora_down.weight", "lora_up.weight")
    )
    prefix = {"peft": "unet.", "diffusers": "unet.", "kohya-diffusers": "lora_unet_", "lycoris": "lycoris_"}[convention]
    spelt = {}
    for key, value in tensors.items():
        stem, part = key.split(".", 1)
        name = names[stem] if prefix == "unet." else names[stem].replace(".", "_")
        if prefix == "unet." and part == "alpha":
            continue
        if prefix == "unet." and part == "lora_up.weight":  # these have no alpha: it is 1 × rank
            value = value * float(tensors[f"{stem}.alpha"]) / tensors[f"{stem}.lora_down.weight"].shape[0]
        spelt[prefix + name + "." + {"lora_down.weight": parts[0], "lora_up.weight": parts[1]}.get(part, part)] = value
    return spelt


@pytest.mark.parametrize("convention", ["peft", "diffusers", "kohya-diffusers", "lycoris"])
def test_every_convention_of_an_adapter_file_computes_the_same(unet, convention):
    adapter = trained(unet)
    with torch.no_grad():
        wanted = run(unet)
        tensors = adapter.state_dict()
        adapter.remove()
        foreign = save_adapter(_spelt(unet, tensors, convention), {})
        applied = apply_adapter(unet, foreign, 1.0)
        assert torch.allclose(run(unet), wanted, atol=2e-6)
        applied.set_strength(0.5)
        half = run(unet)
        applied.remove()
        apply_adapter(unet, rescale(foreign, 0.5), 1.0)
        assert torch.allclose(run(unet), half, atol=2e-6)


def test_an_adapter_for_stable_diffusion_1_is_refused_with_the_reason(sdxl):
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.zeros(4, 768), f"{stem}.lora_up.weight": torch.zeros(640, 4)}
    with pytest.raises(BadInput, match=r"made for Stable Diffusion 1\.x .*width 768.* 2048"):
        by_module(tensors, sdxl)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_transformer_single_blocks_0.lora_down.weight": torch.zeros(1, 1)}, "belong to no layer of this SDXL"),
        ({}, "holds no U-Net adapter"),
        ({"lora_unet_middle_block_1_proj_in.lora_down.weight": torch.zeros(2, 64)}, "only one of the two matrices"),
    ],
)
def test_files_that_are_no_adapter_for_this_unet_are_refused(unet, tensors, words):
    with pytest.raises(BadInput, match=words):
        by_module(tensors, unet)


def test_pickles_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "adapter.pt"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UnsafeFile, match="can run code"):
        read_metadata(path)
    with pytest.raises(UnsafeFile, match="not a safetensors file"):
        load_adapter(path.read_bytes())
    with pytest.raises(BadInput, match="does not exist"):
        read_metadata(tmp_path / "nothing.safetensors")


def test_going_on_from_a_higher_rank_names_the_setting(unet):
    adapter = trained(unet)
    tensors = adapter.state_dict()
    adapter.remove()
    with pytest.raises(BadInput, match="set train.rank=4"):
        inject(unet, settings(rank=2)).load(tensors)


def test_going_on_from_a_locon_as_a_lora_names_the_setting(unet):
    adapter = trained(unet)
    tensors = adapter.state_dict()
    adapter.remove()
    with pytest.raises(BadInput, match="18 layers these settings do not train"):
        inject(unet, settings("lora")).load(tensors)


PEFT_SETTINGS = [
    {"r": 4, "lora_alpha": 32},
    {"r": 4, "lora_alpha": 8, "use_rslora": True},
    {"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 16, "mid_block.attentions.0.proj_in": 2}},
]


@pytest.mark.parametrize("told", PEFT_SETTINGS)
def test_what_pefts_settings_in_the_metadata_say_of_the_scale_is_what_diffusers_makes_of_it(unet, told, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    adapter = trained(unet)
    file = tmp_path / "told.safetensors"
    tensors = _spelt(unet, adapter.state_dict(), "peft")
    adapter.remove()
    plain = {"lora_bias": False, "target_modules": sorted({key.split(".", 1)[1].split(".lora_")[0] for key in tensors})}
    ranks = {key.split(".", 1)[1].split(".lora_")[0]: len(value) for key, value in tensors.items() if "lora_A" in key}
    settings_of = told | plain | {"rank_pattern": {name: rank for name, rank in ranks.items() if rank != told["r"]}}
    note = json.dumps({f"unet.{key}": value for key, value in settings_of.items()})
    file.write_bytes(save_adapter(tensors, {"lora_adapter_metadata": note, "ss_steps": "4"}))

    found, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        file, unet_config=unet.config, return_lora_metadata=True
    )
    StableDiffusionXLPipeline.load_lora_into_unet(found, network_alphas=alphas, unet=unet, metadata=metadata)
    with torch.no_grad():
        wanted = run(unet)
        unet.unload_lora()
        applied = apply_adapter(unet, file.read_bytes(), 1.0)
        assert torch.allclose(run(unet), wanted, atol=2e-6)
        applied.set_strength(0.5)
        half = run(unet)
        applied.remove()
        base = run(unet)
        rescaled = rescale(file.read_bytes(), 0.5)
        assert "lora_adapter_metadata" not in load_adapter(rescaled)[1] and load_adapter(rescaled)[1]["ss_steps"] == "4"
        apply_adapter(unet, rescaled, 1.0)
        assert torch.allclose(run(unet), half, atol=2e-6) and not torch.allclose(half, base, atol=1e-4)


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ("{", "are no JSON"),
        ("[1]", "no settings by name"),
        ('{"unet.lora_alpha": 0}', "the alpha 0; a number above 0"),
        ('{"unet.lora_alpha": "8"}', "the alpha '8'"),
        ('{"unet.lora_alpha": NaN}', "the alpha nan"),
    ],
)
def test_pefts_settings_that_cannot_be_read_are_refused_by_name(note, words):
    tensors = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(4, 8)}
    tensors["unet.mid_block.attentions.0.proj_in.lora_B.weight"] = torch.ones(8, 4)
    with pytest.raises(BadInput, match=words):
        load_adapter(save_adapter(tensors, {"lora_adapter_metadata": note}))
