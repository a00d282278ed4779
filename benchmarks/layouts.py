"""Every layout of a model file at full size: does it load, does it draw, in how much GPU memory, and how fast beside streamed bf16.

    python benchmarks/layouts.py --out results/          # one CUDA GPU, capped to 12 GiB; 60 GB of disk; 8 minutes
    python benchmarks/layouts.py --tiny --device cpu     # a minute: checks that every layout is written, found and drawn with

Files have real key names and shapes and random weights. They are written to the disk, found by the product's own search,
checked from their headers, planned for and loaded by the product's own loader. The JSON is written after each stage, the
most used layouts come first, and what no time was left for is said.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import layout_files as files  # noqa: E402
import random_models  # noqa: E402
from layout_files import Contents, Values, packed  # noqa: E402
from stages import Bench, table  # noqa: E402

from charengine.config import Profile  # noqa: E402
from charengine.figures.template import template  # noqa: E402
from charengine.models import full  # noqa: E402
from charengine.models.files import Header  # noqa: E402
from charengine.models.memory import MemoryPlan, cap_memory, plan  # noqa: E402
from charengine.models.survey import Survey, header_of, survey  # noqa: E402
from charengine.profiles.loading import load_profile  # noqa: E402

PROMPT = "A weathered orc woman sailor with green skin, a long blue coat with brass buttons, tall boots, a hook for a right hand."
EDIT, ENCODER, VAE, SDXL = "diffusion_models", "text_encoders", "vae", "checkpoints"
FP8_ENCODER, VAE_FILE = "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image_vae.safetensors"
BASELINE = "bf16, streamed as it is"
LEAST_S = 45.0  # a layout is not begun with less time left


@dataclasses.dataclass(frozen=True)
class Layout:
    """What stands in ComfyUI's folder.

    Args:
        name: in the table.
        edit: the transformer's file; empty: this is a layout of SDXL.
        encoder: the text encoder's file.
        sdxl: the checkpoint's file.
        rounded: bf16 that does not fit is rounded to fp8, as the product does; else it is streamed as it is.
    """

    name: str
    edit: str = ""
    encoder: str = FP8_ENCODER
    sdxl: str = ""
    rounded: bool = True


LAYOUTS = (  # the most used first; the baseline early, since the others are compared with it
    Layout("fp8, scaled", "qwen_image_edit_2511_fp8mixed.safetensors"),
    Layout("GGUF Q4_K_M, text encoder too", "Qwen-Image-Edit-2511-Q4_K_M.gguf", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"),
    Layout(BASELINE, "qwen_image_edit_2511_bf16.safetensors", rounded=False),
    Layout("bf16, rounded to fp8", "qwen_image_edit_2511_bf16.safetensors"),
    Layout("SDXL, one fp16 file", sdxl="sd_xl_base_1.0.safetensors"),
    Layout("int8, convrot", "qwen_image_edit_2511_int8_convrot.safetensors"),
    Layout("GGUF Q8_0", "Qwen-Image-Edit-2511-Q8_0.gguf"),
    Layout("fp8, plain, older scales in the encoder", "qwen_image_edit_2511_fp8_e4m3fn.safetensors"),
    Layout("SDXL, merged by ComfyUI", sdxl="merge_comfyui.safetensors"),
    Layout("SDXL, scaled fp8", sdxl="sdxl_fp8_scaled.safetensors"),
    Layout("bf16 text encoder", "qwen_image_edit_2511_fp8mixed.safetensors", "qwen_2.5_vl_7b.safetensors"),
)


def main() -> int:
    """Every layout in turn, then the table; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and sizes")
    parser.add_argument("--budget", type=float, default=12.0, help="GiB of GPU memory")
    parser.add_argument("--minutes", type=float, default=7.5, help="no layout is begun that would end later")
    parser.add_argument("--only", nargs="*", default=[], help="words of the layouts' names")
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written; the system's for such")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    bench.path = arguments.out / f"layouts{'-tiny' if arguments.tiny else ''}.json"
    chosen = [one for one in LAYOUTS if not arguments.only or any(word in one.name for word in arguments.only)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["CHARENGINE_HOME"] = str(Path(folder) / "home")
        run = Run(bench, arguments, Path(folder))
        for number, layout in enumerate(chosen):
            bench.group(layout.name, partial(run.layout, layout))
            run.clear({file for later in chosen[number + 1 :] for file in run.needs(later)})
            bench.results["layouts"] = compared(run.rows)
            bench.path.write_text(json.dumps(bench.results, indent=1))
    print(table(bench.results).rsplit("\n\n", 1)[0])  # without the seconds of a whole run, which this is not
    print(rows_as_table(bench.results["layouts"]))
    return int(any("error" in facts for facts in bench.results["stages"].values()))


class Run:
    """The layouts over one folder of blobs, named by digests as in Hugging Face's cache, so that none is hashed."""

    def __init__(self, bench: Bench, arguments: argparse.Namespace, folder: Path) -> None:
        self.bench, self.folder, self.tiny, self.budget = bench, folder, arguments.tiny, arguments.budget
        self.device = bench.device
        self.values = Values(self.device)
        self.rows: list[dict[str, Any]] = []
        self.configs = random_models.write_configs(folder / "configs", self.tiny)
        self.size = (192, 96) if self.tiny else (1536, 1024)

    # --- files ---

    def needs(self, layout: Layout) -> list[str]:
        """The files of a layout."""
        if layout.sdxl:
            return [layout.sdxl]
        return [layout.edit, layout.encoder, VAE_FILE, *(["mmproj-F16.gguf"] if "gguf" in layout.encoder.lower() else [])]  # fmt: skip

    def contents(self, file: str) -> Contents:
        """What a file holds, by its name."""
        qwen, sdxl, values = self.configs / "qwen", self.configs / "sdxl", self.values
        bf16, fp16, old_fp8 = values.plain("BF16"), values.plain("F16"), values.scaled_fp8(old=True)
        group = 16 if self.tiny else 256
        marker = {"__index_timestep_zero__": files.Stored("BF16", (0,), memoryview(b""))}
        float8, empty = values.plain("F8_E4M3"), {"__index_timestep_zero__": files.Stored("F32", (0,), memoryview(b""))}
        made: dict[str, Callable[[], Contents]] = {
            VAE_FILE: lambda: packed(files.edit_vae(qwen), bf16),
            FP8_ENCODER: lambda: packed(files.text_encoder(qwen), old_fp8),
            "qwen_2.5_vl_7b.safetensors": lambda: packed(files.text_encoder(qwen), bf16),
            "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf": lambda: packed(files.llama(qwen)[0], values.gguf("Q4_K", "Q6_K")),
            "mmproj-F16.gguf": lambda: packed(files.llama(qwen)[1], fp16_of_gguf(values)),
            "qwen_image_edit_2511_fp8mixed.safetensors": lambda: (
                packed(files.edit_transformer(qwen), values.scaled_fp8(old=False)) | marker
            ),
            "qwen_image_edit_2511_fp8_e4m3fn.safetensors": lambda: packed(files.edit_transformer(qwen), float8),
            "qwen_image_edit_2511_bf16.safetensors": lambda: packed(files.edit_transformer(qwen), bf16) | marker,
            "qwen_image_edit_2511_int8_convrot.safetensors": lambda: (
                packed(files.edit_transformer(qwen), values.convrot(group)) | marker
            ),
            "Qwen-Image-Edit-2511-Q4_K_M.gguf": lambda: (
                packed(files.edit_transformer(qwen), values.gguf("Q4_K", "Q6_K")) | empty
            ),
            "Qwen-Image-Edit-2511-Q8_0.gguf": lambda: packed(files.edit_transformer(qwen), values.gguf("Q8_0")) | empty,
            "sd_xl_base_1.0.safetensors": lambda: packed(files.sdxl(sdxl), fp16),
            "merge_comfyui.safetensors": lambda: packed(files.comfyui_merge(files.sdxl(sdxl)), fp16),
            "sdxl_fp8_scaled.safetensors": lambda: packed(files.sdxl(sdxl), old_fp8),
        }
        return made[file]()

    def write(self, file: str) -> dict[str, Any]:
        """A file that is not there yet: seconds, GB, and the share of it that holds values rather than holes."""
        path = self.blob(file)
        contents = self.contents(file)
        patience = max(10.0, min(60.0, self.bench.left / 5))
        architecture = {"Qwen2": "qwen2vl", "mmpro": "clip"}.get(file[:5], "qwen_image")
        if file.endswith(".gguf"):
            share = files.write_gguf(path, contents, architecture, patience)
        else:
            share = files.write_safetensors(path, contents, patience)
        self.values.forget()
        return {"gb": round(path.stat().st_size / 1e9, 2), "share_with_values": round(share, 3)}

    def blob(self, file: str) -> Path:
        """Where a file's bytes are."""
        return self.folder / "blobs" / hashlib.sha256(file.encode()).hexdigest()

    def clear(self, kept: set[str]) -> None:
        """Delete the files that no later layout needs."""
        names = {self.blob(file).name for file in kept}
        for path in (self.folder / "blobs").glob("*"):
            if path.name not in names:
                path.unlink()

    def profile(self, layout: Layout) -> Profile:
        """ComfyUI's folder with links to this layout's files alone, and the profile that looks there."""
        place = self.folder / "comfyui" / hashlib.sha256(layout.name.encode()).hexdigest()[:8] / "models"
        for file in self.needs(layout):
            kind = SDXL if layout.sdxl else VAE if file == VAE_FILE else EDIT if file == layout.edit else ENCODER
            (place / kind).mkdir(parents=True, exist_ok=True)
            (place / kind / file).symlink_to(self.blob(file))
        made = load_profile("sdxl-12gb", [f"budget_gib={self.budget:g}", "models.prediction_type=epsilon"])
        models = {
            "folders": (str(place),),
            "edit_config": str(self.configs / "qwen"),
            "sdxl_config": str(self.configs / "sdxl"),
            "device": str(self.device),
        }
        sheet = made.sheet.model_copy(update={"width": self.size[0], "height": self.size[1]})
        return made.model_copy(update={"models": made.models.model_copy(update=models), "sheet": sheet})

    # --- layouts ---

    def layout(self, layout: Layout) -> None:
        """Write it, find it, load it, draw with it."""
        if not self.tiny and self.bench.left < LEAST_S:
            self.bench.skip(layout.name, "no time left")
            return
        for file in self.needs(layout):
            if not self.blob(file).exists():
                self.bench.stage(f"write {file}", partial(self.write, file))
        self.found: Survey | None = None
        self.asked = self.profile(layout)
        if not self.bench.stage(f"{layout.name}: find, check and plan", partial(self._survey, layout)):
            return
        cap_memory(self.device, self.budget)
        (self._sdxl if layout.sdxl else self._qwen)(layout)

    def _survey(self, layout: Layout) -> dict[str, Any]:
        found = survey(self.asked)
        named = [problem for problem in found.problems if "no tokenizer" not in str(problem)]
        if named:
            raise named[0]
        wanted = {"sdxl": layout.sdxl} if layout.sdxl else {"edit": layout.edit, "vl": layout.encoder}
        taken = {part: found.stock.found[part].path.name for part in wanted if part in found.stock.found}
        assert taken == wanted, f"found {taken}; {' '.join(found.missing)}"
        if not layout.sdxl and not layout.rounded:
            found = dataclasses.replace(found, plan=self._streamed_as_it_is(found))
        self.found = found
        return {} if found.plan is None else {"plan": found.plan.describe()}

    def _streamed_as_it_is(self, found: Survey) -> MemoryPlan:
        headers: list[Header] = []
        for part in ("vl", "edit"):
            model = found.stock.found[part]
            headers.append(header_of(model.path, model.identity.prefix))
        return plan(self.budget, *headers, sheet=self.size, compute_bytes=2)

    def _qwen(self, layout: Layout) -> None:
        assert self.found is not None
        before = len(self.bench.results["stages"])
        editor, captioner = full._qwen(self.asked, self.found, self.device, full.compute_dtype(self.device))
        editor.on_step = self._tick
        if self.tiny:
            editor.vae_area, editor.condition_area = 96 * 96, 56 * 56
        parts: Any = editor.parts
        try:
            for part in ("text_encoder", "transformer"):
                name = f"{layout.name}: load the {part.replace('_', ' ')}"
                if not self.bench.stage(name, partial(self._load, parts, part)):
                    return
            self.bench.stage(f"{layout.name}: draw", partial(self._draw, editor))
            if layout.encoder != FP8_ENCODER or "fp8, scaled" in layout.name:
                self.bench.stage(f"{layout.name}: caption", lambda: self._caption(captioner))
        finally:
            editor._loaded.forget("text_encoder", "transformer", "vae", "processor")
        stages = list(self.bench.results["stages"].values())[before:]
        self._row(layout, self.blob(layout.edit).stat().st_size, stages)

    def _load(self, parts: Any, name: str) -> dict[str, Any]:
        """Read, fill, place; then make room for the other."""
        getattr(parts, name)()
        stream = parts._streams[name]
        facts = {"blocks": len(stream.blocks), "resident_blocks": len(stream.blocks) - len(stream.streamed)}
        facts["streamed_gb_per_pass"] = round(sum(stream.hosts[i].nbytes for i in stream.streamed) / 1e9, 2)
        parts.release(name)
        return facts

    def _tick(self, _done: int, _steps: int) -> None:
        self.bench._wait()
        self.ticks.append(time.perf_counter())

    def _draw(self, editor: Any) -> dict[str, Any]:
        """A whole drawing in six steps with guidance: every step asks the transformer twice."""
        self.ticks: list[float] = []
        steps = 2 if self.tiny else 6
        image = editor.draw(template(*self.size), PROMPT, seed=1, steps=steps, guidance=4.0)
        each = [b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)]
        stream = editor.parts._streams["transformer"]
        return {
            "step_s": round(statistics.median(each), 4),
            "steps_s": [round(seconds, 3) for seconds in each],
            "size": list(image.size),
            "colours": len(set(image.resize((64, 64)).get_flattened_data())),
            "resident_blocks": len(stream.blocks) - len(stream.streamed),
        }

    def _caption(self, captioner: Any) -> dict[str, Any]:
        start = time.perf_counter()
        captioner.ask_all([template(*self.size)] * 3, "What is this?", max_tokens=2 if self.tiny else 24)
        return {"answers_s": round(time.perf_counter() - start, 2)}

    def _sdxl(self, layout: Layout) -> None:
        assert self.found is not None
        before = len(self.bench.results["stages"])
        diffusion = full._sdxl(self.asked, self.found, self.device, full.compute_dtype(self.device))
        try:
            self.bench.stage(f"{layout.name}: load and draw", lambda: self._sample(diffusion))
            self.bench.stage(f"{layout.name}: draw", lambda: self._sample(diffusion))
        finally:
            diffusion.unload()
        stages = list(self.bench.results["stages"].values())[before:]
        self._row(layout, self.blob(layout.sdxl).stat().st_size, stages)

    def _sample(self, diffusion: Any) -> dict[str, Any]:
        size, steps = ((64, 64), 2) if self.tiny else ((832, 1216), 8)
        text, empty = (diffusion.encode_prompts([words]) for words in (PROMPT, ""))
        start = time.perf_counter()
        images = diffusion.sample(text, empty, seeds=[1], size=size, steps=steps, guidance=5.0)
        seconds = time.perf_counter() - start
        return {"step_s": round(seconds / steps, 4), "size": list(images[0].size)}

    def _row(self, layout: Layout, size: int, stages: list[dict[str, Any]]) -> None:
        """What the table says of a layout."""
        failed = next((facts["error"] for facts in stages if "error" in facts), "")
        drawn = [facts for facts in stages if "step_s" in facts]
        loads = [facts["seconds"] for facts in stages if "streamed_gb_per_pass" in facts]
        row: dict[str, Any] = {"layout": layout.name, "gb": round(size / 1e9, 1), "error": failed}
        row["load_s"] = round(sum(loads), 1) if loads else drawn[0]["seconds"] if drawn else None
        row["step_s"] = drawn[-1]["step_s"] if drawn else None
        row |= {key: stages[1].get(key) for key in ("resident_blocks", "streamed_gb_per_pass") if len(stages) > 1}
        for key in ("gpu_peak_gib", "gpu_reserved_gib"):
            if peaks := [facts[key] for facts in stages if key in facts]:
                row[key] = max(peaks)
        self.rows.append(row)


