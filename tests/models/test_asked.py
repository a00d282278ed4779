"""Paths and files that people name for models, asked kindly: one sentence, whatever lies there."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from models import hollow
from safetensors.torch import save_file

from charengine.config import EditLora, ModelSettings, Profile
from charengine.errors import BadInput, EngineError
from charengine.models.classes import packaged_config
from charengine.models.fit import Configurations, check_fit
from charengine.models.identify import identify_path
from charengine.models.locate import take_stock
from charengine.models.places import model_files
from charengine.models.reading import read_state
from charengine.models.survey import survey
from charengine.profiles.loading import load_profile

FIELDS = ("edit", "edit_config", "vl", "vae", "lightning", "sdxl", "sdxl_config", "sdxl_vae", "tagger", "clip", "dino", "folders", "edit_loras")  # fmt: skip
ODD = ("a" * 300, "x/" * 3000, "~nobody-of-this-name/x", "a\0b", "loop/x", "/dev/null", "a\nb", "..")


@pytest.fixture(autouse=True)
def _odd_places(bare_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")


def asking_for(field: str, value: str) -> Profile:
    made = load_profile("sdxl-12gb", ["models.device=cpu"])
    given: object = (value,) if field == "folders" else (EditLora(file=value),) if field == "edit_loras" else value
    captions = made.caption.model_copy(update={"captioner": "wd14" if field == "tagger" else "vl"})
    return made.model_copy(update={"models": made.models.model_copy(update={field: given}), "caption": captions})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_a_path_that_cannot_be_asked_is_one_sentence_wherever_a_model_is_named(field: str, odd: str) -> None:
    try:
        survey(asking_for(field, odd))
    except EngineError as error:
        assert error.exit_status in (2, 3) and len(str(error)) < 2000


@pytest.mark.parametrize("name", ["COMFYUI_PATH", "HF_HOME", "HF_HUB_CACHE"])
@pytest.mark.parametrize("odd", ["a" * 300, "~nobody-of-this-name/x", "/dev/null"])
def test_a_place_of_the_environment_that_cannot_be_asked_is_passed_over(monkeypatch, name: str, odd: str) -> None:
    monkeypatch.setenv(name, odd)
    assert "edit" in take_stock(ModelSettings(family="sdxl")).missing


def test_a_folder_that_may_not_be_read_is_said_and_a_file_in_it_is_passed_over_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "models" / "diffusion_models" / "qwen_image_edit_2511.safetensors"
    locked.parent.mkdir(parents=True)
    locked.touch()
    real, opened = os.scandir, Path.open

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    def open_(self, *args, **kwargs):
        if self == locked:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    found = take_stock(ModelSettings(family="sdxl", folders=(str(tmp_path / "models"),)))
    assert "qwen_image_edit_2511.safetensors" in found.missing["edit"].describe()
    assert "Permission denied" in found.missing["edit"].describe()
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadInput, match=r"models.folders: .*locked: cannot be read \(Permission denied\)"):
        take_stock(ModelSettings(family="sdxl", folders=(str(tmp_path / "locked"),)))


def test_models_behind_links_to_folders_are_found_as_comfyui_finds_them_and_each_once(tmp_path: Path) -> None:
    disk, models = tmp_path / "disk", tmp_path / "models"
    (models / "checkpoints").mkdir(parents=True)
    (disk / "inner").mkdir(parents=True)
    for path in (disk / "a.safetensors", disk / "inner" / "b.safetensors"):
        path.touch()
    (models / "checkpoints" / "more").symlink_to(disk)
    (disk / "inner" / "back").symlink_to(disk)
    found = [file.name for _, file in model_files(ModelSettings(folders=(str(models),)))]
    assert found == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "{}", "\x00"])
@pytest.mark.parametrize("name", ["model_index.json", "config.json", "unet/diffusion_pytorch_model.safetensors.index.json"])  # fmt: skip
def test_a_damaged_configuration_of_a_model_folder_is_named_and_never_a_traceback(
    tmp_path: Path, name: str, text: str
) -> None:
    folder = tmp_path / "models" / "sdxl_edit_qwen_vae"
    (folder / "unet").mkdir(parents=True)
    if "/" in name:
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (folder / name).write_text(text)
    take_stock(ModelSettings(family="sdxl", folders=(str(tmp_path / "models"),)))  # one damaged folder stops no search
    with pytest.raises(BadInput):
        take_stock(ModelSettings(family="sdxl", sdxl=str(folder)))


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "a.bin", 5])
def test_an_index_names_shards_beside_it_alone(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadInput, match="names no safetensors files beside it"):
        identify_path(tmp_path)


# --- headers ---------------------------------------------------------------------------------------------------------

GARBAGE = (None, 5, -1, 1.5, "x", [], {}, True, [1], [[1]], 10**30, "F32")
NOTES = (b"{", b"[]", b"5", b"null", b'{"format": null}', b'{"format": ["x"]}', b"\xff", b"", b"[" * 5000, b'{"format": "int8_tensorwise", "convrot": 1, "convrot_groupsize": "a"}')  # fmt: skip
FILE_NOTES = ("{", "[]", "5", '{"layers": 5}', '{"layers": {"a": 5}}', '{"layers": {"a": {"format": [1]}}}')


def damaged_header(rng: random.Random) -> tuple[bytes, int, dict[int, bytes]]:
    """A real header with a few things wrong about it: its text, bytes of data, and the bytes that are really there."""
    shapes = dict(rng.choice((hollow.transformer(), hollow.shapes_of(hollow.states()["vae"], "BF16"), hollow.sdxl())))
    header: dict[str, object] = {}
    start, values = 0, {}
    for key, (dtype, shape) in shapes.items():
        size = hollow.WIDTHS[dtype] * int(torch.Size(shape).numel())
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    for _ in range(rng.randrange(1, 4)):
        key = rng.choice(list(shapes))
        way = rng.randrange(5)
        entry = header.get(key)
        if way == 0:
            header[key] = rng.choice(GARBAGE)
        elif way == 1 and isinstance(entry, dict):
            entry[rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(GARBAGE)
        elif way == 2:
            header["__metadata__"] = rng.choice((*GARBAGE, {"_quantization_metadata": rng.choice(FILE_NOTES)}))
        elif way == 3:
            note = rng.choice(NOTES)
            end = rng.choice((".comfy_quant", ".weight_scale", ".scale_weight"))
            header[key.removesuffix(".weight") + end] = {"dtype": "U8", "shape": [len(note)], "data_offsets": [start, start + len(note)]}  # fmt: skip
            values[start] = note
            start += len(note)
        else:
            header[rng.choice(("", "x" * 3000, "\x1b[31m", "transformer_blocks.-1.x"))] = {"dtype": "F16", "shape": [0], "data_offsets": [start, start]}  # fmt: skip
    text = json.dumps(header).encode()
    return rng.choice((text, text, text, text, b"[1]", b"null", b'{"a":' * 2000, b"[" * 100_000)), start, values


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_header_of_a_full_size_model_is_read_or_refused_in_a_sentence(tmp_path: Path, seed: int) -> None:
    text, size, values = damaged_header(random.Random(seed))
    path = tmp_path / "qwen_image_edit.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
        for start, data in values.items():
            file.seek(8 + len(text) + start)
            file.write(data)
    packaged = Configurations(packaged_config("qwen-image-edit"), packaged_config("sdxl"))
    try:
        check_fit(path, identify_path(path), packaged)
    except BadInput as error:
        assert "\x1b" not in str(error) and len(str(error)) < 1500


def test_a_scale_a_row_reaches_a_kernel_by_its_rows(tmp_path: Path) -> None:
    kernel = torch.randn(3, 2, 3, 3).to(torch.float8_e4m3fn)
    scale = torch.tensor([1.0, 2.0, 4.0])
    save_file({"conv.weight": kernel, "conv.weight_scale": scale}, tmp_path / "a.safetensors")
    state = read_state(tmp_path / "a.safetensors")
    assert torch.equal(state["conv.weight"], kernel.float() * scale.view(3, 1, 1, 1))
    save_file({"one": kernel[0, 0, 0, 0].clone(), "one.weight_scale": scale[1]}, tmp_path / "a.safetensors")
    identify_path(tmp_path / "a.safetensors")
    assert read_state(tmp_path / "a.safetensors")["one"] == 2 * kernel[0, 0, 0, 0].float()
    save_file({"conv.bias": torch.zeros(5), "conv.bias.scale_weight": torch.ones(3)}, tmp_path / "b.safetensors")
    with pytest.raises(BadInput, match="has 3 scales"):
        identify_path(tmp_path / "b.safetensors")


# --- Qwen-Image-2.1 --------------------------------------------------------------------------------------------------


def test_qwen_image_21_is_refused_by_name_with_its_licence_and_what_to_use(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

    from charengine.models.classes import on_meta

    shapes = hollow.shapes_of(hollow.meta(on_meta(lambda: QwenImage21Transformer2DModel(num_layers=1))), "BF16")
    folder = tmp_path / "diffusion_models"
    for prefix in ("", "model.diffusion_model."):
        named = {prefix + key: entry for key, entry in shapes.items()}
        hollow.write(folder / "qwen_image_2.1_int8_convrot.safetensors", named)
        told = take_stock(ModelSettings(family="sdxl", folders=(str(tmp_path),))).missing["edit"].describe()
        assert "qwen_image_2.1_int8_convrot.safetensors: is a transformer of Qwen-Image-2.1" in told
        assert "research and evaluation alone" in told and "use Qwen-Image-Edit-2511 (Apache-2.0)" in told
    vae = hollow.shapes_of(hollow.meta(on_meta(lambda: AutoencoderKLQwenImage21())), "BF16")
    path = hollow.write(tmp_path / "vae" / "qwen_image_2.1_vae.safetensors", vae)
    assert "Qwen-Image-2.1" in identify_path(path).title
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "model_index.json").write_text('{"_class_name": "QwenImage21Pipeline"}')
    with pytest.raises(BadInput, match=r"models.edit: .* pipeline folder of Qwen-Image-2.1, which is not used here"):
        take_stock(ModelSettings(family="sdxl", edit=str(tmp_path / "whole")))


@pytest.mark.parametrize("downloads", [True, False])
def test_qwen_image_21_is_refused_before_it_is_downloaded(downloads: bool) -> None:
    with pytest.raises(BadInput, match=r"Qwen/Qwen-Image-2.1 is Qwen-Image-2.1, which is not used here: its licence"):
        take_stock(ModelSettings(family="sdxl", edit="Qwen/Qwen-Image-2.1", allow_downloads=downloads))


def test_a_hub_id_that_is_not_the_recommended_one_is_given_no_licence_of_another(tmp_path: Path) -> None:
    missing = take_stock(ModelSettings(family="sdxl", edit="somebody/qwen-edit")).missing["edit"].problem
    assert "its licence: see its page" in missing and "Apache" not in missing
