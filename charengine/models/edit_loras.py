"""LoRAs on the edit model: Lightning, which is switched on for short drawings, and the user's own, which always are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import BadInput, ConfigError
from charengine.models import layouts
from charengine.models.files import read_header
from charengine.models.fit import edit_layers
from charengine.models.identify import expect
from charengine.models.lightning import base_of, fused_steps, steps_of
from charengine.models.locate import Inventory, configurations
from charengine.models.places import model_files


@dataclass(frozen=True)
class EditLoras:
    """The LoRAs of an edit model.

    Args:
        own: files and strengths, always on.
        lightning: file of the Lightning LoRA.
        lightning_steps: steps it was distilled to.
        nbytes: of all of them in half precision.
    """

    own: tuple[tuple[Path, float], ...] = ()
    lightning: Path | None = None
    lightning_steps: int = 0
    nbytes: int = 0

    @property
    def files(self) -> list[Path]:
        """Every file."""
        return [file for file, _ in self.own] + ([self.lightning] if self.lightning else [])

    def describe(self, base: str) -> list[str]:
        """Lines for the log and the doctor; `base` is the edit model."""
        lines = [f"edit LoRA {file.name} at strength {strength:g}" for file, strength in self.own]
        if self.lightning is not None:
            lines.append(f"short drawings use {self.lightning.name}: {self.lightning_steps} steps without guidance")
            if base_of(self.lightning.name) != base:
                lines.append(
                    f"{self.lightning.name} was made for {base_of(self.lightning.name)}, and the edit model is {base}"
                )
        return lines


def edit_loras(settings: ModelSettings, stock: Inventory) -> EditLoras:
    """The LoRAs that go on the edit model that was found, each compared with its layers from the headers alone.

    Raises:
        BadInput: one is not a LoRA for it; several mistakes together.
    """
    edit, problems = stock.found["edit"], []
    layers = edit_layers(edit.path, edit.identity, configurations(settings, stock.found))
    own = []
    for i, lora in enumerate(settings.edit_loras):
        try:
            file = _file_of(lora.file, settings)
            _check(file, f"models.edit_loras[{i}]", layers)
            own.append((file, lora.strength))
        except BadInput as error:
            problems.append(str(error))
    lightning = stock.path("lightning")
    if lightning is not None and fused_steps(edit.path.name):
        lightning = None  # its own is in the weights: one more on top would overshoot
    if lightning is not None:
        try:
            _check(lightning, "models.lightning", layers)
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems) if len(problems) > 1 else BadInput(problems[0])
    files = [file for file, _ in own] + ([lightning] if lightning else [])
    size = 2 * sum(prod(tensor.shape) for file in files for tensor in read_header(file).tensors.values())
    return EditLoras(tuple(own), lightning, steps_of(lightning.name) if lightning else 0, size)


def _file_of(text: str, settings: ModelSettings) -> Path:
    path = files.expanded(text)
    if files.is_file(path):
        return path
    names = {path.name, f"{path.name}.safetensors"}
    found = [file for _, file in model_files(settings) if file.name in names]
    if not found:
        raise BadInput(f"models.edit_loras: {text!r} is neither a file here nor one in a folder that is looked in")
    return found[0]


def _check(file: Path, field: str, layers: dict[str, tuple[int, int]]) -> None:
    identity = expect(file, ("adapter",), field)
    if identity.layout != "qwen-image":
        raise BadInput(f"{field}: {file} is a {identity.title}; it must be a LoRA for Qwen-Image(-Edit)")
    layouts.check_adapter(file, layers)
