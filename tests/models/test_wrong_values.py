"""Wrong values beside weights: said before anything runs, by doctor and run alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_samples import profile

from charengine.errors import EngineError
from charengine.models import classes, load
from charengine.models.skeleton import unet_skeleton
from charengine.services.doctor import examine

pytestmark = pytest.mark.usefixtures("bare_machine")
NOTHING, NAN = "describes nothing that works", float("nan")
UNET, VAE, SCHEDULE = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"


def refused(comfyui: Path, told: str, **models: Any) -> None:
    asked = profile(comfyui, **models)
    with pytest.raises(EngineError, match=told) as caught:
        load(asked)
    assert not (report := examine(asked)).ready and str(caught.value).splitlines()[0] in str(report)


def changed(source: Path, target: Path, name: str, change: dict[str, Any] | str) -> str:
    shutil.copytree(source, target)
    file = target / name
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    return str(target)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[(UNET, {"block_out_channels": value}) for value in ([-32, 64], "x")],
        (UNET, {"act_fn": "nonsense"}),
        ("text_encoder/config.json", {"hidden_size": "a"}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**7}),
        (VAE, {"latent_channels": None}),
        *[(VAE, {"scaling_factor": value}) for value in ("abc", None, 0, -0.1, NAN, float("inf"))],
        *[(SCHEDULE, {"num_train_timesteps": value}) for value in ("x", 0, 500)],
        (SCHEDULE, {"beta_schedule": "nope"}),
        *[("tokenizer_2/tokenizer_config.json", text) for text in ("", "{}", "[]")],
    ],
)
def test_a_wrong_value_in_an_sdxl_folder_is_the_files(comfyui, sdxl_folder, tmp_path, name, change) -> None:
    folder = changed(sdxl_folder, tmp_path / "sdxl", name, change)
    refused(comfyui, f"{name.partition('/')[0]}.*{NOTHING}", sdxl=folder)
    if "act_fn" in change:
        with pytest.raises(EngineError, match=NOTHING):
            unet_skeleton(profile(comfyui, sdxl=folder).models)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("transformer/config.json", {"axes_dims_rope": [1, 2]}),
        (SCHEDULE, {"base_shift": "x"}),
    ],
)
def test_a_wrong_value_in_the_edit_models_configuration_is_the_files(comfyui, tmp_path, name, change) -> None:
    refused(comfyui, NOTHING, edit_config=changed(comfyui.parent / "configs/qwen", tmp_path / "q", name, change))


def test_a_folder_without_a_schedule_has_the_published_one(comfyui: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    folder = changed(sdxl_folder, tmp_path / "sdxl", SCHEDULE, "{}")
    shutil.rmtree(tmp_path / "sdxl/scheduler")
    asked = profile(comfyui, sdxl=folder, prediction_type="epsilon")
    published = classes.sdxl_schedule(classes.packaged_config("sdxl")).alphas_cumprod
    assert torch.equal(load(asked).diffusion.alphas_cumprod(), published)
    told = str(examine(asked, "full.yaml"))
    assert "profile   full.yaml\n" in told and told.endswith("profile full.yaml is ready")


@pytest.mark.parametrize("field", ["edit_config", "sdxl_config"])
def test_a_folder_of_configurations_that_holds_none_is_not_passed_over(comfyui, tmp_path, field) -> None:
    for place in (tmp_path, Path(__file__), tmp_path / "nowhere"):
        refused(comfyui, f"models.{field}: .*give a diffusers folder", **{field: str(place)})
