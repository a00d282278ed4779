"""Words that people and files give: never a path, never two lines, and said in the captions they are trained with."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_samples import UNET, file_of, tensors_of, tiny_unet
from pydantic import ValidationError
from run_samples import doll, sample_dataset, write_views

from charengine.adapter.metadata import adapter_metadata
from charengine.config import Character, Profile, TrainSettings
from charengine.dataset.folder import export_dataset, with_edits
from charengine.dataset.reading import read_dataset
from charengine.errors import BadInput, ConfigError
from charengine.models.base_names import base_metadata
from charengine.run.folder import write_adapters
from charengine.run.starting_files import starting_problems
from charengine.stages.sweep.adapters import training_from_file
from charengine.store import Store
from charengine.wording import file_stem, holds_word, noun_problem, phrase_problem

PATHS = (
    "../../outside", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "c:evil", "x\0y", "{subject}", "a\nb", "a\n",
    " a", "",
)  # fmt: skip


@pytest.mark.parametrize("trigger", [*PATHS, "x" * 300, "\u202etxt", "...", "___"])
def test_a_trigger_found_in_a_file_is_never_a_path(tmp_path: Path, trigger: str) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of(tensors_of(tiny_unet()), **{"modelspec.trigger_phrase": trigger}))
    with pytest.raises(BadInput, match="trigger"):
        training_from_file(path, Store(tmp_path / "store"), class_noun="woman")
    assert training_from_file(path, Store(tmp_path / "store"), trigger="griqul", class_noun="woman").trigger == "griqul"


@pytest.mark.parametrize("noun", ["orc\nwoman", "orc\n", "../x", "a, b", "x" * 65, "{subject}", "", "orc\t", "\u2028"])
def test_a_class_noun_is_a_few_words_in_one_line(noun: str) -> None:
    assert noun_problem(noun)
    if noun:
        with pytest.raises(ValidationError, match="class noun"):
            Character(name="A", prompt="an orc", class_noun=noun)


@pytest.mark.parametrize(
    "noun", ["woman", "orc woman", "half-elf", "T-800 robot", "cat's doll", "女", "1girl", "man (old)"]
)
def test_ordinary_class_nouns_are_taken(noun: str) -> None:
    assert Character(name="A", prompt="an orc", class_noun=noun).class_noun == noun


@pytest.mark.parametrize("field", ["name", "trigger", "class_noun"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\x00", "\u2028"])
def test_a_word_with_a_line_break_at_its_end_is_refused(field: str, end: str) -> None:
    with pytest.raises(ValidationError, match="is not allowed"):
        Character.model_validate({"name": "A", "prompt": "an orc", field: f"griqul{end}"})


def test_file_names_come_from_words_but_are_no_paths(tmp_path: Path) -> None:
    from run_samples import sample_run

    store, out = Store(tmp_path / "store"), tmp_path / "deep" / "out"
    sweep = sample_run(store).sweep
    for trigger in (*PATHS, "ohwx woman", "con", "LPT1", "é", "x" * 300):
        for path in write_adapters(sweep, trigger, out, store):
            assert path.parent == (out / "adapters").resolve() and path.is_file()
            assert path.stem.removesuffix("_recommended").lower() not in ("con", "lpt1", "")
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    assert file_stem("ohwx woman") == "ohwx_woman" and file_stem("griqul") == "griqul"


@pytest.mark.parametrize("phrase", ["griqul", "ohwx woman", "Zorgal_v2", "1girl, zorgal", "sks (style)", "аня"])
def test_phrases_of_other_trainers_are_taken(phrase: str) -> None:
    assert phrase_problem(phrase) == "" and phrase_problem(f"{phrase}/../x")


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("zzqo, woman", True),
        ("a woman, ZZQO", True),
        ("zzqos, woman", False),
        ("azzqo", False),
        ("zzqo_x", False),
        ("zz qo", False),
        ("zzqo's hat", True),
        ("", False),
    ],
)
def test_a_trigger_is_held_as_a_word_of_its_own(text: str, holds: bool) -> None:
    assert holds_word(text, "zzqo") is holds


def _folder(tmp_path: Path, **captions: str) -> Path:
    folder = write_views(tmp_path / "views", "zzqo, woman, {view} view")
    for view, text in captions.items():
        (folder / f"{view}.txt").write_text(text, encoding="utf-8")
    return folder


def test_captions_that_never_say_the_trigger_are_warned_of(tmp_path: Path) -> None:
    folder = _folder(tmp_path, **{view: f"other, woman, {view} view" for view in ("front", "side", "back")})
    dataset = read_dataset(folder, Store(tmp_path / "store"), "zzqo", "woman")
    assert len(dataset.warnings) == 1 and "no caption holds the trigger 'zzqo'" in dataset.warnings[0]


def test_the_one_caption_that_holds_the_trigger_only_inside_a_word_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, side="zzqos, woman", back="a woman from behind")
    side, back = read_dataset(folder, Store(tmp_path / "store"), "zzqo", "woman").warnings
    assert side.startswith("the side caption does not hold the trigger 'zzqo'") and "only inside another" in side
    assert back == "the back caption does not hold the trigger 'zzqo'"
    assert read_dataset(_again(folder), Store(tmp_path / "store"), "zzqo", "woman").warnings == ()


def _again(folder: Path) -> Path:
    for view in ("side", "back"):
        (folder / f"{view}.txt").write_text("zzqo, woman", encoding="utf-8")
    return folder


def test_an_edited_caption_of_a_run_is_warned_of_when_the_trigger_is_part_of_a_word(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    dataset = sample_dataset(store)
    paths = export_dataset(dataset, tmp_path / "dataset", store)
    [front] = [path for path in paths if path.name == "front.txt"]
    front.write_text("zorgaxes, orc", encoding="utf-8")
    [warning] = with_edits(dataset, tmp_path / "dataset").warnings
    assert "the edited front caption does not hold the trigger 'zorgax'" in warning


@pytest.mark.parametrize("head", ["../../x, woman", "a/b, woman", "x, ../y"])
def test_the_first_words_of_captions_are_no_paths_either(tmp_path: Path, head: str) -> None:
    folder = _folder(tmp_path, **dict.fromkeys(("front", "side", "back"), head))
    with pytest.raises(ConfigError, match="is not allowed"):
        read_dataset(folder, Store(tmp_path / "store"))


# --- files that training starts from ----------------------------------------------------------------------------------


def profile_of(tmp_path: Path, **train: object) -> Profile:
    config = tmp_path / "sdxl" / "unet" / "config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(UNET), encoding="utf-8")
    settings = TrainSettings.model_validate({"rank": 4, "conv_rank": 4, **train})
    return Profile.model_validate({"name": "x", "models": {"sdxl": str(tmp_path / "sdxl")}, "train": settings})


def test_the_file_to_start_from_is_looked_at_before_any_stage(tmp_path: Path) -> None:
    unet, path = tiny_unet(), tmp_path / "adapter.safetensors"
    tensors = tensors_of(unet)
    path.write_bytes(file_of(tensors))
    start = {"continue_from": str(path)}
    assert starting_problems(profile_of(tmp_path, **start)) == []
    cases = {
        "does not exist": ({"continue_from": str(tmp_path / "none.safetensors")}, tensors),
        "set train.algorithm=locon": ({**start, "algorithm": "lokr"}, tensors),
        "set train.rank=2": ({**start, "rank": 1}, tensors),
        "adapts convolutions": ({**start, "conv_rank": 0}, tensors),
        "not finite": (start, {key: value / 0 for key, value in tensors.items()}),
        "holds values of up to": (start, {key: value * 1e30 for key, value in tensors.items()}),
        "changes weights by up to": (
            start,
            {key: value * (1 if "alpha" in key else 300) for key, value in tensors.items()},
        ),
        "made for another model": (start, {key: _wider(key, value) for key, value in tensors.items()}),
        "is not supported": (start, {"lora_unet_middle_block_1_proj_in.oft_blocks": torch.ones(2, 2)}),
        "no U-Net adapter": (start, {"lora_te1_x.alpha": torch.ones(1)}),
        "never trained here": (start, tensors_of(unet, layers=("conv_in",))),
    }
    for words, (train, content) in cases.items():
        path.write_bytes(file_of(content))
        [problem] = starting_problems(profile_of(tmp_path, **train))
        assert words in problem and "train.continue_from" in problem


def _wider(key: str, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([value, value], dim=1) if key.endswith("lora_down.weight") else value


def test_the_folder_of_class_images_is_looked_at_before_any_stage(tmp_path: Path) -> None:
    folder = tmp_path / "class"
    settings = {"regularisation": str(folder)}
    assert "cannot be read" in starting_problems(profile_of(tmp_path, **settings))[0]
    folder.mkdir()
    assert "holds no PNG" in starting_problems(profile_of(tmp_path, **settings))[0]
    doll().save(folder / "a.png")
    assert starting_problems(profile_of(tmp_path, **settings)) == []
    (folder / "b.jpg").write_bytes(b"no picture")
    assert "b.jpg" in starting_problems(profile_of(tmp_path, **settings))[0]


# --- metadata of our own ----------------------------------------------------------------------------------------------


def _metadata(**more: object) -> dict[str, str]:
    captions = {"front": "griqul, woman", "side": "griqul, woman", "back": "griqul, woman"}
    return adapter_metadata(
        TrainSettings(), name="A", trigger="griqul", captions=captions, resolution=(64, 128), step=4, seed=1, **more
    )


def test_the_base_checkpoint_is_named_and_hashed_as_sd_scripts_does(tmp_path: Path) -> None:
    content = bytes(range(256)) * 6000  # 1.5 MB: past the 64 KiB that the old hash reads
    path = tmp_path / "illustriousXL_v01.safetensors"
    path.write_bytes(content)
    named = _metadata(base=base_metadata(path, tmp_path / "fingerprints.json"))
    assert named["ss_sd_model_name"] == "illustriousXL_v01.safetensors"
    assert named["ss_sd_model_hash"] == hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert named["ss_new_sd_model_hash"] == hashlib.sha256(content).hexdigest()
    assert base_metadata(tmp_path, tmp_path / "fingerprints.json") == {"ss_sd_model_name": tmp_path.name}
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    assert not any(key.startswith("ss_sd_model") for key in _metadata())
