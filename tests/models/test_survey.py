"""What is decided about a profile's files before anything runs: LoRAs, tokenizers, plans; and that doctor says what run does."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import original_layouts as original
import pytest
import torch
from comfyui_samples import WEIGHTS, draw, profile, template
from models import hollow
from safetensors.torch import load_file

from charengine.config import EditLora, ModelSettings
from charengine.errors import BadInput, ConfigError
from charengine.models import load, places
from charengine.models.lightning import base_of, fused_steps, steps_of
from charengine.models.prediction import Prediction
from charengine.models.survey import survey
from charengine.models.vocabularies import CLIP_MERGES, as_folder, find_tokenizers
from charengine.services.doctor import examine

pytestmark = pytest.mark.usefixtures("bare_machine")


def copy_of(comfyui: Path, tmp_path: Path) -> Path:
    shutil.copytree(comfyui.parent, tmp_path / "ComfyUI")
    return tmp_path / "ComfyUI" / "models"


# --- Lightning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "base", "steps", "fused"),
    [
        ("Qwen-Image-Lightning-8steps-V1.1.safetensors", "Qwen-Image", 8, 8),
        ("Qwen-Image-Edit-Lightning-4steps-V1.0-bf16.safetensors", "Qwen-Image-Edit", 4, 4),
        ("Qwen-Image-Edit-2509-Lightning-8steps-V1.0-fp32.safetensors", "Qwen-Image-Edit-2509", 8, 8),
        ("Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors", "Qwen-Image-Edit-2511", 4, 4),
        (
            "qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_comfyui_4steps_v1.0.safetensors",
            "Qwen-Image-Edit-2511",
            4,
            4,
        ),
        ("Qwen-Rapid-AIO-SFW-v18.safetensors", "Qwen-Image", 4, 4),
        ("qwen_image_edit_2511_fp8mixed.safetensors", "Qwen-Image-Edit-2511", 4, 0),
    ],
)
def test_published_names_say_base_and_steps(name: str, base: str, steps: int, fused: int) -> None:
    assert (base_of(name), steps_of(name), fused_steps(name)) == (base, steps, fused)


def test_the_lightning_lora_of_the_edit_models_base_and_of_the_drafts_steps_is_taken(
    comfyui: Path, tmp_path: Path
) -> None:
    files = copy_of(comfyui, tmp_path)
    eight = next((files / "loras").iterdir())
    for name in (
        "Qwen-Image-Edit-2509-Lightning-4steps-V1.0",
        "Qwen-Image-Edit-2511-Lightning-8steps-V1.0",
        "Qwen-Image-Lightning-8steps",
    ):
        shutil.copy(eight, files / "loras" / f"{name}.safetensors")
    asked = profile(files)
    drafts = {
        steps: survey(asked.model_copy(update={"sheet": asked.sheet.model_copy(update={"draft_steps": steps})}))
        for steps in (8, 4)
    }
    assert drafts[8].loras.lightning == eight and drafts[8].loras.lightning_steps == 8
    assert drafts[4].loras.lightning_steps == 4 and "2509-Lightning-4steps" in drafts[4].loras.lightning.name
    reasons = [one.describe() for one in drafts[8].stock.rejected]
    assert (
        len(reasons) == 2 and "made for Qwen-Image-Edit-2511, and the edit model is Qwen-Image-Edit-2509" in reasons[0]
    )
    drawings = [draw(load(asked).editor, steps=steps, guidance=guidance) for steps, guidance in ((8, 1.0), (5, 4.0))]
    assert np.array_equal(*drawings)  # both in the LoRA's own eight, without guidance


def test_a_transformer_with_lightning_fused_in_draws_in_its_steps_without_guidance_or_a_lora_on_top(
    comfyui, tmp_path, caplog
) -> None:
    files = copy_of(comfyui, tmp_path)
    plain = next((files / "diffusion_models").iterdir())
    fused = plain.with_name("qwen_image_edit_2509_lightning_4steps.safetensors")
    shutil.copy(plain, fused)
    found = survey(profile(files, edit=str(fused)))
    assert found.loras.lightning is None
    with caplog.at_level("INFO"):
        editor = load(profile(files, edit=str(fused))).editor
    assert f"{fused.name} has a Lightning LoRA fused in: sheets are drawn in 4 steps without guidance" in caplog.text
    assert any(f"{fused.name}: has a Lightning LoRA fused in" in line for line in examine(profile(files)).optional)
    assert np.array_equal(draw(editor, steps=40, guidance=4.0), draw(editor, steps=4, guidance=1.0))


# --- edit LoRAs ------------------------------------------------------------------------------------------------------


def test_the_users_own_edit_loras_are_on_in_every_drawing_at_their_strength(comfyui: Path, tmp_path: Path) -> None:
    files = copy_of(comfyui, tmp_path)
    shutil.rmtree(files / "loras")
    down, up = torch.randn(2, 48) * 0.5, torch.randn(48, 2) * 0.5
    name = "diffusion_model.transformer_blocks.1.attn.to_v"
    angles = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    original.write(files / "loras" / "multiple-angles.safetensors", angles)
    plain = load(profile(files)).editor
    editors = [
        load(profile(files, edit_loras=(EditLora(file="multiple-angles", strength=s),))).editor for s in (1.0, 0.0)
    ]
    assert len({editor.fingerprint for editor in (plain, *editors)}) == 3
    assert not np.array_equal(draw(editors[0]), draw(plain))
    assert np.array_equal(draw(editors[1]), draw(plain))


def test_an_edit_lora_that_does_not_fit_is_refused_before_drawing(comfyui: Path, tmp_path: Path) -> None:
    wrong = {
        "transformer_blocks.7.attn.to_q.lora_A.weight": torch.zeros(2, 48),
        "transformer_blocks.7.attn.to_q.lora_B.weight": torch.zeros(48, 2),
    }
    wide = {
        "transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 64),
        "transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(48, 2),
    }
    down, up, to_q = torch.zeros(2, 48), torch.zeros(48, 2), "transformer_blocks.0.attn.to_q.lora_"
    pairs = ((down.int(), up), (down[:0], up[:, :0]), (down / 0, up))
    none = [{f"{to_q}A.weight": one, f"{to_q}B.weight": other} for one, other in pairs]
    files = [original.write(tmp_path / f"{i}.safetensors", tensors) for i, tensors in enumerate((wrong, wide, *none))]
    loras = tuple(EditLora(file=str(file)) for file in (*files, "nowhere"))
    with pytest.raises(ConfigError) as caught:
        load(profile(comfyui, edit_loras=loras))
    text = str(caught.value)
    for told in ("(down) is torch.int32", "(down) is torch.float32 of shape (0, 48)", "A.weight holds NaN or infinity"):
        assert told in text
    assert "adapts 1 layers this model lacks (first transformer_blocks.7.attn.to_q)" in text
    assert (
        "transformer_blocks.0.attn.to_q is (48, 64), the model's is (48, 48)" in text
        and "'nowhere' is neither a file" in text
    )


def test_edit_loras_are_files_or_files_with_a_strength() -> None:
    given = ModelSettings.model_validate({"edit_loras": ["a.safetensors", {"file": "b.safetensors", "strength": 0.6}]})
    assert [(lora.file, lora.strength) for lora in given.edit_loras] == [("a.safetensors", 1.0), ("b.safetensors", 0.6)]


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_clips_vocabulary_follows_from_the_merges_an_installed_package_ships(tmp_path: Path, monkeypatch) -> None:
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("")
    letters = list(bytes_to_unicode().values())
    pairs = [f"{one} {other}" for one in letters for other in letters if (one, other) != ("o", "r")]
    merges = ["#version", "o r", "or c</w>", "a n</w>", *pairs]
    with gzip.open(package / CLIP_MERGES, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(merges))
    monkeypatch.syspath_prepend(tmp_path)
    found = find_tokenizers(ModelSettings(family="sdxl"), None, None, None, None)
    assert found.clip == package / CLIP_MERGES and found.qwen is None
    folder = as_folder(found.clip, tmp_path / "home")
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == 49408
    assert (vocabulary["orc</w>"], vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (513, 49406, 49407)
    assert CLIPTokenizer.from_pretrained(folder)("an orc").input_ids == [49406, 514, 513, 49407]


def test_a_ggufs_own_tokenizer_is_qwens(tmp_path: Path, qwen_folder: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import Qwen2Tokenizer

    vocabulary = Qwen2Tokenizer.from_pretrained(qwen_folder / "tokenizer").get_vocab()
    vocabulary["or"] = len(vocabulary)
    words = [word for word, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    special = [word for word in words if word.startswith("<|")]
    known = Qwen2Tokenizer(vocab=dict(vocabulary), merges=[("o", "r")], additional_special_tokens=special)
    kinds = [3 if word.startswith("<|") else 1 for word in words] + [5]
    path = hollow.write_gguf(
        tmp_path / "Qwen2.5-VL-7B-Q4_K_M.gguf", {"token_embd.weight": ("F32", (len(words), 16))}, "qwen2vl",
        tokenizer__ggml__tokens=[*words, "[PAD0]"], tokenizer__ggml__token_type=kinds, tokenizer__ggml__merges=["o r"],
    )  # fmt: skip
    found = find_tokenizers(ModelSettings(family="sdxl"), None, path, None, None)
    assert found.qwen == path
    made = Qwen2Tokenizer.from_pretrained(as_folder(path, tmp_path / "home"))
    text = "<|im_start|>user\nAn orc<|vision_start|><|image_pad|><|vision_end|><|im_end|>"
    assert made(text).input_ids == known(text).input_ids
    for good, damaged in (
        (b"o r", b"orr"),
        (b"o r", b"o q"),
        (b"<|im_end|>", b"<|im_end\xff>"),
        (b"video_pad", b"image_pad"),
    ):
        assert good in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(good, damaged))
        with pytest.raises(BadInput, match="tokenizer in it is damaged"):
            find_tokenizers(ModelSettings(family="sdxl"), None, path, None, None)
        path.write_bytes(path.read_bytes().replace(damaged, good))


def test_comfyui_desktops_source_and_other_installations_are_looked_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    source = tmp_path / "Programs" / "@comfyorgcomfyui-electron" / "resources" / "ComfyUI"
    for folder in ("sd1_tokenizer", "text_encoders/qwen25_tokenizer"):
        (source / "comfy" / folder).mkdir(parents=True)
        for name in ("vocab.json", "merges.txt"):
            (source / "comfy" / folder / name).write_text("{}")
    assert places.comfy_sources(ModelSettings()) == [source]
    found = find_tokenizers(ModelSettings(family="sdxl"), None, None, None, None)
    assert (found.qwen, found.clip) == (
        source / "comfy" / "text_encoders" / "qwen25_tokenizer", source / "comfy" / "sd1_tokenizer",
    )  # fmt: skip


# --- run and doctor --------------------------------------------------------------------------------------------------


def test_doctor_names_the_problems_that_run_stops_at(comfyui: Path, tmp_path: Path) -> None:
    lora = original.write(
        tmp_path / "x.safetensors",
        {
            "transformer_blocks.9.a.lora_A.weight": torch.zeros(1, 1),
            "transformer_blocks.9.a.lora_B.weight": torch.zeros(1, 1),
        },
    )
    asked = profile(comfyui, edit_loras=(EditLora(file=str(lora)),), sdxl_vae=str(lora))
    with pytest.raises(ConfigError) as caught:
        load(asked)
    problems = examine(asked).problems
    assert len(caught.value.problems) == 2 and all(problem in problems for problem in caught.value.problems)
    assert "what this machine will do" in str(examine(profile(comfyui)))


def test_a_checkpoint_that_says_nothing_is_asked_when_the_models_are_loaded(comfyui, tmp_path, monkeypatch) -> None:
    files = copy_of(comfyui, tmp_path)
    (files / "checkpoints" / "sd_xl_base_1.0.safetensors").rename(files / "checkpoints" / "waiIllustrious.safetensors")
    asked: list[str] = []

    def measured(parts, device, weights, home):
        asked.append(weights)
        return Prediction("v_prediction", source="its loss at high noise")

    monkeypatch.setattr("charengine.models.full.measured_prediction", measured)
    diffusion = load(profile(files)).diffusion
    assert len(asked) == 1 and diffusion.prediction == Prediction("v_prediction")
    assert diffusion.usage.family == "Illustrious"
    assert load(profile(files, prediction_type="v_prediction")).diffusion.prediction.velocity and len(asked) == 1
    monkeypatch.setattr("charengine.models.full.measured_prediction", lambda *_: Prediction())
    with pytest.raises(BadInput, match="zero_terminal_snr is true for an epsilon model"):
        load(profile(files, zero_terminal_snr=True))
    refused = str(examine(profile(files, zero_terminal_snr=True, prediction_type="epsilon")))
    assert "zero_terminal_snr is true" in refused and "no file says" not in refused
    assert set(diffusion.base_names) == {"ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash"}
    assert any("measured once, before the first sheet" in note for note in survey(profile(files)).notes)


def test_a_tagger_folder_without_its_files_is_told_before_anything_runs(comfyui: Path, tmp_path: Path) -> None:
    asked = profile(comfyui, tagger=str(tmp_path))
    asked = asked.model_copy(update={"caption": asked.caption.model_copy(update={"captioner": "wd14"})})
    with pytest.raises(BadInput, match=r"models.tagger: .* has no model.onnx and no selected_tags.csv"):
        load(asked)


def test_a_gguf_text_encoder_and_its_tower_caption_and_encode_like_the_folder_they_came_from(
    comfyui, qwen_folder, tmp_path
) -> None:
    pytest.importorskip("gguf")
    from transformers import Qwen2_5_VLForConditionalGeneration

    files = copy_of(comfyui, tmp_path)
    shutil.rmtree(files / "text_encoders")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen_folder / "text_encoder", dtype=torch.float32)
    language, vision = hollow.llama_files(original.qwen_text_encoder(model.state_dict()))
    (files / "text_encoders").mkdir()
    original.write_gguf(files / "text_encoders" / "Qwen2.5-VL-7B-Instruct-F32.gguf", language, "F32", "qwen2vl")
    original.write_gguf(files / "text_encoders" / "mmproj-F32.gguf", vision, "F32", "clip")
    plain = load_file(qwen_folder / "transformer" / WEIGHTS)
    original.write(files / "diffusion_models" / "qwen_image_edit_2509_fp8_e4m3fn.safetensors", plain)
    family = load(profile(files))
    whole = load(
        profile(files, vl=str(qwen_folder / "text_encoder"), edit=family.editor.parts.paths["transformer"].as_posix())
    )
    assert np.abs(draw(family.editor) - draw(whole.editor)).max() <= 1
    assert family.captioner.describe(template()).raw == whole.captioner.describe(template()).raw