def fp16_of_gguf(values: Values) -> files.Packing:
    """A vision tower as llama.cpp writes it: matrices and kernels in F16, the rest F32."""
    half, single = values.plain("F16"), values.plain("F32")
    return lambda name, shape: (half if len(shape) > 1 else single)(name, shape)


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each edit model's step beside that of bf16 streamed as it is, and whether it stays within the budget."""
    base = next((row["step_s"] for row in rows if row["layout"] == BASELINE), None)
    for row in rows:
        if base and row["step_s"] and not row["layout"].startswith("SDXL"):
            row["step_of_streamed_bf16"] = round(row["step_s"] / base, 3)
    return rows


def rows_as_table(rows: list[dict[str, Any]]) -> str:
    """The layouts as a Markdown table."""
    columns = {
        "layout": "layout", "gb": "GB", "load_s": "load s", "resident_blocks": "blocks on the GPU", "streamed_gb_per_pass": "streamed GB a pass",
        "gpu_peak_gib": "GPU peak GiB", "gpu_reserved_gib": "reserved GiB", "step_s": "step s", "step_of_streamed_bf16": "of streamed bf16", "error": "error",
    }  # fmt: skip
    lines = [f"| {' | '.join(columns.values())} |", f"| {' | '.join('---' for _ in columns)} |"]
    for row in rows:
        lines.append("| " + " | ".join("" if row.get(key) is None else str(row[key]) for key in columns) + " |")
    return "\n".join(["", *lines])


if __name__ == "__main__":
    sys.exit(main())
