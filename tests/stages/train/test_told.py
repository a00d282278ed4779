"""What is said of a training before its first step, and after its last."""

from __future__ import annotations

import pytest
from tiny_sdxl import FakeDiffusion
from trainings import train

from charengine.models.usage import Usage
from charengine.stages.train.loop import TrainingStopped


@pytest.mark.parametrize("known", [True, False])
def test_a_trigger_that_the_base_model_knows_is_warned_of_before_and_after(store, tmp_path, caplog, known):
    diffusion, seen = FakeDiffusion(), []
    diffusion.count_tokens = lambda text: 1 if known and text == "zorgal" else 2
    with caplog.at_level("WARNING", logger="charengine"):
        record = train(
            store, tmp_path, diffusion=diffusion, steps=1, checkpoints=1, on_step=lambda _: seen.append(caplog.text)
        )
    told = "the trigger 'zorgal' is a word that the base model knows"
    assert (told in seen[0]) == known
    assert any(told in warning for warning in record.warnings) == known


def test_words_of_the_negative_prompt_that_the_base_model_was_never_taught_are_named(store, tmp_path):
    diffusion = FakeDiffusion()
    diffusion.usage = Usage(negative_prompt="a zeppelin", few_words="2")
    [told] = [
        line
        for line in train(store, tmp_path, diffusion=diffusion, steps=1, checkpoints=1).warnings
        if "taught" in line
    ]
    assert told == "models.negative_prompt: the model was never taught these words and ignores them: zeppelin"


@pytest.mark.parametrize("algorithm", ["dora", "tlora", "locon"])
def test_a_training_that_left_the_adapter_as_it_began_says_so(store, tmp_path, algorithm):
    hardly = {"learning_rate": 1e-9, "steps": 2, "warmup": 10_000, "checkpoints": 1, "algorithm": algorithm}
    start = {}
    if algorithm == "locon":  # from a file that does something
        made = train(store, tmp_path / "first", steps=2, checkpoints=1)
        start["continue_from"] = str(store.export(made.checkpoints[-1].adapter, tmp_path / "first.safetensors"))
    with pytest.raises(TrainingStopped):  # that it began so is known after a stop, too
        train(store, tmp_path / "idle", should_stop=lambda: True, **hardly, **start)
    told = train(store, tmp_path / "idle", **hardly, **start).warnings
    [idle] = [warning for warning in told if warning.startswith("the training changed nothing: every value")]
    assert "Raise train.learning_rate (it is 1e-09)" in idle
    moved = train(store, tmp_path / "moved", steps=1, checkpoints=1, algorithm=algorithm, **start).warnings
    assert not [warning for warning in moved if "changed nothing" in warning]


@pytest.mark.parametrize("algorithm", ["locon", "lora", "lokr"])
def test_a_training_that_changed_nothing_says_so(store, tmp_path, algorithm):
    hardly = {"learning_rate": 1e-9, "steps": 1, "warmup": 10_000, "checkpoints": 1, "algorithm": algorithm}
    told = train(store, tmp_path / "idle", **hardly).warnings
    [idle] = [warning for warning in told if warning.startswith("the training changed nothing: all ")]
    assert "layers of the adapter change nothing" in idle and "Raise train.learning_rate (it is 1e-09)" in idle
    moved = train(store, tmp_path / "moved", steps=1, checkpoints=1, algorithm=algorithm).warnings
    assert not [warning for warning in moved if "changed nothing" in warning]
