"""What every training part shares: a wall-clock schedule, averaged weights, a log, atomic weight files."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Training is boxed by time: progress is elapsed time, and the learning rate anneals exactly within the box."""

    def __init__(self, minutes: float, warmup: float = 0.03, floor: float = 0.01, max_steps: int = 0) -> None:
        self.total = minutes * 60
        self.warmup, self.floor, self.max_steps = warmup, floor, max_steps
        self.start = time.monotonic()
        self.step = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """0 to 1; also 1 when `max_steps` are done."""
        if self.max_steps and self.step >= self.max_steps:
            return 1.0
        return min(1.0, self.seconds / self.total)

    def learning_rate(self) -> float:
        """Share of the peak rate now: linear warm-up, then cosine."""
        p = self.progress
        if p < self.warmup:
            return max(p / self.warmup, 0.02)
        x = (p - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * x))


class Average:
    """Exponential moving average of parameters, shorter at the start (2 / (10 + step))."""

    def __init__(self, modules: dict[str, torch.nn.Module], decay: float = 0.999) -> None:
        self.modules, self.decay, self.step = modules, decay, 0
        self.live = [p for m in modules.values() for p in m.parameters()]
        self.kept = [p.detach().clone().float() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the live weights."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged weights (call again to undo)."""
        for live, kept in zip(self.live, self.kept, strict=True):
            held = live.detach().clone()
            live.copy_(kept)
            kept.copy_(held)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Averaged weights by module, fp16 on the CPU, tied weights once."""
        kept = {id(p): k for p, k in zip(self.live, self.kept, strict=True)}
        out: dict[str, dict[str, torch.Tensor]] = {}
        for name, module in self.modules.items():
            parameters = dict(module.named_parameters())  # lists a tied weight once
            tensors = {key: kept[id(p)].half().cpu().contiguous() for key, p in parameters.items()}
            out[name] = {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}
        return out


class Log:
    """Appends one JSON object a line to `<folder>/<part>.jsonl`, and says the same on stdout now and then."""

    def __init__(self, folder: Path, part: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.part = folder / f"{part}.jsonl", part
        self.start = time.monotonic()

    def write(self, **values: Any) -> None:
        """Log numbers or a message."""
        row: dict[str, Any] = {"seconds": round(time.monotonic() - self.start, 1)}
        row |= {k: round(_number(v), 5) if isinstance(v, (float, torch.Tensor)) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(self.part, *(f"{k}={v}" for k, v in row.items()), flush=True)


def finish(folder: Path, log: Log, part: str, clock: Clock, average: Average, **facts: Any) -> None:
    """Write the averaged weights with the run's facts, leave them in the modules, and log the end."""
    write_weights(folder, average.state(), {f"{part}_training": {"steps": clock.step, **facts}})
    average.swap()
    log.write(event="done", steps=clock.step)


def write_weights(folder: Path, state: dict[str, dict[str, torch.Tensor]], facts: dict[str, Any] | None = None) -> None:
    """Write `<folder>/<name>.safetensors` for each module, and facts to `<folder>/<name>.json`; each file whole or not."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in state.items():
        for key, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}: {key} is not finite; keeping the last good file")
        temporary = folder / f".{name}.part"
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / f"{name}.safetensors")
    for name, values in (facts or {}).items():
        temporary = folder / f".{name}.part"
        temporary.write_text(json.dumps(values), encoding="utf-8")
        os.replace(temporary, folder / f"{name}.json")


def read_weights(folders: list[Path], name: str, module: torch.nn.Module) -> bool:
    """Load `<name>.safetensors` from the first folder that has it; False when none has."""
    from safetensors.torch import load_file

    for folder in folders:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            missing, unexpected = module.load_state_dict(load_file(path), strict=False)
            tied = {"lm_head.weight"}
            left = [key for key in missing if key not in tied and not key.endswith("position_ids")]
            if left or unexpected:
                raise ValueError(f"{path}: missing {left[:3]}, unexpected {unexpected[:3]}")
            return True
    return False


def read_facts(folders: list[Path], name: str) -> dict[str, Any] | None:
    """`<name>.json` from the first folder that has it."""
    for folder in folders:
        path = folder / f"{name}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return None


def decayed(*modules: torch.nn.Module, rate: float, decay: float = 0.02) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices decay, vectors do not."""
    params = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    return [
        {"params": [p for p in params if p.ndim > 1], "lr": rate, "weight_decay": decay},
        {"params": [p for p in params if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def _number(value: float | torch.Tensor) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else value
