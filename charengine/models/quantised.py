"""Weights that stay packed in memory (fp8, int8, GGUF; scaled or not) and are unpacked layer by layer as they are used.

One layer class serves every packing, so a file is never converted, and streaming (`streaming.py`) sees plain bytes.
Unpacking a 20 B-parameter model once a step costs about 5 bytes of memory traffic a parameter, little beside its matmuls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional

from charengine.errors import BadInput, MissingDependency
from charengine.models.files import shown
from charengine.models.gguf_blocks import UNPACK, unpack_blocks

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
FP8_NAMES = {dtype: name for name, dtype in FP8.items()}
FP8_MAX = 448.0  # largest float8_e4m3fn
INT8 = "I8"
WHOLE, SLICE = 2**26, 2**25  # weights: a larger GGUF matrix (a head of 152,064 words) is unpacked so many at a time


@dataclass(frozen=True)
class Packed:
    """A weight as it lies in a file.

    Args:
        data: uint8; (out, in) for fp8 and int8, (out, bytes of a row) for GGUF.
        packing: "F8_E4M3", "F8_E5M2", "I8", or a GGUF type such as "Q4_K".
        shape: of the unpacked weight.
        scale: float32 factor of fp8 and int8 weights, one value or one a row; None = 1.
        rotation: size of the groups of inputs that were rotated before rounding (ComfyUI's convrot); 0 = none.
    """

    data: torch.Tensor
    packing: str
    shape: tuple[int, ...]
    scale: torch.Tensor | None = None
    rotation: int = 0

    def unpack(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight itself."""
        weight = rotate(unpack(self.data, self.packing, torch.float32), self.rotation)
        return (weight if self.scale is None else weight * self.scale).to(dtype).reshape(self.shape)


def pack_fp8(weight: torch.Tensor, device: torch.device | None = None) -> Packed:
    """Round a weight to float8_e4m3fn with one scale a row (exact in bfloat16), which keeps 3-4 bits at every magnitude."""
    rows = weight.to(device or weight.device).float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / (FP8_MAX / 1.01)
    scale = scale.to(torch.bfloat16).float()
    data = (rows / scale).to(torch.float8_e4m3fn).view(torch.uint8)
    return Packed(data.to(weight.device), "F8_E4M3", tuple(weight.shape), scale.to(weight.device))


def packed_bytes(weight: torch.Tensor, scale: torch.Tensor | None = None, rotation: int = 0) -> Packed:
    """A float8 or int8 tensor as it was stored, with its file's scale if it had one (scalar, one a row, or a column)."""
    if scale is not None:
        scale = scale.float().reshape(-1, 1)
    packing = INT8 if weight.dtype == torch.int8 else FP8_NAMES[weight.dtype]
    return Packed(weight.view(torch.uint8), packing, tuple(weight.shape), scale, rotation)


def unpack(data: torch.Tensor, packing: str, dtype: torch.dtype) -> torch.Tensor:
    """Unpack bytes to (out, in) in `dtype`, without a weight's scale and still rotated."""
    if packing == INT8:
        return data.view(torch.int8).to(dtype)
    if packing not in FP8:
        return _gguf_function(packing)(data, dtype)
    if data.device.type == "mps":  # has no float8, though it can look values up
        return float8_values(packing).to(data.device, dtype)[data.int()]
    return data.view(FP8[packing]).to(dtype)


@lru_cache
def float8_values(packing: str) -> torch.Tensor:
    """The numbers that the 256 bytes of a float8 format stand for, float32 on the CPU."""
    return torch.arange(256, dtype=torch.uint8).view(FP8[packing]).float()


def rotate(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Undo (or do: it is its own inverse) a rotation of a weight's inputs in groups of `size`; 0 leaves it as it is."""
    if not size:
        return weight
    matrix = _hadamard_on(size, weight.device, weight.dtype)
    turned: torch.Tensor = weight.view(weight.shape[0], -1, size) @ matrix
    return turned.view(weight.shape)


@lru_cache
def hadamard(size: int) -> torch.Tensor:
    """The regular Hadamard matrix of a power of four, scaled to be orthogonal; symmetric, float32 (Kronecker powers of 4×4)."""
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)
    matrix = four
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, four)
    scaled: torch.Tensor = matrix / size**0.5
    return scaled


