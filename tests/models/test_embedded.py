"""`load` gives the four models of the embedded family, from any folders of its kind, and refuses what it cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from charengine.config import Profile
from charengine.embedded.making.family import build_random_family
from charengine.embedded.nearest import READING
from charengine.embedded.traits import sample_indices
from charengine.embedded.world import render_sheet
from charengine.errors import BadInput, ConfigError, MissingDependency
from charengine.likeness.prompts import FULL, QUICK, SHOWN
from charengine.models import Models, describe_all, known, load
from charengine.models.embedded_known import fingerprint
from charengine.models.loading import resolve_device
from charengine.models.usage import Usage
from charengine.profiles.loading import load_profile


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_family(tmp_path_factory.mktemp("family"), tiny=True)


def profile(family: Path, **models: Any) -> Profile:
    folders = {"edit": str(family / "qwen"), "sdxl": str(family / "sdxl"), "clip": str(family / "clip")}
    return Profile(name="test", models={"device": "cpu", **folders, **models})


@pytest.fixture
def models(family: Path) -> Models:
    return load(profile(family))


def test_the_four_models_work_together_on_a_sheet(models: Models):
    template = Image.new("RGB", (96, 96), "white")
    sheet = models.editor.draw(template, "an orc woman", seed=1, steps=2, guidance=2.0)
    assert sheet.size == (96, 96)
    found = models.captioner.describe(sheet)
    assert isinstance(found.raw, str)
    posterior = models.diffusion.encode_images([sheet])
    assert posterior.mean.shape == (1, 4, 12, 12)
    text = models.diffusion.encode_prompts(["an orc"])
    drawn = models.diffusion.sample(text, text, seeds=[1], size=(128, 192), steps=1, guidance=2.0)[0]
    assert drawn.size == (128, 192)
    assert models.embedder.embed_images([sheet, drawn]).shape[0] == 2
    assert abs(models.embedder.match([drawn], ["an orc"]).item()) <= 1


def test_the_shipped_captioner_answers_about_several_views_as_it_does_about_each():
    captioner = load(Profile(name="test", models={"device": "cpu"})).captioner
    pixels = render_sheet(sample_indices(1, torch.Generator().manual_seed(0)))[0].permute(1, 2, 0) * 255
    sheet = Image.fromarray(pixels.round().byte().numpy())
    views = [sheet.crop(box) for box in ((0, 0, 128, 384), (128, 40, 256, 384), (250, 0, 384, 370))]
    alone = [captioner.describe(view) for view in views]
    assert describe_all(captioner, views) == alone
    assert [found.facts["view"] for found in alone] == ["front", "side", "back"]


def test_a_reloaded_family_draws_the_same_sheet(family: Path):
    template = Image.new("RGB", (96, 96), "white")
    sheets = [
        np.asarray(load(profile(family)).editor.draw(template, "a robot", seed=4, steps=2, guidance=2.0))
        for _ in range(2)
    ]
    assert np.array_equal(*sheets)


def test_words_the_family_was_never_taught_are_named(models: Models):
    assert models.editor.unknown_words("a woman with a zeppelin") == ("zeppelin",)


def test_words_of_a_setting_that_are_drawn_as_they_stand_and_were_never_taught_are_named() -> None:
    usage = Usage(prompt_prefix="best quality", negative_prompt="blurry", few_words=READING)
    told = usage.untaught("sweep.prompts", "{subject} with a {class}, on a volcano", "{subject}, cloak, on a zeppelin")
    # a prompt of a sweep is not put into known words, as a character's is: its cloak is no robe
    assert told == ("sweep.prompts: the model was never taught these words and ignores them: cloak, zeppelin",)
    assert [line.partition(":")[0] for line in usage.untaught_of_its_own()] == [
        "models.prompt_prefix",
        "models.negative_prompt",
    ]
    assert [usage.untaught("sweep.prompts", *told) for told in ((), (*FULL, *QUICK, *SHOWN))] == [(), ()]
    assert Usage(negative_prompt="zeppelin").untaught_of_its_own() == ()


def test_the_base_is_said_to_know_few_words_and_what_it_draws_is_kept_apart(models: Models):
    assert models.diffusion.usage.known("elf, green cloak, with no shoes, boots") == "elf, green robe, barefoot, boots"
    assert Usage().known("elf, green cloak") == "elf, green cloak"
    assert models.diffusion.sampling_fingerprint != models.diffusion.fingerprint
    assert models.editor.fingerprint.endswith(
        f"|{READING}"
    )  # what was drawn of other words is not taken from the cache
    assert len({usage.digest() for usage in (Usage(), Usage(few_words="1"), Usage(few_words="2"), Usage("Pony"))}) == 4


def test_fp16_files_are_computed_in_full_precision(models: Models):
    assert models.diffusion.unet().dtype == torch.float32
    assert models.diffusion.encode_prompts(["a"]).embeds.dtype == torch.float32


def test_loading_a_profile_reads_no_weights(models: Models):
    for model in (models.editor, models.captioner, models.diffusion, models.embedder):
        assert not model._loaded._held  # type: ignore[attr-defined]


def test_a_fingerprint_follows_contents_and_not_places(family: Path, tmp_path: Path):
    copy = shutil.copytree(family / "clip", tmp_path / "elsewhere")
    assert fingerprint(copy) == fingerprint(family / "clip")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != fingerprint(family / "clip")


@pytest.mark.parametrize(
    "settings",
    [{}, {"prompt_prefix": "masterpiece", "prediction_type": "v_prediction"}, {"zero_terminal_snr": False}],
    ids=["as shipped", "read otherwise", "said outright"],
)
@pytest.mark.parametrize("shipped", [True, False])
def test_what_keys_need_is_known_without_the_models(family: Path, shipped: bool, settings: dict[str, Any]):
    asked = profile(family, **settings)
    if shipped:
        asked = Profile(name="test", models={"device": "cpu", **settings})
    models, without = load(asked), known(asked)
    assert without
    for name in ("editor", "captioner", "diffusion", "embedder", "reader", "onlooker"):
        assert getattr(without, name).fingerprint == getattr(models, name).fingerprint, name
    assert without.diffusion.sampling_fingerprint == models.diffusion.sampling_fingerprint
    assert without.diffusion.base_names == models.diffusion.base_names
    words = ["griqul", "griqulzix", "Zorvak 7", "ångström’s", "an orc woman, it's a  long\tone"]
    assert [*map(without.diffusion.count_tokens, words)] == [*map(models.diffusion.count_tokens, words)]


def test_models_whose_tokenizer_the_library_has_to_make_are_not_known_without_it(family: Path, tmp_path: Path):
    sdxl = Path(shutil.copytree(family / "sdxl", tmp_path / "sdxl"))
    (sdxl / "tokenizer" / "tokenizer.json").rename(sdxl / "tokenizer" / "vocab.json")
    assert known(profile(family, sdxl=str(sdxl))) is None
    assert known(load_profile("sdxl-12gb", ())) is None


def test_a_tokenizer_that_cannot_be_read_is_told_kindly(family: Path, tmp_path: Path):
    sdxl = Path(shutil.copytree(family / "sdxl", tmp_path / "sdxl"))
    (sdxl / "tokenizer" / "tokenizer.json").write_text("{")
    without = known(profile(family, sdxl=str(sdxl)))
    assert without
    with pytest.raises(BadInput, match=r"tokenizer\.json is no tokenizer"):
        without.diffusion.count_tokens("griqul")


def test_a_folder_without_a_part_is_named_with_what_to_do(family: Path, tmp_path: Path):
    copy = shutil.copytree(family / "sdxl", tmp_path / "sdxl")
    shutil.rmtree(copy / "unet")
    with pytest.raises(MissingDependency, match=r"models\.sdxl: .* has no unet: set models\.sdxl to"):
        load(profile(family, sdxl=str(copy)))


def test_settings_of_the_full_size_family_are_refused_all_at_once(family: Path):
    with pytest.raises(ConfigError) as caught:
        load(profile(family, lightning="fast.safetensors", dino="dino"))
    assert len(caught.value.problems) == 2
    assert "models.lightning" in str(caught.value)


def test_a_tagger_needs_its_folder(family: Path):
    settings = profile(family)
    wanted = settings.model_copy(update={"caption": settings.caption.model_copy(update={"captioner": "wd14"})})
    with pytest.raises(ConfigError, match=r"models\.tagger is empty"):
        load(wanted)


def test_a_device_that_is_not_there_is_refused():
    assert resolve_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto").type in ("cpu", "mps")
        with pytest.raises(BadInput, match=r"models\.device is 'cuda'"):
            resolve_device("cuda")
