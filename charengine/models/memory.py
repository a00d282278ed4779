"""What fits in the GPU memory budget, decided before anything is loaded, logged, and enforced.

Every big model is a row of equal blocks and a rest. A plan says how many blocks stay on the GPU and how many are
streamed through it (`streaming.py`); nothing is ever spilled by the driver, for the allocator is capped at the budget.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from charengine.errors import OutOfBudget
from charengine.models.files import Header
from charengine.models.loading import Loaded, T, release_memory
from charengine.models.streaming import SLOTS

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GIB = 2**30
CONTEXT = 0.5 * GIB  # CUDA context and library workspaces, which torch's allocator does not see
BLOCK = re.compile(r"(?:^|\.)(transformer_blocks|layers)\.(\d+)\.")
TRANSFORMER_WIDTHS = 26  # live copies of (tokens, width) in bf16 at the peak of a Qwen-Image block
ENCODER_WORKSPACE = 1.4 * GIB  # logits of a whole prompt, vision tokens, key-value cache
VAE_BYTES_PER_PIXEL = 3400  # Qwen-Image VAE decoding in bf16, untiled


@dataclass(frozen=True)
class Part:
    """A model as the planner sees it; all in bytes.

    Args:
        blocks: how many equal blocks it has.
        block: of one block.
        rest: of everything else.
        workspace: activations at their peak.
    """

    name: str
    blocks: int
    block: int
    rest: int
    workspace: int

    @property
    def smallest(self) -> int:
        """Bytes on the GPU with every block streamed."""
        return self.rest + self.workspace + min(SLOTS, self.blocks) * self.block


@dataclass(frozen=True)
class Placement:
    """How one part is held: `resident` blocks on the GPU, the other `streamed` ones on the host."""

    part: Part
    resident: int
    fp8: bool = False

    @property
    def streamed(self) -> int:
        """Blocks copied through the GPU in every forward."""
        return self.part.blocks - self.resident

    @property
    def device_bytes(self) -> int:
        """Bytes on the GPU at the peak."""
        held = self.resident + min(SLOTS, self.streamed)
        return self.part.rest + self.part.workspace + held * self.part.block

    def describe(self) -> str:
        """One line for the log and the doctor."""
        part = self.part
        how = (
            "all on the GPU"
            if not self.streamed
            else f"{self.resident} of {part.blocks} blocks on the GPU, the rest streamed"
        )
        weights = (part.rest + part.blocks * part.block) / GIB
        return f"{part.name}: {weights:.1f} GiB of weights{' (rounded to fp8)' if self.fp8 else ''}, {how}, {self.device_bytes / GIB:.1f} GiB at the peak"


@dataclass(frozen=True)
class MemoryPlan:
    """How the sheet's models share the budget, one after another."""

    budget_gib: float
    encoder: Placement
    transformer: Placement
    tile_vae: bool

    @property
    def host_gib(self) -> float:
        """Page-locked host memory when all of a streamed model is kept there."""
        parts = [placement.part for placement in (self.encoder, self.transformer) if placement.streamed]
        return sum(part.blocks * part.block for part in parts) / GIB

    @property
    def least_host_gib(self) -> float:
        """Page-locked host memory when only the streamed blocks are kept there."""
        return sum(placement.streamed * placement.part.block for placement in (self.encoder, self.transformer)) / GIB

    @property
    def together(self) -> bool:
        """Whether encoder and transformer may be on the GPU at once."""
        return self.encoder.device_bytes + self.transformer.device_bytes <= usable(self.budget_gib)

    @property
    def encoder_room(self) -> int:
        """Bytes for activations while the encoder works, the transformer's weights beside it if both may stay."""
        held = (self.encoder, self.transformer) if self.together else (self.encoder,)
        return usable(self.budget_gib) - sum(part.device_bytes - part.part.workspace for part in held)

    def describe(self) -> list[str]:
        """Lines for the log and the doctor."""
        return [
            self.encoder.describe(),
            self.transformer.describe(),
            f"VAE: decoded {'in tiles' if self.tile_vae else 'whole'}",
        ]


def usable(budget_gib: float) -> int:
    """Bytes torch may allocate under a budget."""
    return int(budget_gib * GIB - CONTEXT)


def measure_part(header: Header, name: str, *, workspace: int, fp8: bool) -> Part:
    """A part's sizes from its file's header.

    Args:
        header: of the file or folder.
        name: for messages.
        workspace: activations at their peak.
        fp8: weights that are not packed yet are counted as rounded to fp8 where they are 2-D inside blocks.
    """
    blocks: dict[str, int] = {}
    rest = 0
    for key, tensor in header.tensors.items():
        matrix = len(tensor.shape) == 2 and tensor.shape[1] > 1  # a column is the scale of a packed weight's rows
        packed = tensor.dtype not in ("F32", "F16", "BF16")
        inside = BLOCK.search(key)
        number = None if inside is None or "visual" in key else inside.group(2)
        table = key.endswith("embed_tokens.weight")  # looked up, so unpacked once and for all
        if packed and not table and (matrix or header.format == "gguf"):
            size = tensor.nbytes
        else:
            size = prod(tensor.shape) * (1 if fp8 and matrix and number is not None else 2)
        if number is None:
            rest += size
        else:
            blocks[number] = blocks.get(number, 0) + size
    return Part(name, len(blocks), max(blocks.values(), default=0), rest, workspace)


