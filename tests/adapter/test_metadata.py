"""An adapter file says each setting under the name that other programs read it by."""

from __future__ import annotations

import json

from charengine.adapter.metadata import adapter_metadata, recipe_after, recipe_of_dataset
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
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.usage_hint": "write 'zorgax' in the prompt",
        "ss_v_parameterization": "False",
        "ss_zero_terminal_snr": "False",
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


def test_a_recipe_says_who_its_data_set_shows() -> None:
    asked = {"character": {"name": "Grisha", "prompt": "an orc"}, "engine_version": "0.1.0"}
    assert recipe_of_dataset(asked, "griqul", "orc woman", "d" * 64) == {
        "character": {"name": "Grisha", "prompt": "an orc", "trigger": "griqul", "class_noun": "orc woman"},
        "dataset_digest": "d" * 64,
        "engine_version": "0.1.0",
    }


TRAINED = {
    "character": {"name": "Grisha", "prompt": "an orc"},
    "profile": {"models": {"family": "sdxl"}, "train": {"steps": 100}, "sweep": {"seeds": 2}},
    "models": {"train": {"diffusion": "a"}},
    "seeds": {"train": 7},
    "dataset_digest": "d" * 64,
    "machines": [{"from_step": 0}],
    "engine_version": "0.1.0",
}
SWEPT = {
    "character": {"name": "griqul", "prompt": "griqul orc"},
    "profile": {"models": {"family": "sdxl"}, "sweep": {"seeds": 3}},
    "models": {"sweep": {"diffusion": "b"}},
    "seeds": {"sweep": 42},
    "dataset_digest": "e" * 64,
    "engine_version": "0.2.0",
}


def test_a_file_that_is_swept_goes_on_saying_how_it_was_trained() -> None:
    """Another command, profile or seed sweeps it; none of these trained it."""
    assert recipe_after(TRAINED, SWEPT) == {
        "character": {"name": "Grisha", "prompt": "an orc"},
        "profile": {"models": {"family": "sdxl"}, "train": {"steps": 100}, "sweep": {"seeds": 3}},
        "models": {"train": {"diffusion": "a"}, "sweep": {"diffusion": "b"}},
        "seeds": {"train": 7, "sweep": 42},
        "dataset_digest": "d" * 64,
        "machines": [{"from_step": 0}],
        "engine_version": "0.2.0",
    }


def test_a_file_that_says_nothing_of_its_making_says_how_it_was_swept() -> None:
    assert recipe_after({}, SWEPT) == SWEPT
    assert recipe_after({"profile": 7, "character": "x"}, {"seeds": {"sweep": 1}}) == {
        "profile": 7,
        "character": "x",
        "seeds": {"sweep": 1},
    }


def test_a_network_without_convolutions_names_none() -> None:
    for settings in (SETTINGS.model_copy(update={"conv_rank": 0}), SETTINGS.model_copy(update={"algorithm": "lora"})):
        assert "conv_dim" not in json.loads(metadata(settings)["ss_network_args"])
