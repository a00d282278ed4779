"""Where a step of the sheet goes: one of the edit transformer's sixty equal blocks, as it runs and with single parts changed.

    python benchmarks/sheet_block.py --out results/               # one CUDA GPU; half a minute
    python benchmarks/sheet_block.py --tiny --device cpu          # checks that everything runs

Weights are random and fp8, as in ComfyUI's files. Every variant is one line: milliseconds of a block, median of `--repeat`, and
by how much its output differs from the block as it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random_models  # noqa: E402
import torch  # noqa: E402
from stages import failure, machine  # noqa: E402
from torch.nn import functional  # noqa: E402
from watching import Kernels  # noqa: E402

from charengine.models import classes  # noqa: E402
from charengine.models.low_rank import add_adapter  # noqa: E402
from charengine.models.quantised import PackedLinear, fill  # noqa: E402

TEXT_TOKENS = 1100
RANK = 64  # of a Lightning LoRA
FP8_MAX = 448.0


class Block:
    """A block and what it is given: a sheet's tokens, those of the template beside them, and text.

    Args:
        sheet: width and height in pixels; 16 of them make a token's side.
        template: tokens of the template's latents; 0 where the model sees it as vision tokens alone.
    """

    def __init__(self, device: torch.device, tiny: bool, sheet: tuple[int, int], template: int) -> None:
        self.device, self.dtype = device, torch.bfloat16 if device.type == "cuda" else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            configs = random_models.write_configs(Path(folder) / "configs", tiny) / "qwen"
            model = classes.transformer(configs, 1, zero_cond_t=True)
        state = random_models.random_state(model, self.dtype, device, packed=lambda name: "transformer_blocks." in name)
        self.model: Any = fill(model, state, self.dtype, "random weights").to(device)
        tokens, text = sheet[0] * sheet[1] // 256, TEXT_TOKENS if not tiny else 20
        side = round(template**0.5)
        self.shapes = [(1, sheet[1] // 16, sheet[0] // 16)] + ([(1, side, side)] if template else [])
        width = self.model.config["in_channels"]
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randn(1, tokens + side * side, width, generator=generator).to(device, self.dtype)
        depth = self.model.config["joint_attention_dim"]
        self.text = torch.randn(1, text, depth, generator=generator).to(device, self.dtype)

    def inputs(self) -> dict[str, Any]:
        """What the model hands to its first block."""
        held: dict[str, Any] = {}

        def keep(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            held.update(kwargs)

        hook = self.model.transformer_blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
        self.model(
            hidden_states=self.tokens,
            encoder_hidden_states=self.text,
            encoder_hidden_states_mask=None,
            timestep=torch.tensor([0.5], device=self.device, dtype=self.dtype),
            img_shapes=[self.shapes],
            return_dict=False,
        )
        hook.remove()
        return held

    def add_lora(self) -> None:
        """A Lightning LoRA beside every layer that the published ones adapt."""
        layers = {
            name: layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, PackedLinear) and "_mod." not in name
        }
        adapter = {
            name: (
                torch.randn(RANK, layer.in_features, dtype=self.dtype, device=self.device) * 0.02,
                torch.randn(layer.out_features, RANK, dtype=self.dtype, device=self.device) * 0.02,
            )
            for name, layer in layers.items()
        }
        add_adapter(self.model, adapter)


@contextmanager
def linear_as(forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Packed layers compute otherwise, until left."""
    before = PackedLinear.forward
    PackedLinear.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        PackedLinear.forward = before  # type: ignore[method-assign]


