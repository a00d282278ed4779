"""The sheet editor computes what the stock pipelines compute, in stages, and adds what they cannot do."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image, ImageDraw

from charengine.errors import BadInput, StageFailed
from charengine.models.loading import Loaded
from charengine.models.processor import ImageTextProcessor, fix_position_ids
from charengine.models.qwen_edit import QwenEdit, dimensions, pack, unpack
from charengine.models.qwen_parts import QwenEditFolder, lightning_scheduler, load_text_encoder

CPU = torch.device("cpu")
AREA, SEEN = 64 * 64, 56 * 56
DRAW = {"seed": 3, "steps": 2, "guidance": 3.0}


@pytest.fixture
def folder_parts(qwen_folder: Path) -> QwenEditFolder:
    return QwenEditFolder(qwen_folder, CPU, torch.float32)


def make(parts: QwenEditFolder, **kwargs) -> QwenEdit:
    return QwenEdit(parts, CPU, "tiny", **{"vae_area": AREA, "condition_area": SEEN} | kwargs)


@pytest.fixture
def editor(folder_parts: QwenEditFolder) -> QwenEdit:
    return make(folder_parts, keep=("text_encoder", "transformer", "vae"))


@pytest.fixture
def template() -> Image.Image:
    image = Image.new("RGB", (96, 64), "white")
    drawing = ImageDraw.Draw(image)
    for x in (0, 32, 64):
        drawing.rectangle((x, 0, x + 31, 63), outline="black", width=2)
    return image


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def stock(kind, qwen_folder: Path):
    processor = ImageTextProcessor.from_pretrained(qwen_folder, subfolder="processor")
    pipeline = kind.from_pretrained(qwen_folder, processor=processor, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    fix_position_ids(pipeline.text_encoder)
    return pipeline


def drawn_by(pipeline, image, negative_prompt: str = " ") -> Image.Image:
    """What a stock pipeline draws of the prompt, seed and size of these tests."""
    return pipeline(
        image=image,
        prompt="an orc woman",
        negative_prompt=negative_prompt,
        true_cfg_scale=3.0,
        num_inference_steps=3,
        width=96,
        height=64,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]


def test_a_drawing_equals_the_stock_edit_plus_pipelines(
    editor: QwenEdit, qwen_folder: Path, template: Image.Image, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", AREA)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", SEEN)
    pipeline = stock(QwenImageEditPlusPipeline, qwen_folder)
    ours = editor.draw(template, "an orc woman", seed=3, steps=3, guidance=3.0)
    theirs = drawn_by(pipeline, template)
    assert ours.size == (96, 64)
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1
    assert as_array(ours).std() > 3


def test_a_template_and_a_reference_are_shown_as_the_stock_edit_plus_pipeline_shows_two_pictures(
    editor: QwenEdit, qwen_folder: Path, template: Image.Image, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", AREA)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", SEEN)
    reference = Image.linear_gradient("L").resize((48, 96)).convert("RGB")
    pipeline = stock(QwenImageEditPlusPipeline, qwen_folder)
    ours = editor.draw(template, "an orc woman", seed=3, steps=3, guidance=3.0, reference=reference)
    theirs = drawn_by(pipeline, [template, reference])
    assert editor.pictures == 2 and ours.size == (96, 64)
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1
    alone = editor.draw(template, "an orc woman", seed=3, steps=3, guidance=3.0)
    assert not np.array_equal(as_array(ours), as_array(alone))


@pytest.mark.parametrize(("part", "called"), [("transformer", "the edit model"), ("vae", "the VAE of the edit model")])
def test_what_is_no_picture_is_said_and_never_handed_on(
    editor: QwenEdit, template: Image.Image, part: str, called: str
):
    editor.draw(template, "an orc woman", **DRAW)
    broken = editor._transformer(False).proj_out if part == "transformer" else editor._vae().decoder.conv_out
    with torch.no_grad():
        broken.weight.fill_(float("nan"))
    with pytest.raises(StageFailed, match=rf"{called} answered with no numbers \(NaN\).*float32. Get it again"):
        editor.draw(template, "an orc woman", **DRAW)


@pytest.mark.parametrize("how", [{"variant": "edit"}, {"prompt_style": "plain"}], ids=["edit", "plain"])
def test_an_editor_of_one_picture_sees_the_reference_instead_of_the_template(
    folder_parts: QwenEditFolder, template: Image.Image, how: dict[str, str]
):
    editor = make(folder_parts, **how)
    reference = Image.linear_gradient("L").resize((48, 96)).convert("RGB")
    drawn = editor.draw(template, "an orc", **DRAW, reference=reference)
    same = editor.draw(reference, "an orc", **DRAW, size=template.size)
    assert editor.pictures == 1 and drawn.size == template.size
    assert np.array_equal(as_array(drawn), as_array(same))


def test_the_older_edit_variant_equals_its_stock_pipeline(
    folder_parts: QwenEditFolder, qwen_folder: Path, template: Image.Image, monkeypatch: pytest.MonkeyPatch
):
    original = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _area, ratio: original(AREA, ratio))
    pipeline = stock(pipeline_qwenimage_edit.QwenImageEditPipeline, qwen_folder)
    theirs = drawn_by(pipeline, template, "blurry")
    ours = make(folder_parts, variant="edit").draw(
        template, "an orc woman", negative_prompt="blurry", seed=3, steps=3, guidance=3.0
    )
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1


def test_vision_conditioning_keeps_the_templates_latents_from_the_transformer(
    editor: QwenEdit, folder_parts: QwenEditFolder, template: Image.Image
):
    tokens: list[tuple[int, int]] = []
    transformer = editor._transformer(fast=False)
    transformer.register_forward_pre_hook(
        lambda _m, _a, kw: tokens.append((kw["hidden_states"].shape[1], len(kw["img_shapes"][0]))), with_kwargs=True
    )
    both = editor.draw(template, "an orc", **DRAW)
    seen_only = editor.draw(template, "an orc", **DRAW, conditioning="vision")
    assert tokens[0] == (12 * 8 + 8 * 8, 2)  # 64*64 pixels at 3:2, in multiples of 32, are 64x64
    assert tokens[-1] == (12 * 8, 1)
    assert not np.array_equal(as_array(both), as_array(seen_only))


def test_vision_conditioning_still_sees_the_template(editor: QwenEdit, template: Image.Image):
    blank = Image.new("RGB", template.size, "black")
    drawn = [editor.draw(image, "an orc", **DRAW, conditioning="vision") for image in (template, blank)]
    assert not np.array_equal(as_array(drawn[0]), as_array(drawn[1]))


def test_staged_drawing_gives_the_same_picture_and_holds_one_big_part_at_a_time(
    qwen_folder: Path, editor: QwenEdit, template: Image.Image
):
    alive: list[set[str]] = []
    watched: dict[str, weakref.ref] = {}

    class Watched(QwenEditFolder):
        def _load(self, kind, name, **kwargs):
            gc.collect()
            alive.append({other for other, ref in watched.items() if ref() is not None})
            module = super()._load(kind, name, **kwargs)
            watched[name] = weakref.ref(module)
            return module

    staged = make(Watched(qwen_folder, CPU, torch.float32))
    assert alive == []
    assert np.array_equal(
        as_array(staged.draw(template, "a robot", **DRAW)), as_array(editor.draw(template, "a robot", **DRAW))
    )
    assert alive == [set(), set(), set(), set()]  # VAE, text encoder, transformer, VAE again
    staged.unload()
    gc.collect()
    assert all(ref() is None for ref in watched.values())


def test_a_second_candidate_needs_no_text_encoder(qwen_folder: Path, template: Image.Image):
    loads: list[str] = []

    class Counting(QwenEditFolder):
        def _load(self, kind, name, **kwargs):
            loads.append(name)
            return super()._load(kind, name, **kwargs)

    editor = make(Counting(qwen_folder, CPU, torch.float32), keep=("transformer", "vae"))
    one = editor.draw(template, "a robot", seed=1, steps=1, guidance=2.0)
    other = editor.draw(template, "a robot", seed=2, steps=1, guidance=2.0)
    assert loads.count("text_encoder") == 1
    assert loads.count("transformer") == 1
    assert not np.array_equal(as_array(one), as_array(other))
    editor.draw(template, "an elf", seed=2, steps=1, guidance=2.0)
    assert loads.count("text_encoder") == 2


def test_redrawing_a_box_changes_the_box_and_not_one_pixel_outside(editor: QwenEdit, template: Image.Image):
    sheet = editor.draw(template, "an orc", **DRAW)
    box = (36, 8, 60, 48)
    redrawn = editor.draw(sheet, "an elf", seed=9, steps=3, guidance=3.0, redraw=box)
    changed = (as_array(redrawn) != as_array(sheet)).any(axis=2)
    assert changed[8:48, 36:60].mean() > 0.5
    changed[8:48, 36:60] = False
    assert not changed.any()


def test_redrawing_everything_equals_drawing_on_white(editor: QwenEdit, template: Image.Image):
    whole = editor.draw(template, "an orc", **DRAW, redraw=(0, 0, 96, 64))
    plain = editor.draw(Image.new("RGB", template.size, "white"), "an orc", **DRAW)
    assert np.array_equal(as_array(whole), as_array(plain))


def test_what_is_redrawn_is_not_seen_and_its_surroundings_are(editor: QwenEdit, template: Image.Image):
    def redraw(changed: tuple[int, int, int, int]) -> np.ndarray:
        sheet = template.copy()
        sheet.paste("red", changed)
        return as_array(editor.draw(sheet, "an orc", **DRAW, redraw=(32, 0, 64, 64)))[:, 32:64]

    untouched = redraw((40, 10, 40, 10))
    assert np.array_equal(redraw((40, 10, 60, 50)), untouched)
    assert not np.array_equal(redraw((4, 10, 24, 50)), untouched)


def test_without_guidance_the_negative_prompt_is_not_even_encoded(editor: QwenEdit, template: Image.Image):
    one = editor.draw(template, "an orc", seed=1, steps=1, guidance=1.0, negative_prompt="red")
    other = editor.draw(template, "an orc", seed=1, steps=1, guidance=1.0, negative_prompt="blue")
    assert np.array_equal(as_array(one), as_array(other))
    assert len(editor._encoded) == 1


def test_below_a_noise_level_there_is_no_guidance_and_a_step_is_one_pass(
    folder_parts: QwenEditFolder, template: Image.Image
):
    editor = make(folder_parts, keep=("text_encoder", "transformer", "vae"))
    passes: list[int] = []
    transformer = editor._transformer(False)
    transformer.register_forward_pre_hook(lambda *_: passes.append(1))

    def drawn(guided_above: float, guidance: float = 3.0, **how) -> np.ndarray:
        passes.clear()
        return as_array(
            editor.draw(template, "an orc", seed=3, steps=4, guidance=guidance, guided_above=guided_above, **how)
        )

    everywhere = drawn(0.0)
    assert len(passes) == 8
    first_two = drawn(0.7)
    noise = editor._scheduler(False, 4, tokens=24 * 16 // 4).sigmas
    assert len(passes) == 4 + int((noise[:4] > 0.7).sum())
    assert 4 < len(passes) < 8
    nowhere = drawn(1.0)
    assert len(passes) == 4
    assert np.array_equal(nowhere, drawn(0.0, guidance=1.0))
    near, far = (np.abs(other - everywhere).mean() for other in (first_two, nowhere))
    assert 0 < near < far
    assert np.array_equal(first_two, drawn(0.7))
    assert not np.array_equal(drawn(0.7, redraw=(4, 10, 24, 50)), drawn(0.0, redraw=(4, 10, 24, 50)))


def test_a_transparent_template_is_seen_over_white(editor: QwenEdit, template: Image.Image):
    clear = template.convert("RGBA")
    clear.putalpha(Image.fromarray((np.asarray(template)[..., 0] < 128).astype(np.uint8) * 255))
    assert np.array_equal(
        as_array(editor.draw(clear, "an orc", **DRAW)), as_array(editor.draw(template, "an orc", **DRAW))
    )


def test_what_cannot_be_drawn_is_refused_in_words(editor: QwenEdit, template: Image.Image):
    with pytest.raises(BadInput, match="100x64 .* multiples of 8"):
        editor.draw(Image.new("RGB", (100, 64)), "an orc", **DRAW)
    with pytest.raises(BadInput, match="conditioning is 'pixels'"):
        editor.draw(template, "an orc", **DRAW, conditioning="pixels")
    with pytest.raises(BadInput, match=r"redraw box \(50, 0, 120, 64\) must lie inside 96x64"):
        editor.draw(template, "an orc", **DRAW, redraw=(50, 0, 120, 64))


def test_steps_are_reported_and_may_be_stopped(folder_parts: QwenEditFolder, template: Image.Image):
    class Stop(Exception):
        pass

    def stop_after_two(done: int, total: int) -> None:
        if (done, total) == (2, 5):
            raise Stop

    with pytest.raises(Stop):
        make(folder_parts, on_step=stop_after_two).draw(template, "an orc", seed=1, steps=5, guidance=1.0)


def test_lightning_is_used_for_short_drawings_only(folder_parts: QwenEditFolder, template: Image.Image, tmp_path: Path):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    name = "transformer_blocks.0.attn.to_q"
    file = tmp_path / "lightning.safetensors"
    save_file(
        {
            f"transformer.{name}.lora_A.weight": torch.randn(4, 48, generator=generator),
            f"transformer.{name}.lora_B.weight": torch.randn(48, 4, generator=generator),
        },
        file,
    )
    plain = make(folder_parts, keep=("transformer",))
    fast = make(folder_parts, keep=("transformer",), lightning=file)
    kwargs = {"seed": 1, "guidance": 4.0}
    assert np.array_equal(
        as_array(plain.draw(template, "an orc", steps=9, **kwargs)),
        as_array(fast.draw(template, "an orc", steps=9, **kwargs)),
    )
    assert not np.array_equal(
        as_array(plain.draw(template, "an orc", steps=4, **kwargs)),
        as_array(fast.draw(template, "an orc", steps=4, **kwargs)),
    )
    before = len(fast._encoded)
    fast.draw(template, "a ghost", steps=4, **kwargs)
    assert len(fast._encoded) == before + 1  # guidance is off: no negative prompt was encoded
    scheduler = lightning_scheduler()
    scheduler.set_timesteps(sigmas=np.array([1.0, 0.5]), mu=math.log(3))
    assert scheduler.sigmas.tolist() == pytest.approx([1.0, 0.75, 0.0])


def test_the_encoders_3d_positions_are_used(qwen_folder: Path, folder_parts: QwenEditFolder, template: Image.Image):
    processor = folder_parts.processor()
    text = "<|vision_start|><|image_pad|><|vision_end|>what is this"
    inputs = processor(text=[text], images=[template], return_tensors="pt")
    types = inputs.pop("mm_token_type_ids")
    fixed, bare = load_text_encoder(Loaded(), folder_parts), folder_parts.text_encoder()
    with torch.no_grad():
        right = bare(**inputs, mm_token_type_ids=types).logits
        assert torch.equal(fixed(**inputs).logits, right)
        assert not torch.equal(bare(**inputs).logits, right)


def test_sizes_and_packing_follow_diffusers():
    assert dimensions(1024 * 1024, 1.5) == (1248, 832)
    cells = torch.arange(4 * 6 * 8.0).reshape(1, 4, 1, 6, 8)
    ours = pack(cells)
    theirs = QwenImageEditPlusPipeline._pack_latents(cells, 1, 4, 6, 8)
    assert torch.equal(ours, theirs)
    assert torch.equal(unpack(ours, 6, 8), cells)


def test_words_are_called_unknown_only_by_models_with_a_closed_vocabulary(folder_parts: QwenEditFolder):
    assert make(folder_parts).unknown_words("a zeppelin") == ()
    assert make(folder_parts, unknown_words=lambda text: tuple(text.split()[1:])).unknown_words("a zeppelin") == (
        "zeppelin",
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_means_the_same_sheet_on_a_gpu(editor: QwenEdit, qwen_folder: Path, template: Image.Image):
    device = torch.device("cuda")
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated()
    parts = QwenEditFolder(qwen_folder, device, torch.float32)
    on_gpu = QwenEdit(parts, device, "tiny", vae_area=AREA, condition_area=SEEN)
    difference = np.abs(
        as_array(on_gpu.draw(template, "an orc", **DRAW)) - as_array(editor.draw(template, "an orc", **DRAW))
    )
    assert difference.mean() < 2
    on_gpu.unload()
    torch._C._cuda_clearCublasWorkspaces()
    tables = 8 << 20  # diffusers keeps rotary tables on the device, the process long
    assert torch.cuda.memory_allocated() < before + tables