@lru_cache(maxsize=32)
def _hadamard_on(size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Kept where it is used: copied for each of 1,700 layers a step, it made the host wait for the GPU each time."""
    return hadamard(size).to(device, dtype)


def _gguf_function(packing: str) -> Callable[[torch.Tensor, torch.dtype], torch.Tensor]:
    try:
        import gguf
        from diffusers.quantizers.gguf import utils
    except ImportError as error:
        raise MissingDependency("GGUF weights need: pip install 'gguf>=0.10'") from error
    kind = gguf.GGMLQuantizationType[packing]
    block, size = gguf.GGML_QUANT_SIZES[kind]

    def dequantise(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        blocks = data.reshape(-1, size)
        if packing in UNPACK:
            values = unpack_blocks(packing, blocks, dtype)
        else:
            values = utils.dequantize_functions[kind](blocks, block, size, dtype=torch.float32).to(dtype)
        return values.reshape(*data.shape[:-1], -1)

    return dequantise


class PackedLinear(nn.Module):
    """A frozen linear layer over a packed weight, with an optional low-rank addition (`low_rank.py`)."""

    packed: torch.Tensor
    row_scale: torch.Tensor | None

    def __init__(self, weight: Packed, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packing, self.dtype, self.rotation = weight.packing, dtype, weight.rotation
        one = weight.scale is None or weight.scale.numel() == 1
        self.factor = 1.0 if weight.scale is None or not one else float(weight.scale)
        self.register_buffer("packed", weight.data)
        self.register_buffer("row_scale", None if one or weight.scale is None else weight.scale.reshape(-1).to(dtype))
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The unpacked weight, made anew at each access; some models look at its dtype."""
        weight = self._unscaled(self.dtype) * self.factor
        return weight if self.row_scale is None else weight * self.row_scale[:, None]

    def _unscaled(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight without its scale; rotating it costs `rotation` operations a weight, little beside the product."""
        return rotate(unpack(self.packed, self.packing, dtype), self.rotation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`; a scale multiplies the product, so that it is rounded once and the weight never.

        GGUF weights are unpacked in float32, several copies at once: 8 GiB for the head of Qwen2.5-VL, which is taken in slices.
        """
        if self.packing not in (*FP8, INT8) and self.out_features * self.in_features > WHOLE:
            return self._in_slices(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        scaled = self.row_scale is not None or self.factor != 1.0
        y = functional.linear(x, self._unscaled(x.dtype), None if scaled else bias)
        if scaled and bias is None:
            y = y * self.factor if self.row_scale is None else y * self.row_scale.to(x.dtype)
        elif scaled and bias is not None:
            row = self.row_scale
            y = torch.add(bias, y, alpha=self.factor) if row is None else torch.addcmul(bias, y, row.to(x.dtype))
        return y

    def _in_slices(self, x: torch.Tensor) -> torch.Tensor:
        """The product, some rows of the weight at a time."""
        rows = max(1, SLICE // self.in_features)
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for start in range(0, self.out_features, rows):
            weight = unpack(self.packed[start : start + rows], self.packing, x.dtype)
            bias = None if self.bias is None else self.bias[start : start + rows].to(x.dtype)
            y[..., start : start + rows] = functional.linear(x, weight, bias)
        return y


State = dict[str, "torch.Tensor | Packed"]


def fill(
    module: nn.Module,
    state: State,
    dtype: torch.dtype,
    source: str,
    *,
    fp8: Callable[[str], bool] | None = None,
    device: torch.device | None = None,
) -> nn.Module:
    """Give a module built on the meta device its weights; packed ones stay packed where a linear layer takes them.

    Args:
        module: its parameters are replaced, not copied into.
        state: by the module's own names.
        dtype: of everything that is not packed.
        source: the file, for the message.
        fp8: names of linear layers whose unpacked weights are to be rounded to fp8; None = none.
        device: where the rounding is done; its results come back to the host.

    Raises:
        BadInput: weights missing, left over, or of another shape.
    """
    layers = dict(module.named_modules())
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_complete(expected, {name: tuple(value.shape) for name, value in state.items()}, source, type(module).__name__)
    for name in [n for n, layer in layers.items() if isinstance(layer, nn.Linear)]:
        weight = state[f"{name}.weight"]
        if isinstance(weight, torch.Tensor) and fp8 is not None and fp8(name):
            weight = pack_fp8(weight, device)
        if isinstance(weight, Packed):
            bias = state.pop(f"{name}.bias", None)
            del state[f"{name}.weight"]
            _replace(module, name, PackedLinear(weight, None if bias is None else plain(bias, dtype), dtype))
    module.load_state_dict({name: plain(value, dtype) for name, value in state.items()}, strict=False, assign=True)
    return module.requires_grad_(False).eval()


def plain(value: torch.Tensor | Packed, dtype: torch.dtype) -> torch.Tensor:
    """An unpacked tensor in `dtype`; integers keep theirs."""
    if isinstance(value, Packed):
        return value.unpack(dtype)
    return value.to(dtype) if value.is_floating_point() else value


def check_complete(
    expected: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]], source: str, what: str
) -> None:
    """Refuse a state that does not fit a module, in one line.

    Raises:
        BadInput: says how many weights are missing, left over or of another shape, and names the first.
    """
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & given.keys() if expected[name] != given[name])
    if not (missing or extra or wrong):
        return
    found = [f"{len(missing)} weights are missing ({missing[0]})"] if missing else []
    found += [f"{len(extra)} are left over ({shown(extra[0])})"] if extra else []
    found += (
        [f"{len(wrong)} have another shape ({wrong[0]}: {given[wrong[0]]}, not {expected[wrong[0]]})"] if wrong else []
    )
    raise BadInput(
        f"{source} does not fit {what}: {'; '.join(found)}. Is it the right model, and is its configuration its own?"
    )


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