def float8_products(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Both factors in float8, one scale a row of each; bfloat16 out."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] < 16:  # modulation: nothing to gain
        return functional.linear(x, self.weight, self.bias)
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    small = (rows / scale.to(rows.dtype)).to(torch.float8_e4m3fn)
    of_weight = (
        self.row_scale if self.row_scale is not None else self.packed.new_full((self.out_features,), self.factor)
    )
    product = torch._scaled_mm(
        small, self.packed.view(torch.float8_e4m3fn).t(), scale_a=scale, scale_b=of_weight.float().reshape(1, -1),
        bias=self.bias, out_dtype=torch.bfloat16, use_fast_accum=True,
    )  # fmt: skip
    return product.reshape(*x.shape[:-1], self.out_features)


def unpacked_once(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Weights held in the compute type: what unpacking costs is the difference."""
    if not hasattr(self, "_plain"):
        self._plain = self.weight.contiguous()
    return functional.linear(x, self._plain, self.bias)


def measure(work: Callable[[], Any], device: torch.device, repeat: int) -> float:
    """Milliseconds, median."""
    seconds = []
    for i in range(repeat + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 3)


@torch.no_grad()
def variants(block: Block, repeat: int, compiled: bool) -> dict[str, Any]:
    """Every variant's milliseconds and difference; one that fails says why."""
    device, module, inputs = block.device, block.model.transformer_blocks[0], block.inputs()
    found: dict[str, Any] = {"tokens": [block.tokens.shape[1], block.text.shape[1]]}

    def run() -> torch.Tensor:
        return module(**inputs)[1]

    reference = run().float()

    def note(name: str, change: Any = None, work: Callable[[], Any] = run) -> None:
        try:
            with change or linear_as(PackedLinear.forward):
                facts: dict[str, Any] = {"ms": measure(work, device, repeat)}
                if work is run:
                    off = (run().float() - reference).abs()
                    facts |= {"mean_off": float(off.mean() / reference.abs().mean()), "max_off": float(off.max())}
        except Exception as error:  # a kernel that a card lacks must not end the others
            facts = {key: value for key, value in failure(error).items() if key == "error"}
        found[name] = facts
        print(f"{name}: {json.dumps(facts)}", flush=True)

    note("as it runs")
    found["kernels"] = Kernels(device).of(run)
    print(json.dumps(found["kernels"]), flush=True)
    heads, width = module.attn.heads, module.attn.inner_dim // module.attn.heads
    length = block.tokens.shape[1] + block.text.shape[1]
    query = torch.randn(1, heads, length, width, device=device, dtype=block.dtype)
    note("attention alone", work=lambda: functional.scaled_dot_product_attention(query, query, query))
    note("weights unpacked before", linear_as(unpacked_once))
    for layer in module.modules():
        layer.__dict__.pop("_plain", None)
    note("products in float8", linear_as(float8_products))
    for backend in ("_native_cudnn", "_native_flash", "_native_efficient"):
        note(f"attention by {backend}", attention_by(block, backend))
    inputs = inputs | {"encoder_hidden_states_mask": torch.ones(block.text.shape[:2], device=device, dtype=torch.bool)}
    note("text masked")
    inputs = inputs | {"encoder_hidden_states_mask": None}
    block.add_lora()
    note("with a Lightning LoRA beside")
    for layer in module.modules():
        if hasattr(layer, "lora_enabled"):
            layer.lora_enabled = False
    if compiled:
        module.compile()
        note("compiled")
    return found


@contextmanager
def attention_by(block: Block, backend: str) -> Iterator[None]:
    """Another of diffusers' attention backends, until left."""
    block.model.set_attention_backend(backend)
    try:
        yield
    finally:
        block.model.set_attention_backend("native")  # diffusers makes the last one set everybody's: a reset keeps it


def main() -> int:
    """Both ways of conditioning at the profile's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny model and size")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="also compiled, which takes a minute")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sheet, template = ((1536, 1024), 4096) if not arguments.tiny else ((192, 96), 36)
    results: dict[str, Any] = {"machine": machine(device)}
    for name, tokens in (("template as latents", template), ("template as vision tokens", 0)):
        print(f"--- {name}", flush=True)
        block = Block(device, arguments.tiny, sheet, tokens)
        results[name] = variants(block, arguments.repeat, arguments.compile and tokens > 0)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "sheet_block.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
