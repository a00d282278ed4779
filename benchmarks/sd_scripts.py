"""kohya's sd-scripts on the same recipe, run beside this project from the user's own checkout and environment.

Its own progress bar averages from the start, warm-up included; the gaps between the losses it records are timed instead.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image

WRAPPER = """
import json, runpy, statistics, sys, time
folder, cap = sys.argv[1], float(sys.argv[2])
sys.path.insert(0, folder)
import torch
from library import train_util
torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / torch.cuda.get_device_properties(0).total_memory))
marks, add = [], train_util.LossRecorder.add
def timed(self, *args, **kwargs):
    marks.append(time.perf_counter())
    return add(self, *args, **kwargs)
train_util.LossRecorder.add = timed
sys.argv = [folder + "/sdxl_train_network.py", *sys.argv[3:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    gaps = [1000 * (b - a) for a, b in zip(marks[3:], marks[4:])]
    peak = torch.cuda.max_memory_reserved() / 2**30
    print("RESULT " + json.dumps({"step_ms": statistics.median(gaps) if gaps else 0, "samples": 1, "peak_gib": peak}))
"""


def measure_sd_scripts(
    folder: Path, checkpoint: Path, size: tuple[int, int], work: Path, cap_gib: float, steps: int = 30
) -> dict[str, Any]:
    """Median time of its step under the cap: its own LoCon, checkpointing, cached latents and text, Adafactor.

    Args:
        folder: a checkout of sd-scripts with its environment in `.venv`.
        checkpoint: an SDXL .safetensors file, real or random.
        size: of the three training images, pixels.
        work: where the images and outputs go.
        cap_gib: of the allocator.
        steps: how many to run.
    """
    images = work / f"images-{size[0]}" / "20_zorgal woman"
    images.mkdir(parents=True, exist_ok=True)
    for i, view in enumerate(("front", "side", "back")):
        Image.new("RGB", size, (80 * i, 120, 200)).save(images / f"{view}.png")
        (images / f"{view}.txt").write_text(f"zorgal, woman, {view} view")
    flags = {
        "pretrained_model_name_or_path": checkpoint,
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
    command = [str(folder / ".venv/bin/python"), "-c", WRAPPER, str(folder), str(cap_gib)]
    command += [f"--{name}={value}" for name, value in flags.items()] + [f"--{name}" for name in switches.split()]
    command += ["--persistent_data_loader_workers", "--network_args", "conv_dim=16", "conv_alpha=4"]
    command += ["--optimizer_args", "scale_parameter=False", "relative_step=False", "warmup_init=False"]
    offline = {"USE_FLAX": "0", "USE_TF": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=900, cwd=folder, env=os.environ | offline
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT ")) if lines else {}
    return result if result.get("step_ms") else {"error": done.stderr.strip()[-1500:]}