def place(part: Part, budget_gib: float, *, fp8: bool = False) -> Placement:
    """As many blocks on the GPU as fit.

    Raises:
        OutOfBudget: not even with every block streamed; carries the smallest budget that does.
    """
    room = usable(budget_gib) - part.rest - part.workspace
    if room >= part.blocks * part.block:
        return Placement(part, part.blocks, fp8)
    resident = int(room // part.block) - SLOTS if part.block else 0
    if resident < 0:
        smallest = round((part.smallest + CONTEXT) / GIB + 0.05, 1)
        raise OutOfBudget(
            f"{part.name} needs {smallest} GiB of GPU memory with every block streamed; the budget is {budget_gib:g} GiB: "
            "raise budget_gib, or draw smaller sheets (sheet.width, sheet.height)",
            smallest_gib=smallest,
        )
    return Placement(part, resident, fp8)


def transformer_workspace(
    width: int, height: int, model_width: int = 3072, *, latents: bool = True, text: int = 1100
) -> int:
    """Bytes of activations of one Qwen-Image forward.

    Args:
        width: of the sheet, in pixels; 16 pixels make a token's side.
        height: likewise.
        model_width: of the transformer.
        latents: the template is there as a megapixel of VAE latents too.
        text: tokens of prompt and template.
    """
    tokens = width * height // 256 + (4096 if latents else 0) + text
    return TRANSFORMER_WIDTHS * tokens * model_width * 2 + 2 * 6 * model_width * model_width * 2


def plan(
    budget_gib: float,
    encoder: Header,
    transformer: Header,
    *,
    sheet: tuple[int, int],
    adapter_bytes: int = 0,
    compute_bytes: int = 1,
) -> MemoryPlan:
    """Where each of the sheet's models goes.

    Args:
        budget_gib: GPU memory of the profile.
        encoder: header of the Qwen2.5-VL file or folder.
        transformer: header of the Qwen-Image-Edit transformer.
        sheet: width, height in pixels.
        adapter_bytes: of a Lightning LoRA kept beside the transformer.
        compute_bytes: 1 rounds weights that are not packed yet to fp8 where bf16 would not fit; 2 never does.

    Raises:
        OutOfBudget: some stage does not fit however it is placed.
    """
    work = transformer_workspace(*sheet) + adapter_bytes
    result = MemoryPlan(
        budget_gib,
        _best(encoder, "Qwen2.5-VL", int(ENCODER_WORKSPACE), budget_gib, compute_bytes),
        _best(transformer, "Qwen-Image-Edit transformer", work, budget_gib, compute_bytes),
        tile_vae=sheet[0] * sheet[1] * VAE_BYTES_PER_PIXEL + 0.5 * GIB > usable(budget_gib),
    )
    for line in result.describe():
        log.info("memory plan for %g GiB: %s", budget_gib, line)
    return result


def _best(header: Header, name: str, workspace: int, budget_gib: float, compute_bytes: int) -> Placement:
    """As the file has it if that fits whole; else rounded to fp8 (a no-op on packed files), streamed if need be."""
    whole = measure_part(header, name, workspace=workspace, fp8=False)
    if compute_bytes > 1 or whole.blocks * whole.block + whole.rest + workspace <= usable(budget_gib):
        return place(whole, budget_gib)
    rounded = measure_part(header, name, workspace=workspace, fp8=True)
    return place(rounded, budget_gib, fp8=rounded.block < whole.block)


def cap_memory(device: torch.device, budget_gib: float) -> None:
    """Make allocations beyond the budget fail at once instead of spilling to the host; nothing on a CPU."""
    import torch

    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    if budget_gib * GIB > total + CONTEXT:
        raise OutOfBudget(
            f"the budget is {budget_gib:g} GiB, {torch.cuda.get_device_name(index)} has {total / GIB:.1f}: lower budget_gib"
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, usable(budget_gib) / total), index)


class TakingTurns(Loaded):
    """`Loaded` whose big models step aside for each other, and go back to host memory rather than to the disk.

    Args:
        rivals: models that must not be on the GPU together.
        release: takes a model off the GPU, and says whether host memory keeps it.
        drop: gives up its host memory too.
    """

    def __init__(self, rivals: frozenset[str], release: Callable[[str], bool], drop: Callable[[str], None]) -> None:
        super().__init__()
        self.rivals, self.release, self.drop = rivals, release, drop

    def get(self, name: str, load: Callable[[], T]) -> T:
        """The object called `name`; its rivals are taken off the GPU first."""
        others = [other for other in self.rivals if other != name and other in self._held]
        if name in self.rivals and others:
            self.free(*others)
        return super().get(name, load)

    def free(self, *names: str) -> None:
        """Take the named objects, or all of them, off the GPU."""
        wanted = names or tuple(self._held)
        kept = {name for name in wanted if name in self._held and self.release(name)}
        self._let_go(wanted, kept)

    def forget(self, *names: str) -> None:
        """Take them off the GPU and out of host memory."""
        self.free(*names)
        for name in names:
            self.drop(name)
        release_memory()
