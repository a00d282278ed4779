"""Files of full size in the layouts people have, their bytes holes: what is accepted, and what is refused before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import hollow
from safetensors.torch import load_file, save_file

from charengine.config import ModelSettings
from charengine.errors import BadInput
from charengine.models.classes import packaged_config
from charengine.models.fit import Configurations, check_fit
from charengine.models.identify import expect, identify_path
from charengine.models.locate import take_stock

PACKAGED = Configurations(packaged_config("qwen-image-edit"), packaged_config("sdxl"))
CONVROT = b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}'
ROTATED = b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": %s}'
FP8 = b'{"format": "float8_e4m3fn"}'

pytestmark = pytest.mark.usefixtures("bare_machine")


def fits(path: Path, kind: str) -> None:
    identity = identify_path(path)
    assert identity.kind == kind, identity
    check_fit(path, identity, PACKAGED)


def stock(folder: Path, **models: object):
    return take_stock(ModelSettings(family="sdxl", folders=(str(folder),), **models))  # type: ignore[arg-type]


# --- edit transformers -----------------------------------------------------------------------------------------------


def test_a_2511_gguf_with_its_empty_marker_fits_and_is_known_as_2511(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    shapes = hollow.transformer() | {"__index_timestep_zero__": ("F32", (0,))}
    path = hollow.write_gguf(tmp_path / "edit-Q4_K_M.gguf", shapes, "qwen_image")
    assert len(shapes) == 1934 and identify_path(path).note == "2511"
    fits(path, "qwen-image")


@pytest.mark.parametrize(
    ("dtype", "scale", "rows", "note"),
    [
        ("F8_E4M3", ".scale_weight", False, None),
        ("F8_E4M3", ".weight_scale", False, FP8),
        ("I8", ".weight_scale", True, CONVROT),
    ],
)
def test_comfyuis_packings_of_the_edit_model_fit(tmp_path: Path, dtype, scale, rows, note) -> None:
    shapes, values = hollow.scaled(hollow.transformer(), dtype, scale, rows, note)
    fits(hollow.write(tmp_path / "qwen_image_edit_2511_packed.safetensors", shapes, values), "qwen-image")


def test_packing_notes_in_the_files_metadata_are_read_too(tmp_path: Path) -> None:
    shapes, _ = hollow.scaled(hollow.transformer(), "I8", ".weight_scale", True, None)
    layers = {name.removesuffix(".weight"): json.loads(CONVROT) for name, (dtype, _) in shapes.items() if dtype == "I8"}
    notes = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    fits(hollow.write(tmp_path / "qwen_image_edit_2511.safetensors", shapes, metadata=notes), "qwen-image")


@pytest.mark.parametrize(
    ("note", "scale", "reason"),
    [
        (b'{"format": "mxfp8"}', (3072, 96), "quantised as 'mxfp8'"),
        (b'{"format": "nvfp4"}', (), "quantised as 'nvfp4'"),
        (FP8, (24, 24), "576 scales: block-wise scales"),
        (b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 96}', (3072, 1), "in groups of 96"),
        (b"{", (), "a note on how a layer is packed is damaged"),
        *[(note, (), "damaged .*has no attribute") for note in (b"[]", b"3", b"null", b'"x"')],
        *[(ROTATED % size, (), "a whole number") for size in (b'"abc"', b"null", b"1e400", b"true")],
        (ROTATED % b"16", None, "is I8 without a scale"),
        (b'{"format": "float8_e5m2"}', (), "is F8_E4M3; its note says F8_E5M2"),
    ],
)
def test_packings_that_are_not_read_are_refused_from_the_header_with_their_name(
    tmp_path: Path, note, scale, reason
) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    dtype = "I8" if b"int8" in note else "F8_E4M3"
    shapes: hollow.Shapes = hollow.transformer() | {
        f"{layer}.weight": (dtype, (3072, 3072)),
        f"{layer}.comfy_quant": ("U8", (len(note),)),
    }
    if scale is not None:
        shapes[f"{layer}.weight_scale"] = ("F32", scale)
    path = hollow.write(tmp_path / "qwen_image_edit_2511.safetensors", shapes, {f"{layer}.comfy_quant": note})
    with pytest.raises(BadInput, match=reason):
        identify_path(path)


def test_a_gguf_quantisation_that_is_not_read_is_refused_from_the_header(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = hollow.write_gguf(
        tmp_path / "qwen-image-edit-2511-IQ2_XS.gguf", hollow.transformer(), "qwen_image", "IQ2_XS"
    )
    with pytest.raises(BadInput, match=r"packed as IQ2_XS; read are F32, .*Q4_K_M or Q8_0"):
        identify_path(path)


def test_a_file_that_has_the_name_and_was_not_taken_is_named_with_the_reason(tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    shapes = hollow.transformer("F8_E4M3")
    del shapes[name]
    hollow.write(tmp_path / "diffusion_models" / "qwen_image_edit_2511_broken.safetensors", shapes)
    quant, note = f"{name.removesuffix('.weight')}.comfy_quant", b'{"format": "nvfp4"}'
    packed = hollow.transformer() | {quant: ("U8", (len(note),))}
    hollow.write(tmp_path / "diffusion_models" / "qwen_image_edit_2511_nvfp4.safetensors", packed, {quant: note})
    text = stock(tmp_path).missing["edit"].describe()
    assert "qwen_image_edit_2511_broken.safetensors does not fit" in text and f"1 weights are missing ({name})" in text
    assert "qwen_image_edit_2511_nvfp4.safetensors is quantised as 'nvfp4'" in text


def test_a_transformer_with_lightning_fused_in_is_taken_only_when_named(tmp_path: Path) -> None:
    folder = tmp_path / "diffusion_models"
    fused = hollow.write(
        folder / "qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_comfyui_4steps_v1.0.safetensors",
        hollow.transformer("F8_E4M3"),
    )
    assert "Lightning LoRA fused in" in stock(tmp_path).missing["edit"].describe()
    plain = hollow.write(folder / "qwen_image_edit_2511_fp8mixed.safetensors", hollow.transformer("F8_E4M3"))
    found = stock(tmp_path)
    assert found.path("edit") == plain and [one.path for one in found.rejected] == [fused]
    assert stock(tmp_path, edit=str(fused)).path("edit") == fused


@pytest.mark.parametrize("name", ["qwen_image_2512_edit", "qwen-image-edit-layered", "qwen_image_fp8_e4m3fn"])
def test_models_that_draw_from_text_alone_or_in_layers_are_no_edit_models(tmp_path: Path, name: str) -> None:
    extra = {"time_text_embed.addition_t_embedding.weight": ("BF16", (2, 3072))} if "layered" in name else {}
    path = hollow.write(tmp_path / "diffusion_models" / f"{name}.safetensors", hollow.transformer() | extra)
    assert "edit" in stock(tmp_path).missing
    if "edit" in name:
        with pytest.raises(BadInput, match="models.edit: .* is a Qwen-Image-"):
            expect(path, ("qwen-image",), "models.edit")


def test_the_schedule_of_single_files_is_the_published_one() -> None:
    told = json.loads((PACKAGED.qwen / "scheduler" / "scheduler_config.json").read_text())
    names = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift_terminal", "time_shift_type")
    assert [told[name] for name in names] == [0.5, 0.9, 256, 8192, 0.02, "exponential"]


# --- text encoders ---------------------------------------------------------------------------------------------------


def test_a_scaled_fp8_text_encoder_fits(tmp_path: Path) -> None:
    shapes = hollow.shapes_of(hollow.states()["vl"], "BF16")
    packed = {
        name: ("F8_E4M3" if "layers." in name and len(shape) == 2 else dtype, shape)
        for name, (dtype, shape) in shapes.items()
    }
    fits(hollow.write(tmp_path / "qwen_2.5_vl_7b_fp8_scaled.safetensors", packed), "qwen2.5-vl")


def test_the_3b_text_encoder_is_refused_from_its_header(tmp_path: Path) -> None:
    shapes = hollow.shapes_of(hollow.states()["vl"], "BF16")
    small = {
        name: (dtype, tuple(2048 if side == 3584 else side for side in shape))
        for name, (dtype, shape) in shapes.items()
    }
    path = hollow.write(tmp_path / "qwen_2.5_vl_3b.safetensors", small)
    with pytest.raises(
        BadInput, match=r"have another shape \(lm_head.weight: \(152064, 2048\), not \(152064, 3584\)\)"
    ):
        fits(path, "qwen2.5-vl")


def test_a_gguf_text_encoder_needs_its_vision_tower_and_finds_the_one_of_its_width(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    language, vision = hollow.llama_files(hollow.states()["vl"])
    path = hollow.write_gguf(
        tmp_path / "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", hollow.shapes_of(language, "F32"), "qwen2vl"
    )
    with pytest.raises(BadInput, match=r"a language model without eyes.*mmproj-\*\.gguf"):
        fits(path, "qwen2.5-vl")
    small = {
        name: torch.empty([2048 if side == 3584 else side for side in t.shape], device="meta")
        for name, t in vision.items()
    }
    hollow.write_gguf(tmp_path / "Qwen2.5-VL-3B-mmproj.gguf", hollow.shapes_of(small, "F32"), "clip", "Q8_0")
    with pytest.raises(BadInput, match="without eyes"):
        fits(path, "qwen2.5-vl")
    tower = hollow.write_gguf(tmp_path / "mmproj-F16.gguf", hollow.shapes_of(vision, "F32"), "clip", "Q8_0")
    fits(path, "qwen2.5-vl")
    assert identify_path(tower).kind == "qwen2.5-vl-vision"


# --- VAEs ------------------------------------------------------------------------------------------------------------


def test_the_qwen_vae_is_taken_and_its_relatives_beside_it_are_named(tmp_path: Path) -> None:
    right = hollow.shapes_of(hollow.states()["vae"], "BF16")
    layered = right | {
        "encoder.conv1.weight": ("BF16", (96, 4, 3, 3, 3)),
        "decoder.head.2.weight": ("BF16", (4, 96, 3, 3, 3)),
    }
    deeper = right | {"decoder.upsamples.0.upsamples.0.residual.0.gamma": ("BF16", (384, 1, 1, 1))}
    hollow.write(tmp_path / "vae" / "qwen_image_2.1_vae.safetensors", deeper)
    hollow.write(tmp_path / "vae" / "qwen_image_layered_vae.safetensors", layered)
    more = {name: (dtype, tuple({16: 48, 32: 96}.get(n, n) for n in shape)) for name, (dtype, shape) in right.items()}
    hollow.write(tmp_path / "vae" / "a_qwen_vae_of_48.safetensors", more)
    path = hollow.write(tmp_path / "vae" / "qwen_image_vae.safetensors", right)
    found = stock(tmp_path)
    assert found.path("vae") == path
    reasons = {one.path.name: one.reason for one in found.rejected}
    assert "Qwen-Image-Layered (4 image channels)" in reasons["qwen_image_layered_vae.safetensors"]
    assert "Wan 2.2 or Qwen-Image-2.1" in reasons["qwen_image_2.1_vae.safetensors"]
    assert "not (384, 16, 3, 3, 3)" in reasons["a_qwen_vae_of_48.safetensors"]


# --- SDXL ------------------------------------------------------------------------------------------------------------


def test_a_full_checkpoint_fits_and_so_does_one_that_comfyui_merged(tmp_path: Path) -> None:
    fits(hollow.write(tmp_path / "base.safetensors", hollow.sdxl()), "sdxl")
    merged = hollow.sdxl() | {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": ("I64", (1, 77)),
        "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids": ("I64", (1, 77)),
        "conditioner.embedders.0.transformer.text_projection.weight": ("F16", (768, 768)),
        "conditioner.embedders.0.logit_scale": ("F16", ()),
    }
    del merged["conditioner.embedders.1.model.text_projection"]
    fits(hollow.write(tmp_path / "merge.safetensors", merged), "sdxl")


def test_a_scaled_fp8_checkpoint_fits(tmp_path: Path) -> None:
    shapes, values = hollow.scaled(hollow.sdxl(), "F8_E4M3", ".scale_weight", False, None)
    fits(hollow.write(tmp_path / "sdxl_fp8_scaled.safetensors", shapes, values), "sdxl")


def test_a_pruned_sdxl_is_refused_from_its_header(tmp_path: Path) -> None:
    shapes = {
        name: entry
        for name, entry in hollow.sdxl().items()
        if not name.startswith("model.diffusion_model.middle_block.1.transformer")
    }
    path = hollow.write(tmp_path / "SSD-1B.safetensors", shapes)
    with pytest.raises(BadInput, match=r"does not fit UNet2DConditionModel: \d+ weights are missing"):
        fits(path, "sdxl")


@pytest.mark.parametrize(
    ("extra", "title"),
    [
        ({"edm_vpred.sigma_max": ("F32", ())}, "CosXL"),
        ({"edm_mean": ("F32", (4,)), "edm_std": ("F32", (4,))}, "Playground"),
        ({"model.diffusion_model.input_blocks.0.0.weight": ("F16", (320, 9, 3, 3))}, "inpainting"),
    ],
)
def test_checkpoints_of_another_kind_are_refused_by_their_name(tmp_path: Path, extra, title) -> None:
    path = hollow.write(tmp_path / "x.safetensors", hollow.sdxl() | extra)
    with pytest.raises(BadInput, match=rf"models.sdxl: .*{title}"):
        expect(path, ("sdxl",), "models.sdxl")


def sdxl_folder(folder: Path, variant: str = "", channels: int = 4) -> Path:
    """A diffusers folder of hollow weights, called as `variant="fp16"` is published."""
    from charengine.models import classes

    (folder / "scheduler").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    parts = {
        "unet": (classes.sdxl_unet(PACKAGED.sdxl), "diffusion_pytorch_model"),
        "vae": (classes.sdxl_vae(PACKAGED.sdxl), "diffusion_pytorch_model"),
        "text_encoder": (classes.sdxl_text_encoder(PACKAGED.sdxl, "text_encoder"), "model"),
        "text_encoder_2": (classes.sdxl_text_encoder(PACKAGED.sdxl, "text_encoder_2"), "model"),
    }
    for name, (module, stem) in parts.items():
        shapes = hollow.shapes_of(hollow.meta(module), "F16")
        config = json.loads((PACKAGED.sdxl / name / "config.json").read_text())
        if name == "unet":
            config["in_channels"] = channels
            shapes["conv_in.weight"] = ("F16", (320, channels, 3, 3))
        hollow.write(folder / name / f"{stem}{variant}.safetensors", shapes)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_that_holds_only_fp16_files_fits(tmp_path: Path) -> None:
    fits(sdxl_folder(tmp_path / "sdxl", ".fp16"), "sdxl")


def test_an_inpainting_folder_is_refused_from_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="takes 9 channels of latents: it is an inpainting or editing model"):
        fits(sdxl_folder(tmp_path / "inpaint", channels=9), "sdxl")


@pytest.mark.parametrize("dtype", ["I32", "U32", "BOOL", "XYZ"])
@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.0.out_layers.3.weight",
        "conditioner.embedders.1.model.ln_final.weight",
        "transformer_blocks.0.attn.to_q.weight",
    ],
)
def test_a_weight_that_is_no_float_is_refused_with_its_type(tmp_path: Path, name, dtype, monkeypatch) -> None:
    shapes = hollow.transformer() if name.startswith("transformer") else hollow.sdxl()
    monkeypatch.setitem(hollow.WIDTHS, dtype, 1 if dtype == "BOOL" else 4)
    path = hollow.write(tmp_path / "a.safetensors", shapes | {name: (dtype, shapes[name][1])})
    with pytest.raises(BadInput, match=rf"is stored as {dtype}; allowed are F64, F32, .*use another file"):
        check_fit(path, identify_path(path), PACKAGED)


def test_a_scorer_of_integers_is_refused_but_for_position_ids(tmp_path: Path, clip_folder: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    file = tmp_path / "clip/model.safetensors"
    tensors = load_file(file) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(tensors, file)
    fits(file.parent, "clip")
    save_file({key: value.long() for key, value in tensors.items()}, file)
    with pytest.raises(BadInput, match="is stored as I64"):
        fits(file.parent, "clip")
