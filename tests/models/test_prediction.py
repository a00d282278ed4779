"""Epsilon or v-prediction: told by what files say, else by the U-Net's own loss; and how families want to be prompted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import hollow

from charengine.config import ModelSettings
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.models import prediction_probe
from charengine.models.prediction import Prediction, prediction_of, target
from charengine.models.prediction_probe import high_noise_losses, kind_by_losses, measured_prediction
from charengine.models.usage import usage_of

AUTO = ModelSettings(family="sdxl")
KEY = "model.diffusion_model.input_blocks.0.0.weight"


def checkpoint(path: Path, *keys: str, **metadata: str) -> Path:
    shapes = {KEY: ("F16", (320, 4, 3, 3))} | {key: ("F32", (0,)) for key in keys}
    return hollow.write(path, shapes, metadata={key.replace("__", "."): value for key, value in metadata.items()})


@pytest.mark.parametrize(
    ("name", "keys", "metadata", "expected"),
    [
        ("a", ["v_pred"], {}, Prediction("v_prediction")),
        ("a", ["v_pred", "ztsnr"], {}, Prediction("v_prediction", True)),
        ("a", [], {"modelspec__prediction_type": "v"}, Prediction("v_prediction")),
        ("a", [], {"modelspec__predict_key": "v"}, Prediction("v_prediction")),
        ("a", [], {"predict_key": "v"}, Prediction("v_prediction")),
        ("a", [], {"modelspec__prediction_type": "epsilon"}, Prediction()),
        ("a", [], {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, Prediction("v_prediction", True)),
        ("NoobAI-XL-Vpred-v1.0", [], {}, Prediction("v_prediction", True)),
        ("someMix_vPred", [], {}, Prediction("v_prediction")),
        ("NoobAI-XL-epsPred", [], {}, Prediction()),
        ("sd_xl_base_1.0", [], {}, Prediction()),
        ("waiIllustrious_v140", [], {}, None),
    ],
)
def test_what_a_checkpoint_predicts_is_told_by_its_keys_metadata_and_name(
    tmp_path, name, keys, metadata, expected
) -> None:
    assert prediction_of(checkpoint(tmp_path / f"{name}.safetensors", *keys, **metadata), AUTO) == expected


def test_a_diffusers_folder_says_it_in_its_scheduler(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text('{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}')
    assert prediction_of(tmp_path, AUTO) == Prediction("v_prediction", True)
    file.write_text('{"prediction_type": "sample"}')
    with pytest.raises(
        BadInput, match=r"prediction_type is 'sample'; only epsilon and v_prediction .*models.prediction_type"
    ):
        prediction_of(tmp_path, AUTO)


def test_the_setting_wins_over_the_file(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.safetensors", "v_pred", "ztsnr")
    assert prediction_of(file, AUTO.model_copy(update={"prediction_type": "epsilon"})) == Prediction()
    assert prediction_of(file, AUTO.model_copy(update={"zero_terminal_snr": False})) == Prediction("v_prediction")
    with pytest.raises(BadInput, match="models.zero_terminal_snr is true for an epsilon model"):
        prediction_of(file, AUTO.model_copy(update={"prediction_type": "epsilon", "zero_terminal_snr": True}))


def test_the_setting_is_the_remedy_for_unknown_metadata_and_contradictions_are_said(tmp_path) -> None:
    file = checkpoint(tmp_path / "a.safetensors", modelspec__prediction_type="sample")
    with pytest.raises(BadInput, match="is 'sample'; only .*models.prediction_type"):
        prediction_of(file, AUTO)
    found = prediction_of(file, AUTO.model_copy(update={"prediction_type": "v_prediction"}))
    assert found == Prediction("v_prediction") and "models.prediction_type; the file: " in found.source
    stale = prediction_of(checkpoint(tmp_path / "vpred.safetensors", predict_key="epsilon"), AUTO)
    assert stale == Prediction() and "its name says v" in stale.describe()


def test_what_is_measured_gets_its_schedule_and_epsilon_never_zero_snr(tmp_path) -> None:
    file, v = checkpoint(tmp_path / "a.safetensors", "ztsnr"), Prediction("v_prediction")
    assert prediction_of(file, AUTO) is None and prediction_of(file, AUTO, Prediction()) == Prediction()
    assert prediction_of(file, AUTO, v) == Prediction("v_prediction", True)
    assert prediction_of(file, AUTO.model_copy(update={"prediction_type": "v_prediction"})).zero_terminal_snr
    with pytest.raises(BadInput, match="true for an epsilon model.*learns nothing"):
        prediction_of(file, AUTO.model_copy(update={"zero_terminal_snr": True}), Prediction())


def test_the_velocity_leads_from_noise_to_picture() -> None:
    """Salimans & Ho: with x_t = √ᾱ·x + √(1−ᾱ)·ε and v, √ᾱ·x_t − √(1−ᾱ)·v = x, and √(1−ᾱ)·x_t + √ᾱ·v = ε."""
    latents, noise = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    alpha = torch.tensor([0.9, 0.1], dtype=torch.float64).view(2, 1, 1, 1)
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    noisy, v = signal * latents + sigma * noise, target("v_prediction", latents, noise, signal, sigma)
    torch.testing.assert_close(signal * noisy - sigma * v, latents)
    torch.testing.assert_close(sigma * noisy + signal * v, noise)
    assert target("epsilon", latents, noise, signal, sigma) is noise


class Trained:
    """`SDXLParts` of a small U-Net trained for a moment on grey pictures, towards one target or the other."""

    def __init__(self, kind: str) -> None:
        from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

        torch.manual_seed(0)
        self.loads = 0
        self.alphas = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).alphas_cumprod
        self.model = UNet2DConditionModel(
            block_out_channels=(16, 16), layers_per_block=1, transformer_layers_per_block=(1, 1), norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8, cross_attention_dim=16,
        )  # fmt: skip
        optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-3)
        for _ in range(60):
            steps = torch.randint(500, 1000, (8,))
            noise, latents = torch.randn(8, 4, 8, 8), 0.8 * torch.randn(8, 4, 1, 1).expand(8, 4, 8, 8)
            alphas = self.alphas[steps].view(-1, 1, 1, 1)
            signal, sigma = alphas.sqrt(), (1 - alphas).sqrt()
            added = {"text_embeds": torch.zeros(8, 16), "time_ids": torch.full((8, 6), 64.0)}
            noisy = signal * latents + sigma * noise
            answer = self.model(noisy, steps, torch.zeros(8, 4, 16), added_cond_kwargs=added).sample
            loss = (answer - target(kind, latents, noise, signal, sigma)).square().mean()  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def unet(self):
        self.loads += 1
        return self.model

    def scheduler(self):
        return self


Trained.alphas_cumprod = property(lambda self: self.alphas)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_base_that_says_nothing_is_told_apart_by_its_loss_at_high_noise_once(
    tmp_path: Path, monkeypatch, kind: str
) -> None:
    monkeypatch.setattr(prediction_probe, "CELLS", 8)
    parts, home = Trained(kind), Home(tmp_path)
    losses = high_noise_losses(parts.model, parts.alphas, cells=8)
    assert losses[kind] < 0.5 < losses["v_prediction" if kind == "epsilon" else "epsilon"], losses
    for _ in range(2):
        assert measured_prediction(parts, torch.device("cpu"), "digest", home) == Prediction(kind)  # type: ignore[arg-type]
    assert parts.loads == 1
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"digest": kind}
    for weights in parts.model.conv_out.parameters():
        weights.data.zero_()
    with pytest.raises(BadInput, match="nothing but zeros"):
        high_noise_losses(parts.model, parts.alphas, cells=8)


def test_a_base_that_meets_neither_target_is_refused() -> None:
    with pytest.raises(BadInput, match=r"predicts neither the noise \(loss 1.20\) nor the velocity \(loss 3.00\)"):
        kind_by_losses({"epsilon": 1.2, "v_prediction": 3.0})


@pytest.mark.parametrize(
    ("name", "metadata", "family", "prefix"),
    [
        ("ponyDiffusionV6XL", {}, "Pony", "score_9"),
        ("Illustrious-XL-v2.0", {}, "Illustrious", "masterpiece"),
        ("noobaiXLNAIXL_vPred10", {}, "NoobAI", "newest"),
        ("merge", {"modelspec__title": "NoobAI-XL merge"}, "NoobAI", "newest"),
        ("juggernautXL_v9", {}, "", ""),
    ],
)
def test_a_family_brings_its_quality_tags_and_its_negative_prompt(tmp_path, name, metadata, family, prefix) -> None:
    usage = usage_of(checkpoint(tmp_path / f"{name}.safetensors", **metadata), AUTO)
    assert usage.family == family and prefix in usage.prompt_prefix and bool(usage.negative_prompt) == bool(family)
    assert usage.prompt("an orc").endswith("an orc") and ("," in usage.prompt("an orc")) == bool(family)


def test_prefix_and_negative_prompt_can_be_set_or_emptied(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "pony.safetensors")
    mine = AUTO.model_copy(update={"prompt_prefix": "", "negative_prompt": "ugly"})
    usage = usage_of(file, mine)
    assert (usage.prompt("an orc"), usage.negative_prompt) == ("an orc", "ugly")


@pytest.mark.parametrize(
    ("name", "method", "steps", "guidance"),
    [
        ("sdxl_lightning_4step", "SDXL-Lightning", 4, 2.0),
        ("DreamShaperXL_Turbo_v2", "Turbo", 8, 2.0),
        ("Hyper-SDXL-8steps", "Hyper-SD", 8, 1.5),
        ("lustify_DMD2", "DMD2", 8, 1.0),
        ("juggernautXL_v9", "", 20, 5.0),
    ],
)
def test_distilled_checkpoints_get_their_steps_and_guidance(tmp_path, name, method, steps, guidance) -> None:
    usage = usage_of(checkpoint(tmp_path / f"{name}.safetensors"), AUTO)
    assert (usage.distilled, usage.steps(20), usage.guidance(5.0)) == (method, steps, guidance)
    assert usage.steps(2) == 2
