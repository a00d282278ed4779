from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from charengine.embedded.lexicon import VOCABULARY
from charengine.embedded.making import still
from charengine.embedded.making.clock import Average, Clock
from charengine.embedded.making.family import (
    TINY,
    Sizes,
    build_processor,
    build_qwen_vae,
    build_random_family,
    build_text_encoders,
    build_transformer,
    build_vision_language,
    count_parameters,
)
from charengine.embedded.making.pack import WEIGHTS, lay_flat, pack, unpack
from charengine.embedded.making.run import Run
from charengine.embedded.making.train import tracks
from charengine.embedded.making.vocabulary import (
    EDIT_PREFIX,
    EDIT_SUFFIX,
    build_clip_tokenizer,
    build_qwen_tokenizer,
    clip_tokenizer,
)
from charengine.embedded.shape import EMBEDDED_CONDITION_AREA, EMBEDDED_VAE_AREA
from charengine.figures.template import template
from charengine.models.processor import caption_inputs, fix_position_ids


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_family(tmp_path_factory.mktemp("family"), 0, tiny=True)


@pytest.fixture(scope="module")
def edit_pipeline(tiny: Path):
    from diffusers import QwenImageEditPlusPipeline

    return QwenImageEditPlusPipeline.from_pretrained(tiny / "qwen").to(dtype=torch.float32)


def test_the_text_the_edit_pipeline_drops_is_exactly_64_tokens(edit_pipeline):
    assert edit_pipeline.prompt_template_encode == EDIT_PREFIX + "{}" + EDIT_SUFFIX
    assert edit_pipeline.prompt_template_encode_start_idx == 64
    assert len(build_qwen_tokenizer()(EDIT_PREFIX)["input_ids"]) == 64


def test_every_word_of_the_grammar_is_one_token():
    qwen, clip = build_qwen_tokenizer(), build_clip_tokenizer()
    split = [w for w in VOCABULARY if len(qwen.tokenize(" " + w)) != 1 or len(clip.tokenize(w)) != 1]
    assert split == []


def test_a_tokenizer_is_built_with_the_same_numbers_every_time():
    """Ties between merges once fell by a hash: every second training swapped hook and hood."""
    assert len({tuple(sorted(build_clip_tokenizer().get_vocab().items())) for _ in range(4)}) == 1


def test_both_text_encoders_clip_and_the_trainer_number_words_alike():
    places = ("sdxl/tokenizer", "sdxl/tokenizer_2", "clip")
    (text,) = {(WEIGHTS / place / "tokenizer.json").read_text() for place in places}
    assert clip_tokenizer().get_vocab() == json.loads(text)["model"]["vocab"]


def test_words_and_letters_nobody_taught_fall_to_pieces_and_come_back():
    qwen, clip = build_qwen_tokenizer(), build_clip_tokenizer()
    strange = "opsur102 é日"
    assert qwen.decode(qwen(strange)["input_ids"]) == strange
    pieces = clip.tokenize(strange)
    assert len(pieces) > 5
    assert clip.unk_token not in pieces


def test_clip_prompts_are_cut_and_padded_to_77_tokens():
    found = build_clip_tokenizer()(["an elf " * 60, ""], padding="max_length", truncation=True)["input_ids"]
    assert [len(row) for row in found] == [77, 77]


def test_the_family_opens_with_the_libraries_own_loaders(tiny, edit_pipeline):
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPModel

    sdxl = StableDiffusionXLPipeline.from_pretrained(tiny / "sdxl")
    assert type(edit_pipeline.transformer).__name__ == "QwenImageTransformer2DModel"
    assert type(edit_pipeline.text_encoder).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert sdxl.unet.config.addition_embed_type == "text_time"
    assert sdxl.vae_scale_factor == edit_pipeline.vae_scale_factor == 8
    assert CLIPModel.from_pretrained(tiny / "clip").config.vision_config.image_size == 192


def test_the_shipped_sizes_stay_within_45_megabytes_and_15_mebibytes_a_file(tmp_path):
    counts = count_parameters(build_random_family(tmp_path, 0))
    assert 19e6 < sum(counts.values()) < 22e6
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 43e6
    assert max(p.stat().st_size for p in files) < 15 * 2**20


