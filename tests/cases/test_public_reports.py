"""What people reported of other programs, tried on ours (docs/public-reports.md has the whole list and how each was tried)."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from adapter_samples import LAYERS, parts_of, tiny_unet
from PIL import Image
from run_samples import doll, png, write_views

from charengine.adapter.files import by_module
from charengine.adapter.keys import sgm_names
from charengine.dataset.reading import class_pictures, read_dataset, read_views
from charengine.documents import read_yaml
from charengine.errors import BadInput, ConfigError
from charengine.pictures import read_picture
from charengine.store import Store

CAPTION = "griqul, orc woman, front view"


@pytest.fixture
def views(tmp_path: Path) -> Path:
    return write_views(tmp_path / "views", CAPTION)


def test_a_jpeg_that_is_called_png_is_read_for_what_it_is(tmp_path: Path) -> None:  # bmaltais/kohya_ss#1718
    buffer = io.BytesIO()
    doll().save(buffer, "JPEG", quality=95)
    (tmp_path / "front.png").write_bytes(buffer.getvalue())
    assert read_picture(tmp_path / "front.png", "picture").image.size == doll().size


def test_what_macos_leaves_beside_pictures_is_no_picture(views: Path, tmp_path: Path, store: Store) -> None:
    # OpenNeuroOrg/openneuro#2520, scverse/spatialdata-io#260
    before = read_views(views, store)
    for name in ("._front.png", "._front.txt", ".DS_Store", "Thumbs.db"):
        (views / name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (views / "__MACOSX").mkdir()
    (views / "__MACOSX" / "front.png").write_bytes(b"\x00\x05\x16\x07")
    assert read_views(views, store) == before and read_dataset(views, store).trigger == "griqul"
    classes = tmp_path / "classes"
    classes.mkdir()
    for name in ("._a.png", ".DS_Store", "recarray_from_file.fits", "a.npz"):  # d8ahazard/sd_dreambooth_extension#584
        (classes / name).write_bytes(b"no picture")
    with pytest.raises(BadInput, match="holds no PNG"):
        class_pictures(classes)
    (classes / "a.png").write_bytes(png(doll()))
    assert [path.name for path, _ in class_pictures(classes)] == ["a.png"]


def test_captions_may_end_in_caption_as_kohyas_scripts_want_them(views: Path, store: Store) -> None:
    # bmaltais/kohya_ss#1370: 758 captions were passed over, with a line in the log
    wanted = read_dataset(views, store)
    for path in views.glob("*.txt"):
        path.rename(path.with_suffix(".caption"))
    assert read_dataset(views, store) == wanted
    assert [text for _, text in class_pictures(views)] == [CAPTION] * 3


def test_a_caption_with_a_word_processors_quote_is_refused_with_its_line_before_anything_runs(
    views: Path, store: Store
) -> None:  # ostris/ai-toolkit#113: after 1,265 steps
    (views / "side.txt").write_bytes(b"griqul, orc woman,\nit\x92s from side")
    with pytest.raises(BadInput, match=r"side.txt is not UTF-8 text \(line 2\)"):
        read_dataset(views, store)


@pytest.mark.parametrize("path", ["C:\\Users\\me\\x.safetensors", "D:\\models\\x.safetensors", "\\\\server\\x"])
def test_a_windows_path_between_double_quotes_is_told_what_to_do(path: str) -> None:  # spack/spack#52358
    assert read_yaml(f"models: '{path}'", "p.yaml") == {"models": path} == read_yaml(f"models: {path}", "p.yaml")
    if path.startswith("\\"):
        return  # two backslashes are one, and \s is refused as the others are
    with pytest.raises(ConfigError, match="put a Windows path in single quotes"):
        read_yaml(f'models: "{path}"', "p.yaml")


def test_onetrainers_own_names_are_read(tmp_path: Path) -> None:  # Nerogar/OneTrainer#885
    unet = tiny_unet("meta")
    names = sgm_names(unet)
    tensors = {
        f"unet.{names[layer]}.{part}": value
        for layer in LAYERS
        for part, value in parts_of("LoRA", tuple(unet.get_submodule(layer).weight.shape)).items()
    }
    assert set(by_module(tensors, unet)) == set(LAYERS)


def test_a_picture_of_another_profile_and_depth_is_read(tmp_path: Path) -> None:  # bmaltais/kohya_ss#1574
    image = Image.new("CMYK", (64, 64), (0, 200, 200, 0))
    image.save(tmp_path / "front.jpg", icc_profile=b"broken profile" * 9)
    found = read_picture(tmp_path / "front.jpg", "picture").image
    red, green, _ = found.getpixel((32, 32))  # type: ignore[misc]
    assert found.mode == "RGB" and red > 200 > 120 > green


def test_norms_of_a_dora_are_held_along_the_axis_the_file_has(tmp_path: Path) -> None:  # KohakuBlueleaf/LyCORIS#216
    from charengine.adapter.parts import with_norms

    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    by_output, by_input = torch.full((5, 1), 2.0), torch.full((1, 3), 3.0)
    assert torch.allclose(with_norms(weight, by_output).norm(dim=1), torch.full((5,), 2.0))
    assert torch.allclose(with_norms(weight, by_input).norm(dim=0), torch.full((3,), 3.0))
