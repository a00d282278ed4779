"""Commands over small inputs that went wrong once: the exit status and the words that are right, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from adapter_samples import file_of, parts_of
from run_samples import write_views

from charengine.errors import BadInput
from charengine.models.skeleton import unet_skeleton
from charengine.profiles.loading import load_profile

STAGE = "the stage begins"
SWEEP = "--class-noun woman --views views --out swept"
COMMANDS = (
    ("batch dup.yaml", "'name' stands twice in one entry, in lines 1 and 2"),
    ("batch open.csv", "a quote opened in line 2 is never closed"),
    ("run orc --set train.continue_from=no.safetensors", "no.safetensors' does not exist"),
    ("doctor --profile self.yaml", "extends itself"),
    ("caption views --name A --prompt orc --trigger griqul\n", "trigger"),
    ("caption views --name A --prompt orc --class-noun orc\nwoman", "class noun"),
    ("train masked", "front.alpha.png"),
    ("train views --set train.regularisation=classes", "side.txt is not UTF-8"),
    ("train views --set train.continue_from=nan.safetensors", "not finite"),
    ("train views --trigger zzqo --class-noun woman", "no caption holds the trigger 'zzqo'"),
    (f"sweep nan.safetensors {SWEEP}", "not finite"),
    (f"sweep outside.safetensors {SWEEP}", "'../../outside' is not allowed"),
    (f"sweep half.safetensors {SWEEP}", "incomplete"),
    ("sheet orc --out {here}/sheet.png", STAGE),
    ("caption views --name A --prompt orc", "front.txt, side.txt, back.txt are not as Character Engine wrote them"),
    ("caption {here}/bare --name A --prompt orc", STAGE),
)


@pytest.fixture
def folder(tmp_path: Path, tiny_settings: tuple[str, ...]) -> Path:
    """Where the commands are given, with everything they name."""
    _, masked, classes = (write_views(tmp_path / name, "griqul, woman") for name in ("views", "masked", "classes"))
    for caption in write_views(tmp_path / "bare", "griqul, woman").glob("*.txt"):
        caption.unlink()
    (masked / "front.alpha.png").write_bytes(b"no mask")
    (classes / "side.txt").write_bytes(b"na\xefve")
    (tmp_path / "dup.yaml").write_text("- name: A\n  name: B\n  prompt: an orc\n")
    (tmp_path / "open.csv").write_text('name,prompt\nA,"an orc\nB,a robot\n')
    (tmp_path / "self.yaml").write_text("extends: self.yaml\n")
    layer = "mid_block.attentions.0.proj_in"
    shape = unet_skeleton(load_profile("embedded", tiny_settings).models).get_submodule(layer).weight.shape
    lora = parts_of("LoRA", tuple(shape))
    files = {
        "nan": {part: value / 0 for part, value in lora.items()},
        "half": {part: value for part, value in lora.items() if "down" not in part},
        "../../outside": lora,
    }
    for name, parts in files.items():
        data = file_of({f"unet.{layer}.{part}": v for part, v in parts.items()}, **{"modelspec.trigger_phrase": name})
        (tmp_path / f"{Path(name).name}.safetensors").write_bytes(data)
    return tmp_path


def there(folder: Path) -> dict[Path, int]:
    """Everything but the home, and when it was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "home" not in path.parts}


@pytest.mark.parametrize(("command", "told"), COMMANDS)
def test_a_command_over_a_small_input_ends_in_its_right_words_and_leaves_nothing(
    folder: Path,
    cli: Callable[..., CompletedProcess[str]],
    tiny_settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    told: str,
) -> None:
    def begin(*_: object) -> None:
        raise BadInput(STAGE)

    monkeypatch.setattr("charengine.run.running.run", begin)
    if "{here}" in command:
        monkeypatch.chdir("/proc")  # where nobody may write
    before = there(folder)
    words = [word.format(here=folder) for word in command.split(" ")]
    done = cli(*words, *(part for setting in tiny_settings for part in ("--set", setting)))
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert there(folder) == before