def test_a_seed_makes_the_same_weights_and_leaves_the_callers_generator_alone(tiny, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    again = build_random_family(tmp_path / "again", 0, tiny=True)
    assert torch.equal(torch.rand(1), expected)
    other = build_random_family(tmp_path / "other", 1, tiny=True)
    name = "sdxl/unet/diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (tiny / name).read_bytes()
    assert (other / name).read_bytes() != (tiny / name).read_bytes()


@torch.no_grad()
def test_the_fast_vision_language_forward_equals_the_stock_one():
    tokenizer = build_qwen_tokenizer()
    model = build_vision_language(TINY, tokenizer).eval()
    patches, grid = still.pixel_patches(torch.randn(2, 3, 112, 84))
    seen = still.look(model.model.visual, patches, grid)
    text = EDIT_PREFIX + "Picture 1: <|vision_start|>" + "<|image_pad|>" * 12 + "<|vision_end|>an elf" + EDIT_SUFFIX
    ids = torch.tensor([tokenizer(text)["input_ids"]] * 2)
    before = ids[0].tolist().index(model.config.image_token_id)
    fix_position_ids(model)
    stock = model(
        input_ids=ids, pixel_values=patches.flatten(0, 1), image_grid_thw=torch.tensor([[1, *grid]] * 2), output_hidden_states=True
    )  # fmt: skip
    mine = still.read(model, ids, seen, before, grid)
    assert torch.allclose(mine, stock.hidden_states[-1], atol=1e-5)


@torch.no_grad()
def test_the_position_fix_changes_what_a_picture_prompt_encodes_to():
    tokenizer = build_qwen_tokenizer()
    model, processor = build_vision_language(TINY, tokenizer).eval(), build_processor(tokenizer)
    inputs = caption_inputs(processor, [Image.new("RGB", (128, 384), "red")])
    kinds = inputs.pop("mm_token_type_ids")
    broken = model(**inputs).logits
    wanted = model(**inputs, mm_token_type_ids=kinds).logits
    handle = fix_position_ids(model)
    assert torch.equal(model(**inputs).logits, wanted)
    assert (broken - wanted).abs().max() > 1e-5
    handle.remove()
    assert torch.equal(model(**inputs).logits, broken)


@torch.no_grad()
def test_the_fast_denoiser_and_vae_equal_the_stock_ones():
    torch.manual_seed(0)
    model = build_transformer(TINY).eval()
    given = {
        "hidden_states": torch.randn(2, 1152, 64), "encoder_hidden_states": torch.randn(2, 30, TINY.vl_width),
        "timestep": torch.tensor([0.3, 0.9]), "img_shapes": [[(1, 24, 24), (1, 24, 24)]] * 2,
    }  # fmt: skip
    stock = model(**given).sample
    still.real_rotations(model)
    assert torch.allclose(model(**given).sample, stock, atol=1e-5)

    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    vae, picture = build_qwen_vae(TINY).eval(), torch.rand(1, 3, 1, 64, 64)
    kept = QwenImageCausalConv3d.forward
    try:
        latents = vae.encode(picture).latent_dist.mode()
        decoded = vae.decode(latents).sample
        still.still_convolutions()
        assert torch.allclose(vae.encode(picture).latent_dist.mode(), latents, atol=1e-5)
        assert torch.allclose(vae.decode(latents).sample, decoded, atol=1e-5)
    finally:
        QwenImageCausalConv3d.forward = kept


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_training_samples_sheets_and_edits_as_the_pipeline_does(edit_pipeline, monkeypatch, tmp_path):
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as source

    from charengine.embedded.making import edits, sheet_model, sheet_samples
    from charengine.embedded.making.vae import Autoencoder

    monkeypatch.setattr(source, "VAE_IMAGE_SIZE", EMBEDDED_VAE_AREA)
    monkeypatch.setattr(source, "CONDITION_IMAGE_SIZE", EMBEDDED_CONDITION_AREA)
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    monkeypatch.setattr(QwenImageCausalConv3d, "forward", QwenImageCausalConv3d.forward)
    run = Run(tmp_path, torch.device("cpu"), tiny=True)
    vae = Autoencoder("qwen", run.sizes, run.device)
    reader, denoiser = sheet_model.Reader(run), sheet_model.Denoiser(run)
    vae.model.load_state_dict(edit_pipeline.vae.state_dict())
    vae.facts = {"mean": [0.0] * 16, "std": [1.0] * 16}
    reader.model.load_state_dict(edit_pipeline.text_encoder.state_dict())
    denoiser.model.load_state_dict(edit_pipeline.transformer.state_dict())
    denoiser.prepare()
    handle = fix_position_ids(edit_pipeline.text_encoder)
    blank = template(384, 384)
    latents = vae.to_latents(torch.from_numpy(np.array(blank)).permute(2, 0, 1)[None])
    prompt = "three views of the same elf: an elf in red"
    shown = sheet_samples.Shown(latents)
    mine = sheet_samples.draw(reader, denoiser, sheet_model.shape_of(latents), [prompt], shown, seed=5, steps=2)
    noise = torch.randn(1, 576, 64, generator=torch.Generator().manual_seed(5))
    edit_pipeline.set_progress_bar_config(disable=True)
    theirs = edit_pipeline(
        image=blank, prompt=prompt, negative_prompt=" ", true_cfg_scale=sheet_samples.GUIDANCE, num_inference_steps=2,
        height=384, width=384, latents=noise, output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(mine, sheet_model.from_tokens(theirs), atol=5e-3)  # the training pool keeps latents as bf16

    pixels = torch.randint(0, 255, (1, 3, 384, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = torch.nn.functional.avg_pool2d(pixels.float(), 16).repeat_interleave(16, 2).repeat_interleave(16, 3).byte()
    eye = still.normalised(edits.looked_at(view))
    prompt = "the same elf as in the picture: forest"
    mine = sheet_samples.draw(
        reader, denoiser, (16, 16), [prompt], sheet_samples.Shown(vae.to_latents(view), eye), seed=5, steps=2
    )
    noise = torch.randn(1, 256, 64, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(source, "VAE_IMAGE_SIZE", 128 * 384)
    theirs = edit_pipeline(
        image=Image.fromarray(view[0].permute(1, 2, 0).numpy()), prompt=prompt, negative_prompt=" ",
        true_cfg_scale=sheet_samples.GUIDANCE, num_inference_steps=2, height=256, width=256, latents=noise,
        output_type="latent",
    ).images  # fmt: skip
    handle.remove()
    # the VL's picture is resized on the device here, by Pillow there
    assert torch.allclose(mine, sheet_model.from_tokens(theirs, (16, 16)), atol=2e-2)


def test_trained_weights_and_latent_statistics_arrive_in_the_folders(tmp_path):
    from safetensors.torch import load_file, save_file

    made, packed, weights = tmp_path / "made", tmp_path / "packed", tmp_path / "weights"
    made.mkdir()
    first, _ = build_text_encoders(TINY, build_clip_tokenizer())
    tensors = {k: v.half().contiguous() for k, v in first.state_dict().items() if not k.endswith("position_ids")}
    save_file(tensors, made / "sdxl_text_encoder.safetensors")
    (made / "sdxl_vae.json").write_text(json.dumps({"mean": [0.0], "std": [4.0]}))
    (made / "qwen_vae.json").write_text(json.dumps({"mean": [0.5] * 16, "std": [2.0] * 16}))
    steps = [{"step": step, "progress": 0.5} for step in range(100, 1300, 100)]
    (made / "sheets.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (*steps, {"event": "done"})))
    assert len(pack(made, packed)) <= 7
    unpack(packed, weights, tiny=True)
    found = load_file(weights / "sdxl/text_encoder/model.safetensors")
    assert all(torch.equal(found[k], v) for k, v in tensors.items())
    assert json.loads((weights / "sdxl/vae/config.json").read_text())["scaling_factor"] == 0.25
    assert json.loads((weights / "qwen/vae/config.json").read_text())["latents_mean"] == [0.5] * 16
    assert all(path.read_text().count("\n") == 0 for path in weights.rglob("tokenizer.json"))  # no room for indents
    kept = [json.loads(line) for line in (weights / "training" / "sheets.jsonl").read_text().splitlines()]
    assert kept == [
        {"step": 100},
        {"step": 600},
        {"step": 1100},
        {"step": 1200},
        {"event": "done"},
    ]  # logs travel thinned
    flat = lay_flat(weights, tmp_path / "flat")
    assert (flat / "sdxl_text_encoder.safetensors").read_bytes() == (
        made / "sdxl_text_encoder.safetensors"
    ).read_bytes()
    assert all(
        json.loads((flat / f).read_text()) == json.loads((made / f).read_text())
        for f in ("qwen_vae.json", "sdxl_vae.json")
    )


def test_parts_are_spread_over_the_gpus_there_are():
    assert [device for device, _ in tracks(0, False)] == ["cpu"]
    assert {device for device, _ in tracks(1, False)} == {"cuda:0"}
    two = tracks(2, False)
    assert two[0] == ("cuda:0", "qwen_vae=1.7,sheets")
    assert [device for device, _ in two[1:]] == ["cuda:1", "cuda:1"]
    assert tracks(2, True)[0][1].startswith("qwen_decoder=")


def test_the_learning_rate_anneals_within_the_time_box():
    clock = Clock(1.0, warmup=0.1)
    clock.start -= 3
    assert clock.learning_rate() == pytest.approx(0.5, abs=0.05)
    clock.start -= 3
    assert clock.learning_rate() == pytest.approx(1.0, abs=0.02)
    clock.start -= 60
    assert clock.progress == 1.0
    assert clock.learning_rate() == pytest.approx(0.01)


def test_the_average_follows_the_weights_and_is_what_gets_written():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = Average({"layer": layer}, decay=0.5)
    torch.nn.init.ones_(layer.weight)
    average.update()
    kept = float(average.state()["layer"]["weight"])
    assert 0.3 < kept < 0.95
    average.swap()
    assert float(layer.weight.detach()) == pytest.approx(kept, abs=1e-3)
    average.swap()
    assert float(layer.weight.detach()) == 1.0


def test_training_a_decoder_alone_does_not_move_the_latents(tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
    from safetensors.torch import load_file

    from charengine.embedded.making.vae import train_vae

    kept = QwenImageCausalConv3d.forward
    try:
        device = torch.device("cpu")
        train_vae(Run(tmp_path / "a", device, tiny=True, max_steps=2), "sdxl", 1.0)
        later = Run(tmp_path / "b", device, source=tmp_path / "a", tiny=True, max_steps=2)
        train_vae(later, "sdxl", 1.0, decoder_only=True)
    finally:
        QwenImageCausalConv3d.forward = kept
    one, two = (load_file(tmp_path / run / "sdxl_vae.safetensors") for run in "ab")
    moved = {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}
    assert moved <= {"decoder", "post_quant_conv"}
    assert "decoder" in moved
    assert (tmp_path / "a" / "sdxl_vae.json").read_bytes() == (tmp_path / "b" / "sdxl_vae.json").read_bytes()


def test_the_shipped_denoiser_reads_what_the_shipped_encoder_writes():
    sizes = Sizes()
    assert sum(sizes.dit_rope) == sizes.dit_head_dim
    assert sizes.vl_width % sizes.vl_heads == 0


def test_the_check_scores_rendered_truth_without_the_templates_rules():
    from charengine.embedded.making import check

    sheet = check.to_tensor([template(384, 384)])
    assert float(sheet.min()) == 0.0
    assert float(check.without_rules(sheet).min()) == 1.0
    figure = torch.zeros(1, 3, 384, 384)
    inside = check.without_rules(figure)
    assert float((inside == 0).float().mean()) > 0.9


def test_the_check_refuses_a_part_it_does_not_know(tiny):
    from charengine.embedded.making import check
    from charengine.embedded.probe import Probe
    from charengine.errors import BadInput
    from charengine.models import load
    from charengine.profiles.loading import load_profile

    folders = [f"models.edit={tiny}/qwen", f"models.sdxl={tiny}/sdxl", f"models.clip={tiny}/clip", "models.device=cpu"]
    profile = load_profile("embedded", folders)
    with pytest.raises(BadInput, match="truth, sheets, captions, images"):
        check.check(load(profile), profile, Probe(), 2, ["sheet"], torch.device("cpu"))
