"""What cannot work together is refused before anything is drawn; what changes nothing is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from charengine.cli.stages import of_the_prompt
from charengine.config import Character, TrainSettings
from charengine.errors import ConfigError
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile
from charengine.run.before_the_sweep import foretell, sweep_problems
from charengine.run.request import RunRequest, check
from charengine.run.workspace import Workspace
from charengine.stages.train.schedule import min_snr_weights, warmup_warnings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.algorithm=dora", "train.dropout=0.1"], "dropout=0.1 works with locon and lora, not dora; set it to 0"),
        (["train.algorithm=loha", "train.fp8_base=true"], "fp8_base=true works with locon and lora, not loha"),
        (["crop.bucket_step=12"], "crop.bucket_step: got 12; give a whole number, 8 to 128, a multiple of 8"),
        (["sweep.guided_above=5", "sweep.guided_below=5"], "guided_above=5 and guided_below=5 leave no noise"),
        (
            ["sheet.width=96", "sheet.height=2048"],
            "boxes of 32x2048 pixels, in which nobody can stand; give a width of 1024 to 2048 with",
        ),
        (["sheet.width=160"], "give a width of 192 to 2048 with this height, e.g. 384"),
        (["sheet.height=96", "sheet.width=592"], "give a width of 96 to 576 with this height"),
        (["sweep.prompts=['{subject} and {foo}']"], "'{subject} and {foo}' holds a '{' that nothing fills"),
        (["sweep.prompts=['{{subject}}, forest']"], "holds a '{' that nothing fills"),
        (["sweep.prompts=['{subject}, forest', '{subject},  forest']"], "prompts has '{subject}, forest' twice"),
        (["train.max_grad_norm=1e-300"], "max_grad_norm=1e-300 leaves nothing of every gradient"),
        (
            ["train.min_snr_gamma=1e-300"],
            "min_snr_gamma=1e-300 leaves nothing of every loss, so nothing would be learnt; give 0 (off), or 0.001",
        ),
        (["sweep.strengths=[0, 1e-300]"], "strengths has 1e-300, at which an adapter draws what the base model does"),
        (["train.learning_rate=1e-300"], "train.learning_rate: got 1e-300; give a number, 1e-09 to 10, e.g. 0.001"),
        (["train.alpha=1e-300"], "train.alpha: got 1e-300; give a number, 0.0001 to 256, e.g. 8"),
        (["train.conv_alpha=1e-46"], "train.conv_alpha: got 1e-46; give a number, 0.0001 to 256, e.g. 4"),
        (["train.dropout=0.9999999999"], "train.dropout: got 0.9999999999; give a number, 0 to 0.99, e.g. 0"),
        (["caption.keep=[Hat]", "caption.drop=[hat]"], "'hat' stands in keep and in drop"),
    ],
)
def test_settings_that_cannot_work_together_are_no_profile(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_profile("embedded", settings)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.learning_rate=1e-9", "train.alpha=1e-4", "train.conv_alpha=1e-4", "train.dropout=0.99"],
        [
            "train.max_grad_norm=1e-6",
            "train.min_snr_gamma=1e-3",
            "sweep.strengths=[0.001]",
            "train.weight_decay=1e-300",
        ],
        ["sheet.width=192"],
        ["sheet.width=576", "sheet.height=96"],
        ["train.max_grad_norm=0", "train.min_snr_gamma=0", "sweep.strengths=[0, 1]", "train.weight_decay=0"],
    ],
)
def test_the_least_of_a_setting_and_what_turns_it_off_are_taken(settings: list[str]) -> None:
    load_profile("embedded", settings)


@pytest.mark.parametrize("prompt", ["{subject}, forest", "{subject} beside a {class}"])
def test_what_prompts_may_hold_in_braces(prompt: str) -> None:
    assert load_profile("embedded", [f"sweep.prompts=['{prompt}']"]).sweep.prompts == (prompt,)


@pytest.mark.parametrize(
    ("settings", "nearest"),
    [
        (["sweep.guided_below=0.02"], "0.0413 is the nearest"),
        (["sweep.guided_above=9"], "8.99 is the nearest"),
        (["sweep.guided_above=3", "sweep.guided_below=4"], "4.06 is the nearest"),
        (["sweep.guided_below=0.05"], ""),
        (["sweep.guided_above=20", "sweep.guidance=1"], ""),
    ],
)
def test_guidance_that_no_step_of_a_sweep_lies_in_is_refused_before_the_sheet(
    settings: list[str], nearest: str
) -> None:
    told = sweep_problems(load_profile("embedded", settings))
    assert [nearest in line for line in told] == [True] * bool(nearest), told


def test_words_of_a_sweeps_prompts_are_named_before_the_sheet(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    profile = load_profile("embedded", ["sweep.prompts=['{subject} on a zeppelin', '{subject}, forest']"])
    character = Character(name="a", prompt="an orc", class_noun="orc", trigger="griqul")
    foretell(Workspace(character, profile, home))
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["zeppelin"]
    for distill, told in ((3, "ignores them: zeppelin"), (0, "train.distill is 0")):
        other = load_profile("embedded", [f"train.distill={distill}"])
        assert told in "".join(of_the_prompt("an orc on a zeppelin", Workspace(character, other, home)))


def test_a_rank_that_the_unet_is_too_small_for_is_refused_before_the_sheet_is_drawn(home: Home) -> None:
    fits = ("train.rank=64", "train.conv_rank=64")
    check(RunRequest("an orc", overrides=fits), home)
    with pytest.raises(ConfigError) as refused:
        check(RunRequest("an orc", overrides=("train.rank=65", "train.conv_rank=128")), home)
    assert [line.partition(" is larger")[0] for line in refused.value.problems] == [
        "train.rank=65",
        "train.conv_rank=128",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        ["train.rank=128"],
        ["train.continue_from=gone.safetensors"],
        ["train.continue_from=text.safetensors"],
        ["train.regularisation=empty"],
        ["train.regularisation=gone", "train.conv_rank=128", "sweep.pictures=2"],
    ],
    ids=lambda settings: settings[0],
)
def test_the_doctor_says_what_a_run_of_the_profile_is_refused_for(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], settings: list[str]
) -> None:
    from charengine.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no adapter")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as refused:
        check(RunRequest("an orc", overrides=tuple(settings)), home)
    chosen = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr("sys.argv", ["charengine", "doctor", "--json", *chosen])
    with pytest.raises(SystemExit) as end:
        main()
    told = json.loads(capfd.readouterr().out)
    assert end.value.code == 3 and not told["ready"]
    assert set(refused.value.problems) <= set(told["problems"])


def test_a_ratio_of_any_size_is_no_clipping() -> None:
    steps = torch.linspace(0.999, 0.01, 10)
    assert torch.equal(min_snr_weights(steps, 1e300), torch.ones(10))


def test_a_warmup_that_a_training_does_not_reach_the_end_of_is_said() -> None:
    assert warmup_warnings(TrainSettings(steps=10, warmup=10)) == ()
    [said] = warmup_warnings(TrainSettings(steps=10, warmup=100))
    assert "train.warmup is 100 of 10 steps" in said and "10%" in said
