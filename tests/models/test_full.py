"""The whole production path on tiny random models in the layouts people have, found in a ComfyUI folder."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import original_layouts as original
import pytest
import torch
from comfyui_samples import WEIGHTS, draw, profile, template, without_loras
from safetensors.torch import load_file, save_file

from charengine.config import SheetSettings
from charengine.errors import BadInput, ConfigError, MissingDependency, OutOfBudget, UnsafeFile
from charengine.models import load, locate, qwen_edit, survey
from charengine.models.file_parts import QwenFiles, SDXLFiles
from charengine.models.memory import MemoryPlan, Part, Placement
from charengine.models.qwen_edit import QwenEdit
from charengine.models.qwen_parts import QwenEditFolder
from charengine.models.sdxl import SDXL
from charengine.models.sdxl_parts import SDXLFolder
from charengine.services.doctor import examine

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("bare_machine")


def test_a_comfyui_folder_is_all_it_takes_to_draw_caption_sample_and_score(comfyui: Path) -> None:
    family = load(profile(comfyui))
    sheet = draw(family.editor)
    assert sheet.shape == (96, 96, 3) and sheet.std() > 1
    assert np.array_equal(draw(family.editor), sheet)
    assert family.captioner.describe(template(), "orc").raw is not None
    family.editor.unload()
    text = family.diffusion.encode_prompts(["an orc", ""])
    rows = [type(text)(text.embeds[i : i + 1], text.pooled[i : i + 1]) for i in (0, 1)]
    images = family.diffusion.sample(*rows, seeds=[5], size=(64, 64), steps=2, guidance=3.0)
    assert family.embedder.embed_images(images).shape[0] == 1
    assert -1 <= float(family.embedder.match(images, ["an orc"])[0]) <= 1


def test_short_drawings_use_the_lightning_lora_and_long_ones_do_not(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen_edit, "LIGHTNING_STEPS", 1)
    with_lora = load(profile(comfyui)).editor
    without = load(profile(without_loras(comfyui, tmp_path))).editor
    assert with_lora.lightning is not None and without.lightning is None
    long_before, short = draw(with_lora), draw(with_lora, steps=1)
    assert np.array_equal(draw(without), long_before)
    assert not np.array_equal(draw(without, steps=1, guidance=1.0), short)
    assert np.array_equal(draw(with_lora), long_before)


def reference(qwen_folder: Path, tmp_path: Path, expected: Tensors) -> QwenEdit:
    """The stock loader on a diffusers folder whose transformer holds the unpacked weights."""
    folder = tmp_path / "reference"
    shutil.copytree(qwen_folder, folder)
    save_file({key: value.float().contiguous() for key, value in expected.items()}, folder / "transformer" / WEIGHTS)
    return QwenEdit(QwenEditFolder(folder, CPU, torch.float32), CPU, "reference")


def write_bare(path: Path, state: Tensors) -> Tensors:
    original.write(path.with_suffix(".safetensors"), state)
    return state


def write_scaled(path: Path, state: Tensors) -> Tensors:
    stored, expected = original.scaled_fp8(state, old=False, prefix="model.diffusion_model.")
    original.write(path.with_suffix(".safetensors"), stored)
    return expected


def write_quants(path: Path, state: Tensors) -> Tensors:
    pytest.importorskip("gguf")
    return original.write_gguf(path.with_suffix(".gguf"), state, "Q8_0")


@pytest.mark.parametrize(("writer", "resident"), [(write_bare, 2), (write_scaled, 1), (write_quants, 0)])
def test_every_layout_draws_what_its_weights_say_streamed_or_not(
    qwen_folder: Path, tmp_path: Path, writer: Callable[[Path, Tensors], Tensors], resident: int
) -> None:
    expected = writer(tmp_path / "qwen_image_edit_2509", load_file(qwen_folder / "transformer" / WEIGHTS))
    file = next(path for path in tmp_path.iterdir() if path.is_file())
    part = Part("x", 2, 0, 0, 0)
    plan = MemoryPlan(12, Placement(part, resident), Placement(part, resident), tile_vae=False)
    parts = QwenFiles(
        file,
        qwen_folder / "text_encoder",
        qwen_folder / "vae",
        qwen_folder,
        qwen_folder / "tokenizer",
        CPU,
        torch.float32,
        plan,
    )
    drawn = draw(QwenEdit(parts, CPU, "files"))
    assert np.abs(drawn - draw(reference(qwen_folder, tmp_path, expected))).max() <= 1


def test_a_single_sdxl_file_samples_the_same_pictures_as_its_folder(
    comfyui: Path, sdxl_folder: Path, monkeypatch
) -> None:
    file = comfyui / "checkpoints" / "sd_xl_base_1.0.safetensors"
    config, tokenizer = comfyui.parent / "configs" / "sdxl", comfyui.parent / "comfy" / "sd1_tokenizer"
    files, folder = (
        SDXLFiles(file, config, tokenizer, None, CPU, torch.float32),
        SDXLFolder(sdxl_folder, CPU, torch.float32),
    )
    assert [part.pad_token for part in files.tokenizers()] == ["<|endoftext|>", "!"]
    monkeypatch.setattr(folder, "tokenizers", files.tokenizers)
    from_file, from_folder = ((*parts.text_encoders(), parts.vae(), parts.unet()) for parts in (files, folder))
    for one, other in zip(from_file, from_folder, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    pictures = []
    for parts in (files, folder):
        model = SDXL(parts, CPU, torch.float32, 64 * 64, "x")
        text, nothing = model.encode_prompts(["an orc"]), model.encode_prompts([""])
        drawn = model.sample(text, nothing, seeds=[3], size=(64, 64), steps=2, guidance=3.0)[0]
        pictures.append(np.asarray(drawn).astype(int))
    # Equal weights at differently aligned addresses of their files may round the last bit of a sum apart.
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_everything_missing_is_told_at_once_with_size_licence_and_source(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency) as caught:
        load(profile(tmp_path, edit_config="", sdxl_config=""))
    text = str(caught.value)
    for words in (
        "models.edit:",
        "20.4 GB",
        "diffusion_models, or: hf download Qwen/Qwen-Image-Edit-2511",
        "Apache-2.0",
        "models.vl:",
        "models.vae:",
        "models.sdxl:",
        "RAIL",
        "models.clip:",
        "tokenizer",
    ):
        assert words in text
    assert "Lightning" not in text and "dino" not in text.lower()


def test_a_folder_that_is_not_there_is_told_before_what_may_lie_in_it_by_doctor_alike(tmp_path: Path) -> None:
    chosen = profile(tmp_path, edit_config="", sdxl_config="", folders=(str(tmp_path / "ComfyIU"),))
    with pytest.raises(MissingDependency) as caught:
        load(chosen)
    first, *lines = str(caught.value).splitlines()
    assert first == f"models.folders: {tmp_path}/ComfyIU does not exist" and lines
    assert first in examine(chosen).problems


def test_a_hub_id_without_leave_to_download_names_size_licence_and_cure(comfyui: Path) -> None:
    with pytest.raises(
        MissingDependency, match=r"downloads are off; 6.9 GB, CreativeML.*allow_downloads: true, or: hf download"
    ):
        load(profile(comfyui, sdxl="stabilityai/stable-diffusion-xl-base-1.0"))


def test_a_gated_hub_id_offline_is_a_missing_dependency(comfyui: Path) -> None:
    with pytest.raises(MissingDependency, match="could not be downloaded.*gated"):
        load(profile(comfyui, sdxl="black-forest-labs/some-gated-model", allow_downloads=True))


def test_files_in_the_hugging_face_cache_are_found_by_hub_id(
    comfyui: Path, sdxl_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    snapshot = tmp_path / "hub" / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / "abc"
    shutil.copytree(sdxl_folder, snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    stock = locate.take_stock(profile(comfyui, sdxl="stabilityai/stable-diffusion-xl-base-1.0").models)
    assert (stock.found["sdxl"].path, stock.found["sdxl"].origin) == (snapshot, "Hugging Face cache")


def test_the_newest_transformer_wins_and_several_fine_tunes_are_the_users_choice(comfyui: Path, tmp_path: Path) -> None:
    files = without_loras(comfyui, tmp_path)
    shutil.copy(
        files / "diffusion_models" / "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
        files / "diffusion_models" / "qwen_image_edit_2511_fp8.safetensors",
    )
    stock = locate.take_stock(profile(files).models)
    assert stock.found["edit"].path.name == "qwen_image_edit_2511_fp8.safetensors"
    checkpoints = files / "checkpoints"
    shutil.copy(checkpoints / "sd_xl_base_1.0.safetensors", checkpoints / "animagine.safetensors")
    (checkpoints / "sd_xl_base_1.0.safetensors").rename(checkpoints / "juggernaut.safetensors")
    with pytest.raises(
        MissingDependency, match=r"2 SDXL checkpoints were found; set models.sdxl to one of: .*animagine"
    ):
        load(profile(files))


def test_wrong_files_are_refused_together_before_anything_is_loaded(comfyui: Path, tmp_path: Path) -> None:
    old = tmp_path / "v1-5.safetensors"
    save_file(
        {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
            "cond_stage_model.transformer.text_model.x": torch.zeros(1),
        },
        old,
    )
    lora = next((comfyui / "loras").iterdir())
    with pytest.raises(ConfigError) as caught:
        load(profile(comfyui, sdxl=str(old), edit=str(lora)))
    assert len(caught.value.problems) == 2
    assert "models.edit" in str(caught.value) and "Qwen-Image LoRA" in str(caught.value)
    assert "Stable Diffusion 1.x checkpoint; models.sdxl needs an SDXL checkpoint" in str(caught.value)


def test_a_pickle_named_in_the_profile_is_unsafe(comfyui: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises((UnsafeFile, BadInput), match="can run code"):
        load(profile(comfyui, sdxl=str(tmp_path / "model.ckpt")))


def test_a_misspelt_path_says_where_a_file_of_that_name_is(comfyui: Path) -> None:
    with pytest.raises(BadInput, match=r"neither a file nor a folder.*a file of that name is at .*checkpoints"):
        load(profile(comfyui, sdxl="/wrong/sd_xl_base_1.0.safetensors"))


def test_a_file_that_does_not_fit_its_configuration_says_which_weight_before_anything_is_loaded(comfyui: Path) -> None:
    file = comfyui / "text_encoders" / "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    reason = r"qwen_2.5_vl_7b_fp8_scaled.safetensors does not fit Qwen2_5_VLForConditionalGeneration: \d+ weights are missing"
    with pytest.raises(BadInput, match=reason):
        load(profile(comfyui, edit_config="", vl=str(file)))
    with pytest.raises(MissingDependency, match=f"models.vl: no Qwen2.5-VL 7B.*not taken: .*{reason}") as caught:
        load(profile(comfyui, edit_config=""))
    assert "\n".join(examine(profile(comfyui, edit_config="")).missing) == str(caught.value)


def test_a_budget_too_small_is_refused_with_the_smallest_that_would_do(comfyui: Path) -> None:
    small = profile(comfyui).model_copy(update={"budget_gib": 0.6, "sheet": SheetSettings(width=2048, height=2048)})
    with pytest.raises(OutOfBudget, match="budget is 0.6 GiB") as caught:
        load(small)
    assert caught.value.smallest_gib and caught.value.smallest_gib > 1


def test_too_little_host_memory_for_what_is_streamed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("transformer", 60, 340_000_000, 0, 0)
    plan = MemoryPlan(12, Placement(Part("x", 0, 0, 0, 0), 0), Placement(part, 25), tile_vae=False)
    free = types.SimpleNamespace(available=16 * 2**30)
    monkeypatch.setattr(survey.psutil, "virtual_memory", lambda: free)
    assert survey.roomy_host(plan) is False
    free.available = 8 * 2**30
    with pytest.raises(OutOfBudget, match="11.1 GiB of weights do not fit the GPU"):
        survey.roomy_host(plan)
    free.available = 64 * 2**30
    assert survey.roomy_host(plan) is True


def test_the_2511_model_keeps_its_reference_at_time_zero(comfyui: Path, qwen_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "renamed.safetensors"
    state = load_file(qwen_folder / "transformer" / WEIGHTS) | {"__index_timestep_zero__": torch.zeros(0)}
    save_file(state, file)
    editor = load(profile(comfyui, edit=str(file))).editor
    assert editor.variant == "edit_plus"
    assert editor.parts.transformer().config["zero_cond_t"] is True


DIFFUSION = "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors"
LIGHTNING = "loras/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16.safetensors"


def editor_with(comfyui: Path, folder: Path, old: str = "", new: str = "", **changes: object) -> QwenEdit:
    """The edit model of a copy of the folder in which a file has another name; Lightning is there if it is that one."""
    root = folder / "ComfyUI"
    shutil.copytree(comfyui.parent, root)
    if old:
        (root / "models" / old).rename(root / "models" / new)
    if old == DIFFUSION:  # a fused one is taken only where it is named
        changes["edit"] = str(root / "models" / new)
    if old != LIGHTNING:
        (root / "models" / LIGHTNING).unlink()
    editor = load(profile(root / "models", **changes)).editor
    assert isinstance(editor, QwenEdit)
    return editor


@pytest.mark.parametrize(
    ("old", "new", "other"),
    [
        (DIFFUSION, "diffusion_models/my_qwen_image_edit_2509.safetensors", False),
        (DIFFUSION, "diffusion_models/qwen_image_edit_fp8.safetensors", True),  # the first model, another pipeline
        (DIFFUSION, "diffusion_models/qwen_image_edit_2511_fp8.safetensors", True),  # keeps its reference at time 0
        (DIFFUSION, "diffusion_models/qwen_image_edit_2509_rapid_4steps.safetensors", True),  # distilled
        (LIGHTNING, "loras/Qwen-Image-Edit-2509-Lightning-4steps-V1.0.safetensors", True),
        (LIGHTNING, "loras/Qwen-Image-Edit-2509-Lightning-8steps.safetensors", False),
    ],
)
def test_a_name_by_which_the_same_weights_are_drawn_with_otherwise_makes_other_work(
    comfyui: Path, tmp_path: Path, old: str, new: str, other: bool
) -> None:
    """Else a renamed file would be handed the sheet that was drawn with it in another way."""
    before, after = editor_with(comfyui, tmp_path / "a", old, old), editor_with(comfyui, tmp_path / "b", old, new)
    assert (after.fingerprint != before.fingerprint) is other


def test_which_of_two_loras_has_which_strength_counts(comfyui: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, *loras: tuple[str, float]) -> str:
        own = [{"file": str(files / f"{file}.safetensors"), "strength": strength} for file, strength in loras]
        return editor_with(comfyui, tmp_path / name, edit_loras=tuple(own)).fingerprint

    files = tmp_path / "loras"
    one = load_file(comfyui / LIGHTNING)
    original.write(files / "hair.safetensors", one)
    original.write(files / "coat.safetensors", {key: value * 2 for key, value in one.items()})
    first = fingerprint("a", ("hair", 0.5), ("coat", 1.0))
    assert fingerprint("b", ("coat", 0.5), ("hair", 1.0)) != first
    assert fingerprint("c", ("hair", 1.0), ("coat", 0.5)) != first
    (files / "coat.safetensors").rename(files / "blue coat.safetensors")
    assert fingerprint("d", ("hair", 0.5), ("blue coat", 1.0)) == first


SAID = (
    ("qwen/scheduler/scheduler_config.json", {"editor", "captioner"}),
    ("qwen/transformer/config.json", {"editor", "captioner"}),
    ("qwen/text_encoder/generation_config.json", {"editor", "captioner"}),
    ("sdxl/scheduler/scheduler_config.json", {"diffusion"}),
    ("sdxl/unet/config.json", {"diffusion"}),
)


@pytest.mark.parametrize(("file", "changed"), SAID)
def test_what_a_configuration_says_beside_the_weights_makes_other_work(
    comfyui: Path, tmp_path: Path, file: str, changed: set[str]
) -> None:
    """Else a sheet drawn on another schedule, or an adapter of another U-Net, would be taken from the cache."""
    root = tmp_path / "ComfyUI"
    shutil.copytree(comfyui.parent, root)
    told = root / "configs" / file

    def fingerprints() -> dict[str, str]:
        models = load(profile(root / "models"))
        return {name: getattr(models, name).fingerprint for name in ("editor", "captioner", "diffusion")}

    before = fingerprints()
    assert fingerprints() == before
    said = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    told.write_text(json.dumps(said | {"_note": "another"}), encoding="utf-8")
    after = fingerprints()
    assert {name for name in before if after[name] != before[name]} == changed
