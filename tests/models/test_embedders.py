"""Embedders prepare pictures as transformers does, and give normalised, batch-independent rows."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from charengine.errors import BadInput, MissingDependency, StageFailed
from charengine.models.embedders import ClipEmbedder, DinoEmbedder, PairEmbedder, Preparation

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(clip_folder: Path) -> ClipEmbedder:
    return ClipEmbedder(clip_folder, CPU, torch.float32, "c", letterbox=False)


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 90), (64, 64), (75, 33)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("name", ["clip_folder", "dino_folder"])
def test_pictures_are_prepared_as_transformers_prepares_them(
    name: str, request: pytest.FixtureRequest, pictures: list[Image.Image]
):
    folder = request.getfixturevalue(name)
    kind = CLIPImageProcessorPil if name == "clip_folder" else BitImageProcessorPil
    theirs = kind.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    torch.testing.assert_close(Preparation.from_folder(folder, letterbox=False)(pictures), theirs, atol=1e-5, rtol=0)


def test_a_letterboxed_figure_keeps_its_head_and_feet():
    tall = Image.new("RGB", (32, 96), "black")
    tall.paste("red", (0, 0, 32, 8))
    boxed, cropped = (
        Preparation(32, (32, 32), (0.0,) * 3, (1.0,) * 3, Image.Resampling.NEAREST, letterbox=flag)([tall])[0]
        for flag in (True, False)
    )
    assert boxed[:, 0, 16].tolist() == [1.0, 0.0, 0.0]
    assert boxed[:, 16, 0].tolist() == [1.0, 1.0, 1.0]
    assert boxed[:, 31, 16].tolist() == [0.0, 0.0, 0.0]
    assert cropped.max() == 0


def test_match_is_the_cosine_of_clips_own_projections(
    clip: ClipEmbedder, clip_folder: Path, pictures: list[Image.Image]
):
    texts = ["a robot", "an elf with a lantern", "a robot"]
    model = CLIPModel.from_pretrained(clip_folder)
    tokens = clip._load_tokenizer()(texts, padding=True, return_tensors="pt")
    pixels = Preparation.from_folder(clip_folder, letterbox=False)(pictures)
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(clip.match(pictures, texts), logits.diagonal(), atol=1e-6, rtol=1e-5)


def test_a_picture_asked_for_with_many_texts_is_prepared_once(
    clip: ClipEmbedder, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    texts = ["a red coat", "a castle"]
    each = [clip.match([picture], [text]).item() for picture in pictures for text in texts]
    fit, seen = Preparation._fit, []
    monkeypatch.setattr(Preparation, "_fit", lambda self, image: (seen.append(image.size), fit(self, image))[1])
    grid = clip.match([picture for picture in pictures for _ in texts], texts * len(pictures))
    assert grid.tolist() == pytest.approx(each, abs=1e-6)
    assert seen == [picture.size for picture in pictures]


def test_identity_rows_are_unit_length_and_do_not_depend_on_the_batch(
    clip: ClipEmbedder, dino_folder: Path, pictures: list[Image.Image]
):
    for embedder in (clip, DinoEmbedder(dino_folder, CPU, torch.float32, "d")):
        rows = embedder.embed_images(pictures * 12)  # more than one pass
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(36))
        torch.testing.assert_close(rows[35], embedder.embed_images([pictures[2]])[0], atol=1e-5, rtol=1e-4)
        assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_dino_uses_the_class_token(dino_folder: Path, pictures: list[Image.Image]):
    embedder = DinoEmbedder(dino_folder, CPU, torch.float32, "d", letterbox=False)
    model = Dinov2Model.from_pretrained(dino_folder)
    with torch.no_grad():
        token = model(Preparation.from_folder(dino_folder, letterbox=False)(pictures)).pooler_output
    torch.testing.assert_close(embedder.embed_images(pictures), torch.nn.functional.normalize(token, dim=-1))


def test_a_pair_takes_identity_from_one_and_adherence_from_the_other(
    clip: ClipEmbedder, dino_folder: Path, pictures: list[Image.Image]
):
    dino = DinoEmbedder(dino_folder, CPU, torch.float32, "d")
    pair = PairEmbedder(dino, clip)
    assert torch.equal(pair.embed_images(pictures), dino.embed_images(pictures))
    assert torch.equal(pair.match(pictures, ["a"] * 3), clip.match(pictures, ["a"] * 3))
    assert pair.fingerprint == "d+c"


def test_what_cannot_be_embedded_is_refused(clip: ClipEmbedder, pictures: list[Image.Image], tmp_path: Path):
    with pytest.raises(BadInput, match="3 images and 2 texts"):
        clip.match(pictures, ["a", "b"])
    with pytest.raises(BadInput, match="no images"):
        clip.embed_images([])
    with pytest.raises(MissingDependency, match=r"no preprocessor_config\.json"):
        Preparation.from_folder(tmp_path, letterbox=False)


def test_unloading_frees_the_weights(clip: ClipEmbedder, pictures: list[Image.Image]):
    assert not clip._loaded._held
    clip.match(pictures[:1], ["a"])
    watch = weakref.ref(clip._model())
    clip.unload()
    gc.collect()
    assert watch() is None


def test_a_model_that_answers_with_no_number_is_told_with_its_folder(clip: ClipEmbedder, pictures: list[Image.Image]):
    with torch.no_grad():
        for part in (clip._model().visual_projection, clip._model().text_projection):
            part.weight.fill_(float("nan"))
    for ask in (lambda: clip.embed_images(pictures), lambda: clip.embed_texts(["an orc"])):
        with pytest.raises(StageFailed, match=f"{clip.folder}: this model.* answered with NaN.* set models.clip"):
            ask()
