"""kohya's sd-scripts on the same recipe, run beside this project from the user's own checkout and environment.

Its own progress bar averages from the start, warm-up included; the gaps between the losses it records are timed instead
(it reads each loss back from the device, so a gap is a whole step). Without an SDXL file its modules get random weights
and its tokenizers are byte-level: neither takes part in a step, whose latents and text are cached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

WRAPPER = """
import json, runpy, statistics, sys, time
folder, cap, random = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "random"
sys.path.insert(0, folder)
import torch
from library import model_util, sdxl_model_util, train_util

if torch.cuda.is_available():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))

def random_weights(model, state_dict, device, dtype=None):
    drawn = {}
    for name, old in model.state_dict().items():
        role = "plain" if old.ndim > 1 else "one" if name.endswith("weight") else "zero"
        key = (role, old.shape)
        if key not in drawn:
            fan_in = old[0].numel() if old.ndim > 1 else 1
            drawn[key] = {"one": torch.ones, "zero": torch.zeros, "plain": torch.randn}[role](old.shape)
            drawn[key] *= 0.5 / fan_in**0.5 if role == "plain" else 1
        value = drawn[key].to(device, dtype or torch.float32, copy=True)
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[leaf] = value
    return "random weights"

if random:
    sdxl_model_util._load_state_dict_on_device = random_weights
    model_util.convert_ldm_vae_checkpoint = lambda state_dict, config: {}

marks, add, WARM = [], train_util.LossRecorder.add, 3
peaks = {"peak": 0}
def timed(self, *args, **kwargs):
    marks.append(time.perf_counter())
    if len(marks) == 1 and torch.cuda.is_available():
        peaks["before"] = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return add(self, *args, **kwargs)
train_util.LossRecorder.add = timed
sys.argv = [folder + "/sdxl_train_network.py", *sys.argv[4:]]
started = time.perf_counter()
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    gaps = [1000 * (b - a) for a, b in zip(marks[WARM:], marks[WARM + 1:])]
    steps = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    found = {"step_ms": statistics.median(gaps) if gaps else 0, "samples": 1, "steps": len(marks)}
    found |= {"worst_ms": max(gaps, default=0), "peak_gib": steps / 2**30}
    found["peak_before_steps_gib"] = peaks.get("before", 0) / 2**30
    found["ready_s"] = round(marks[0] - started, 1) if marks else None
    print("RESULT " + json.dumps(found))
"""
TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")  # its cache's folder names


def measure_sd_scripts(
    folder: Path,
    checkpoint: Path | None,
    size: tuple[int, int],
    work: Path,
    cap_gib: float,
    *,
    python: Path | None = None,
    steps: int = 12,
    limit: float = 300.0,
    log: Path | None = None,
) -> dict[str, Any]:
    """Median time of its step under the cap: its own LoCon, checkpointing, cached latents and text, Adafactor.

    Args:
        folder: a checkout of sd-scripts.
        checkpoint: an SDXL .safetensors file; None: random weights of the same modules.
        size: of the three training images, pixels.
        work: where the images and outputs go.
        cap_gib: of the allocator.
        python: the interpreter that runs it; None: `.venv` of the checkout when it has one, else this one.
        steps: how many to run; the first four are warm-up.
        limit: seconds after which it is stopped.
        log: where the end of what it printed goes.

    Returns:
        `step_ms` (median), `peak_gib` (reserved by the steps after the first), `peak_before_steps_gib` (loading, caching
        and the first step), `commit`, `stand_ins`; or `error`.
    """
    folder, work = folder.resolve(), work.resolve()
    images = work / f"images-{size[0]}" / "20_zorgal woman"
    images.mkdir(parents=True, exist_ok=True)
    for i, view in enumerate(("front", "side", "back")):
        Image.new("RGB", size, (80 * i, 120, 200)).save(images / f"{view}.png")
        (images / f"{view}.txt").write_text(f"zorgal, woman, {view} view")
    flags = {
        "pretrained_model_name_or_path": checkpoint.resolve() if checkpoint else _empty_checkpoint(work),
        "train_data_dir": images.parent,
        "output_dir": work / "sd-scripts",
        "resolution": f"{size[0]},{size[1]}",
        "caption_extension": ".txt",
        "network_module": "networks.lora",
        "network_dim": 32,
        "network_alpha": 4,
        "optimizer_type": "Adafactor",
        "learning_rate": 3e-4,
        "lr_scheduler": "constant",
        "max_grad_norm": 1.0,
        "min_snr_gamma": 5,
        "mixed_precision": "bf16",
        "max_train_steps": steps,
        "train_batch_size": 1,
        "max_data_loader_n_workers": 2,
        "seed": 42,
    }
    switches = (
        "network_train_unet_only sdpa cache_latents cache_text_encoder_outputs no_half_vae gradient_checkpointing"
    )
    stand_ins = _changes(folder)
    if checkpoint is None:
        flags["tokenizer_cache_dir"] = _write_tokenizers(work / "tokenizers")
        stand_ins += ["random weights", "byte-level tokenizers"]
    command = [str(interpreter(folder, python)), "-c", WRAPPER, str(folder), str(cap_gib)]
    command += ["random" if checkpoint is None else "file"]
    command += [f"--{name}={value}" for name, value in flags.items()] + [f"--{name}" for name in switches.split()]
    command += ["--persistent_data_loader_workers", "--network_args", "conv_dim=16", "conv_alpha=4"]
    command += ["--optimizer_args", "scale_parameter=False", "relative_step=False", "warmup_init=False"]
    offline = {"USE_FLAX": "0", "USE_TF": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, cwd=folder, env=os.environ | offline
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"{type(error).__name__}: {str(error)[-300:]}"}
    if log is not None:
        log.write_text(done.stdout[-20_000:] + done.stderr[-20_000:])
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT ")) if lines else {}
    if not result.get("step_ms"):
        return {"error": done.stderr.strip()[-1500:]}
    return {**result, "commit": commit(folder), "stand_ins": stand_ins}


def interpreter(folder: Path, python: Path | None) -> Path:
    """What runs sd-scripts: the one named, that of the checkout's `.venv`, or the running one."""
    own = folder / ".venv" / "bin" / "python"
    return python or (own if own.exists() else Path(sys.executable))


def commit(folder: Path) -> str:
    """Of the checkout: its file COMMIT (a copy without history), else git's."""
    if (folder / "COMMIT").is_file():
        return (folder / "COMMIT").read_text().strip()
    if not (folder / ".git").exists():
        return "unknown"
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _changes(folder: Path) -> list[str]:
    """Lines of the checkout's file CHANGES: what was altered in it to run in this environment."""
    file = folder / "CHANGES"
    return [line.strip() for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []


def _empty_checkpoint(work: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    path = work / "random.safetensors"
    save_file({"unused": torch.zeros(1)}, path)
    return path


def _write_tokenizers(folder: Path) -> Path:
    """Byte-level tokenizers with CLIP's 49,408 ids, under the names that sd-scripts looks for in its cache."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<unused{i}>" for i in range(len(words), 49_406)] + ["<|startoftext|>", "<|endoftext|>"]
    for name in TOKENIZERS:
        tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
        tokenizer.save_pretrained(folder / name)
        (folder / name / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (folder / name / "merges.txt").write_text("#version: 0.2\n")  # what transformers 4, which it pins, reads
    return folder
