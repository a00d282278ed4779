"""An adapter file says each setting under the name that other programs read it by."""

from __future__ import annotations

import json

from charengine.adapter.metadata import adapter_metadata
from charengine.config import TrainSettings

SETTINGS = TrainSettings(
    rank=12,
    alpha=6.5,
    conv_rank=4,
    conv_alpha=2.5,
    dropout=0.125,
    steps=700,
    accumulate=3,
    optimizer="adamw",
    learning_rate=0.0007,
    schedule="cosine",
    warmup=20,
    weight_decay=0.01,
    max_grad_norm=0.75,
    min_snr_gamma=4.5,
    noise_offset=0.03,
    precision="bf16",
    caption_dropout=0.15,
)


def metadata(settings: TrainSettings = SETTINGS) -> dict[str, str]:
    return adapter_metadata(
        settings,
        name="Zorga",
        trigger="zorgax",
        captions={"front": "zorgax, orc, front view", "side": "zorgax, orc, profile", "back": "zorgax, orc, profile"},
        resolution=(320, 1024),
        step=350,
        seed=7,
        recipe={"dataset_digest": "d" * 64, "character": {"seed": 7}},
        class_images=5,
    )


def test_every_setting_stands_under_its_own_name() -> None:
    wanted = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_output_name": "Zorga",
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "12",
        "ss_network_alpha": "6.5",
        "ss_network_dropout": "0.125",
        "ss_learning_rate": "0.0007",
        "ss_unet_lr": "0.0007",
        "ss_optimizer": "adamw",
        "ss_lr_scheduler": "cosine",
        "ss_lr_warmup_steps": "20",
        "ss_max_train_steps": "700",
        "ss_steps": "350",
        "ss_seed": "7",
        "ss_min_snr_gamma": "4.5",
        "ss_noise_offset": "0.03",
        "ss_mixed_precision": "bf16",
        "ss_max_grad_norm": "0.75",
        "ss_gradient_accumulation_steps": "3",
        "ss_caption_dropout_rate": "0.15",
        "ss_num_train_images": "3",
        "ss_num_reg_images": "5",
        "ss_resolution": "(320, 1024)",
        "ss_training_comment": "trigger: zorgax",
        "modelspec.title": "Zorga",
        "modelspec.resolution": "320x1024",
        "modelspec.trigger_phrase": "zorgax",
        "modelspec.prediction_type": "epsilon",
        "charengine.version": "0.1.0",
    }
    told = metadata()
    assert {key: told.get(key) for key in wanted} == wanted


def test_the_network_the_tags_and_the_recipe_are_json() -> None:
    told = metadata()
    network = json.loads(told["ss_network_args"])
    assert (network["algo"], network["conv_dim"], network["conv_alpha"]) == ("locon", "4", "2.5")
    assert json.loads(told["ss_tag_frequency"]) == {"1_zorgax": {"zorgax": 3, "orc": 3, "front view": 1, "profile": 2}}
    assert json.loads(told["charengine.recipe"]) == {"dataset_digest": "d" * 64, "character": {"seed": 7}}


def test_a_network_without_convolutions_names_none() -> None:
    for settings in (SETTINGS.model_copy(update={"conv_rank": 0}), SETTINGS.model_copy(update={"algorithm": "lora"})):
        assert "conv_dim" not in json.loads(metadata(settings)["ss_network_args"])
