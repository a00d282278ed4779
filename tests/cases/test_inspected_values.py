"""`charengine inspect` says of an adapter's values what a sweep or another program would stumble over."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from adapter_samples import BASE, LINEAR, parts_of, raw, tensors_of, tiny_unet
from adapter_samples import file_of as foreign_file

from charengine.adapter.files import by_module, check_layers, check_values, file_problems, load_adapter, save_adapter
from charengine.adapter.keys import known_stems
from charengine.adapter.network import examine_adapter
from charengine.adapter.parts import refuse_huge, scale_of
from charengine.adapter.sdxl_layers import layers_by_stem
from charengine.cli.console import say
from charengine.cli.inspection import adapter_facts, inspect_file
from charengine.config import ModelSettings
from charengine.errors import BadInput
from charengine.models.skeleton import unet_skeleton

TINY = {"charengine.recipe": '{"profile": {"models": {"family": "embedded"}}}'}  # has other layers than SDXL's
file_of = partial(foreign_file, **TINY)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)


def written(tmp_path: Path, kind: torch.dtype, key_ending: str, value: float, place: int = -1) -> Path:
    """An adapter of a float type, one value of one tensor changed."""
    tensors = {key: tensor.to(kind) for key, tensor in tensors_of(tiny_unet()).items()}
    key = next(key for key in tensors if key.endswith(key_ending))
    changed = tensors[key].float().clone().reshape(-1)
    changed[place] = value
    tensors[key] = changed.reshape(tensors[key].shape).to(kind)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of(tensors))
    return path


@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_an_adapter_of_ordinary_values_has_no_problem(tmp_path: Path, kind: torch.dtype) -> None:
    for value in (0.0, -0.0, 40.0, -40.0):
        facts = adapter_facts(written(tmp_path, kind, "lora_up.weight", value))
        assert facts["problems"] == [] and "ComfyUI" in facts["loads_in"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_values_that_are_not_finite_are_told_with_their_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: torch.dtype, value: float
) -> None:
    value = float("nan") if kind == torch.float8_e4m3fn else value  # it has no infinity
    path = written(tmp_path, kind, "lora_up.weight", value)
    facts = adapter_facts(path)
    [problem] = facts["problems"]
    assert "lora_up.weight holds values that are not finite (NaN or Inf)" in problem
    assert facts["loads_in"].startswith("nowhere as it is meant")
    inspect_file(path)
    assert f"problem: {problem}" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["lora_unet_out_0.w_norm", "lora_unet_out_0.b_norm", "lora_unet_out_2.diff_b"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor([float("nan")]), "values that are not finite"),
        (torch.ones(1, dtype=torch.int32), "int32 values; floats are needed"),
    ],
)
def test_values_that_are_handed_on_and_not_drawn_with_are_looked_at_too(
    tmp_path: Path, key: str, value: torch.Tensor, words: str
) -> None:
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of({**tensors_of(tiny_unet()), key: value}))
    assert any(f"{key} holds {words}" in problem for problem in file_problems(path))
    with pytest.raises(BadInput, match=words):
        check_values(load_adapter(path.read_bytes())[0])


def test_pefts_settings_that_cannot_be_read_are_a_problem_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(save_adapter({"unet.a.lora_A.weight": torch.ones(1, 1)}, {"lora_adapter_metadata": "{"}))
    assert "lora_adapter_metadata are no JSON" in file_problems(path)[0]


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_an_alpha_of_0_is_told_with_how_programs_read_it(tmp_path: Path, kind: torch.dtype, zero: float) -> None:
    [problem] = adapter_facts(written(tmp_path, kind, ".alpha", zero))["problems"]
    assert ".alpha is 0" in problem and "ComfyUI" in problem and "rank" in problem


@pytest.mark.parametrize("alpha", [9999999999.0, 0.0])
def test_the_alpha_that_no_program_reads_may_be_anything(tmp_path: Path, alpha: float) -> None:
    tensors = {key: value.half() for key, value in tensors_of(tiny_unet(), "LoKr whole").items()}
    tensors |= {key: torch.tensor(alpha).half() for key in tensors if key.endswith(".alpha")}
    (tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    assert adapter_facts(tmp_path / "adapter.safetensors")["problems"] == []
    check_values(tensors)


def test_a_file_without_a_tensor_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(file_of({}))
    facts = adapter_facts(tmp_path / "adapter.safetensors")
    assert [problem for problem in facts["problems"] if "the file holds nothing" in problem]
    with pytest.raises(BadInput, match="the file holds nothing"):
        check_values({})


def test_matrices_of_whole_numbers_are_told(tmp_path: Path) -> None:
    tensors = {key: value.to(torch.int32) for key, value in tensors_of(tiny_unet()).items()}
    tensors |= {key: torch.tensor(4) for key in tensors if key.endswith(".alpha")}  # whole alphas are what some write
    (tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    problems = adapter_facts(tmp_path / "adapter.safetensors")["problems"]
    assert len(problems) == 3 and all("holds int32 values; floats are needed" in problem for problem in problems)


@pytest.mark.parametrize(
    ("algorithm", "part", "shape", "told"),
    [
        ("LoRA", "lora_down.weight", (3, 32), "do not go together"),
        ("LoRA", "lora_down.weight", (0, 32), "do not go together"),
        ("LoRA", "lora_up.weight", (32,), "do not go together"),
        ("LoRA", "alpha", (3,), "do not go together"),
        ("LoRA", "alpha", (0,), "do not go together"),
        ("LoHa", "hada_w2_b", (4, 31), "do not go together"),
        ("LoKr", "lokr_w2", (4, 4), "do not go together"),
        ("LoRA", "lora_A.weight", (4, 32), "twice, in two spellings"),
    ],
)
def test_a_file_that_a_sweep_would_call_damaged_is_not_said_to_load(
    tmp_path: Path, algorithm: str, part: str, shape: tuple[int, ...], told: str
) -> None:
    tensors = tensors_of(tiny_unet(), algorithm)
    stem = next(key for key in tensors if LINEAR in key or "attn1_to_k" in key).split(".")[0]
    tensors[f"{stem}.{part}"] = torch.full(shape, 0.5)
    (tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    facts = adapter_facts(tmp_path / "adapter.safetensors")
    assert told in "; ".join(facts["problems"]) and facts["loads_in"].startswith("nowhere as it is meant")
    with pytest.raises(BadInput):
        by_module(load_adapter(file_of(tensors))[0], tiny_unet())


@pytest.mark.parametrize("kind", [kind for kind in FLOATS if kind != torch.float8_e4m3fn], ids=str)
def test_a_value_that_drowns_every_weight_is_told(tmp_path: Path, kind: torch.dtype) -> None:
    facts = adapter_facts(written(tmp_path, kind, "lora_up.weight", -20_000.0))
    assert "holds values of up to 2" in facts["problems"][0]


def test_the_layers_of_sdxl_are_known_without_it() -> None:
    unet = unet_skeleton(ModelSettings(family="sdxl"))
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    known = {stem: (name, shapes[name]) for stem, name in known_stems(unet).items() if name in shapes}
    assert layers_by_stem() == known and len(shapes) == 794


STEM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"  # 640 → 640, LINEAR in SDXL


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, ""),
        (
            {f"{BASE}.to_k.lora_A.weight": (2, 640), f"{BASE}.to_k.lora_B.weight": (640, 2)},
            "are one layer in two spellings",
        ),
        ({f"{STEM.replace('_4_', '_99_')}.alpha": ()}, "1 of its layers are none of SDXL's U-Net, e.g. "),
        ({f"{STEM[:-1]}z.alpha": ()}, "1 of its layers are none of SDXL's U-Net, e.g. "),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": ()}, ""),
        ({f"{STEM}.lora_down.weight": (2, 320)}, "the model's layer is (640, 640) (not the layer's)"),
        ({f"{STEM}.lora_down.weight": (3, 640)}, "different ranks"),
        ({f"{STEM}.lokr_w1": (4, 4)}, "LoRA and LoKr at once"),
        ({f"{STEM}.alpha": (1,)}, ""),
        ({f"{STEM}.alpha": 1e30}, "changes weights by up to "),
        ({f"{STEM}.dora_scale": (640, 1)}, ""),
        ({f"{STEM}.dora_scale": (1, 640)}, ""),
        ({f"{STEM}.dora_scale": (641, 1)}, "(dora_scale is "),
        ({f"{STEM}.dora_scale": (1, 320)}, "(dora_scale is "),
        ({f"{STEM}.dora_scale": ()}, "(dora_scale is "),
        ({f"{STEM}.dora_scale": (2, 320)}, "(dora_scale is "),
    ],
)
def test_a_foreign_file_that_is_none_for_sdxl_is_told_with_the_layer(
    tmp_path: Path, more: dict[str, tuple[int, ...] | float], told: str
) -> None:
    tensors = {f"{STEM}.{part}": value for part, value in parts_of("LoRA", (640, 640)).items()}
    tensors |= {key: torch.full(x, 0.5) if isinstance(x, tuple) else torch.tensor(x) for key, x in more.items()}
    (tmp_path / "adapter.safetensors").write_bytes(foreign_file(tensors))
    problems = "; ".join(adapter_facts(tmp_path / "adapter.safetensors")["problems"])
    assert told in problems and bool(problems) == bool(told) and STEM[:20] in problems + STEM


def test_a_norm_of_one_axis_is_read_as_one_a_row() -> None:
    parts = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(4, 2), "dora_scale": torch.ones(4)}
    refuse_huge("layer", parts)
    with pytest.raises(BadInput, match="up to 1e"):
        refuse_huge("layer", {**parts, "dora_scale": torch.full((4,), 1e9)})


def test_what_a_terminal_would_obey_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2Jb\tc\nd")
    assert capsys.readouterr().out == "a\\x1b[2Jb\tc\nd\n"


@pytest.mark.parametrize("kind", ["F8_E8M0", "F4", "NEW"])
def test_element_types_that_are_not_read_are_told_with_those_that_are(tmp_path: Path, kind: str) -> None:
    shape, size = ([4, 4], 8) if kind == "F4" else ([4, 4], 16)
    entry = {"dtype": kind, "shape": shape, "data_offsets": [0, size]}
    (path := tmp_path / "a.safetensors").write_bytes(data := raw({f"{BASE}.to_k.lora_down.weight": entry}, bytes(size)))
    [problem] = adapter_facts(path)["problems"]
    assert f"type '{kind}', which is not read; allowed are F64, F32, F16, BF16" in problem and "save it anew" in problem
    with pytest.raises(BadInput, match=f"type '{kind}', which is not read"):
        load_adapter(data)


@pytest.mark.parametrize("key", ["lora_up.weight", "alpha"])
def test_a_value_that_only_float64_can_hold_is_told_as_huge_not_as_infinite(tmp_path: Path, key: str) -> None:
    tensors = {name: value.double() for name, value in tensors_of(tiny_unet()).items()}
    changed = next(name for name in tensors if name.endswith(key))
    tensors[changed] = torch.full_like(tensors[changed], 1e300)
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    [problem] = file_problems(path)
    assert "holds values of up to 1e+300; allowed is at most 10000" in problem


def test_a_shape_of_hundreds_of_axes_is_told_short() -> None:
    tensors = {f"{BASE}.to_k.lora_down.weight": torch.ones(2, 32), f"{BASE}.to_k.lora_up.weight": torch.ones(*[1] * 60)}
    with pytest.raises(BadInput) as refused:
        by_module(tensors, tiny_unet())
    assert "(1, 1, 1, 1, 1, 1, … of 60 axes)" in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("oft_diag", torch.ones(4, 4, 4), "OFT: 1 tensors"),
        ("diff", torch.ones(32, 32), "whole differences of weights (.diff): 1 tensors"),
        ("on_input", torch.ones(1), "IA3: 1 tensors"),
        ("scalar", torch.ones(()), "parts that are not known here: 1 tensors"),
    ],
)
def test_inspect_says_what_a_sweep_will_refuse_and_where_the_file_loads_all_the_same(
    tmp_path: Path, part: str, value: torch.Tensor, told: str
) -> None:
    layer = {f"{BASE}.to_k.{name}": one for name, one in parts_of("LoRA", (32, 32)).items()}
    tensors = {**layer, f"{BASE}.{'to_k' if part == 'scalar' else 'to_q'}.{part}": value}
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    facts = adapter_facts(path)
    [doubt] = facts["doubts"]
    assert facts["problems"] == [] and doubt.startswith("a sweep refuses it: ") and told in doubt
    with pytest.raises(BadInput) as refused:
        by_module(tensors, tiny_unet())
    assert doubt.removeprefix("a sweep refuses it: ") == str(refused.value)


def test_inspect_says_that_a_sweep_refuses_zeros(tmp_path: Path) -> None:
    tensors = {key: value * ("up" not in key) for key, value in tensors_of(tiny_unet()).items()}
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    [doubt] = adapter_facts(path)["doubts"]
    assert doubt.startswith("a sweep refuses it: all ") and "change nothing" in doubt
    with pytest.raises(BadInput, match="change nothing"):
        check_layers(path.read_bytes(), tiny_unet())


def test_trained_norms_are_no_doubt_of_inspects(tmp_path: Path) -> None:
    norms = {"lora_unet_input_blocks_1_0_in_layers_0.diff": torch.ones(16), "lora_unet_out_0.w_norm": torch.ones(16)}
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of({**tensors_of(tiny_unet()), **norms}))
    assert adapter_facts(path)["doubts"] == []


def test_an_alpha_below_0_keeps_its_sign_and_is_said_by_inspect_and_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(tiny_unet(), layers=(LINEAR,), alpha=-2.0)
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    inspect_file(path)
    assert "note: 1 alphas of the adapter are negative" in capsys.readouterr().out
    assert "1 alphas of the adapter are negative" in examine_adapter(tiny_unet(), path.read_bytes())[0]
    [parts] = by_module(tensors, tiny_unet()).values()
    assert scale_of(parts) == -1
    whole = tensors_of(tiny_unet(), "LoKr whole", layers=(LINEAR,), alpha=-2.0)  # whose alpha nobody reads
    assert examine_adapter(tiny_unet(), file_of(whole)) == ()
