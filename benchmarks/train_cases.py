"""The cases of `train_step.py`: our step under several plans, the usual ways, a whole run, the smallest budget."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.train_machine import LARGE, VIEW, Machine


def measure_ours(machine: Machine, size: tuple[int, int], profile: bool = False, **changes: Any) -> dict[str, Any]:
    """Median time of our step under the cap, with the plan it chose."""
    import torch

    from charengine.stages.train.sampler import groups_of_step
    from charengine.stages.train.setup import describe

    began = time.perf_counter()
    setup = machine.setup(size, **changes)
    ready = time.perf_counter() - began

    def step(i: int) -> None:
        setup.step.run(i, groups_of_step(setup.data, setup.settings, 0, i))

    times = machine.times(step, machine.steps)
    samples = sum(len(group.samples) for group in groups_of_step(setup.data, setup.settings, 0, 0))
    result = {
        "step_ms": statistics.median(times),
        "worst_ms": max(times),
        "samples": samples,
        "peak_gib": machine.peak(),
    }
    result |= {"plan": describe(setup.plan), "ready_s": round(ready, 1), "loss": setup.step.read_losses(0, 3)}
    if machine.cuda:
        update = machine.times(lambda _: setup.optimizer.update(setup.step.factor), 5)
        result["optimizer_eager_ms"] = statistics.median(update)
        result["optimizer_graph_ms"] = graph_time(machine, lambda: setup.optimizer.update(setup.step.factor))
    if profile and machine.cuda:
        result["kernels"] = profile_kernels(lambda: (step(30), torch.cuda.synchronize()))
    return result


def graph_time(machine: Machine, work: Callable[[], None]) -> float:
    """Median time of some work replayed as a CUDA graph."""
    import torch

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return statistics.median(machine.times(lambda _: graph.replay(), 10))


def profile_kernels(work: Callable[[], Any], most: int = 45) -> list[str]:
    """Device time by kernel name, largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    try:
        with record(activities=[ProfilerActivity.CUDA]) as found:
            work()
    except RuntimeError as error:
        return [f"no profile: {error}"]
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total, calls = sum(row.self_device_time_total for row in rows), sum(row.count for row in rows)
    lines = [f"{total / 1000:.2f} ms in {calls} kernels"]
    return lines + [
        f"{row.self_device_time_total / 1000:8.3f} ms {row.count:6d} x {row.key[:110]}" for row in rows[:most]
    ]


def measure_eager(machine: Machine, size: tuple[int, int], bypass: bool) -> dict[str, Any]:
    """The usual way: LyCORIS on the diffusers U-Net, checkpointing, transformers' Adafactor, one sample a step."""
    import torch
    from lycoris import create_lycoris
    from lycoris.config import PRESET
    from transformers.optimization import Adafactor

    from benchmarks.random_sdxl import build_unet
    from charengine.adapter import fresh as adapter

    PRESET.update(adapter.PRESETS)  # the same layers as ours
    device, (width, height) = torch.device(machine.device), machine.size(size)
    unet = build_unet(machine.config, device, machine.dtype)
    settings = machine.settings()
    net = create_lycoris(
        unet,
        1.0,
        linear_dim=settings.rank,
        linear_alpha=settings.alpha,
        conv_dim=settings.conv_rank,
        conv_alpha=settings.conv_alpha,
        algo="locon",
        bypass_mode=bypass,
        preset="charengine-conv",
    )
    net.apply_to()
    net.to(device, machine.dtype)
    unet.enable_gradient_checkpointing()
    unet.train()
    optimizer = Adafactor(net.parameters(), lr=3e-4, scale_parameter=False, relative_step=False, warmup_init=False)
    cross, pooled = machine.config["cross_attention_dim"], machine.diffusion().pooled
    kind: dict[str, Any] = {"device": device, "dtype": machine.dtype}
    latents, text, vector = (
        torch.randn(1, 4, height // 8, width // 8, **kind),
        torch.randn(1, 77, cross, **kind),
        torch.randn(1, pooled, **kind),
    )
    conditions = {"text_embeds": vector, "time_ids": torch.tensor([[height, width, 0, 0, height, width]], **kind)}
    parts: dict[str, list[float]] = {"forward_backward_ms": [], "optimizer_ms": []}

    def step(_: int) -> None:
        start = time.perf_counter()
        noise = torch.randn_like(latents)
        timestep = torch.randint(0, 1000, (1,), device=device)
        predicted = unet(latents + noise, timestep, text, added_cond_kwargs=conditions).sample
        torch.nn.functional.mse_loss(predicted.float(), noise.float()).backward()
        _wait(machine)
        middle = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(machine)
        parts["forward_backward_ms"].append(1000 * (middle - start))
        parts["optimizer_ms"].append(1000 * (time.perf_counter() - middle))

    times = machine.times(step, 2 if machine.tiny else 4, warm=1)
    medians = {name: statistics.median(values[1:]) for name, values in parts.items()}
    return {
        "step_ms": statistics.median(times),
        "samples": 1,
        "peak_gib": machine.peak(),
        "modules": len(net.loras),
        **medians,
    }


def _wait(machine: Machine) -> None:
    import torch

    if machine.cuda:
        torch.cuda.synchronize()


def check(machine: Machine) -> dict[str, Any]:
    """Small numbers that must hold on this device: Triton against torch, graph against eager, resumed against not."""
    import torch

    from charengine.models.kernels import geglu, geglu_backward
    from charengine.stages.train.sampler import groups_of_step

    found: dict[str, Any] = {}
    projected = torch.randn(300, 2 * 640, device=machine.device)
    grad = torch.randn(300, 640, device=machine.device)
    leaf = projected.double().requires_grad_(True)
    left, gate = leaf.chunk(2, -1)
    wanted = left * torch.nn.functional.gelu(gate)
    wanted.backward(grad.double())
    change, again = geglu_backward(grad, projected)
    pairs = {"geglu": (geglu(projected), wanted), "geglu_again": (again, wanted), "geglu_grad": (change, leaf.grad)}
    for name, (ours, theirs) in pairs.items():
        found[name] = float((ours.double() - theirs).norm() / theirs.norm())
    machine.config = machine.diffusion(tiny=True).config

    def adapter(graph: str, precision: str, first: int = 8) -> tuple[list[float], dict[str, torch.Tensor]]:
        small = {"rank": 4, "conv_rank": 2, "learning_rate": 1e-3, "cuda_graph": graph, "precision": precision}
        setup = machine.setup((1024, 1024) if machine.tiny else (128, 128), **small, deterministic=True)
        saved: dict[str, torch.Tensor] = {}
        for i in range(8):
            if i == first:
                saved = {name: tensor.clone() for name, tensor in setup.tensors().items()}
            if i == first + 2:  # go back and do the last two steps again, as a resumed training would
                setup.restore(saved)
                for j in (first, first + 1):
                    setup.step.run(j, groups_of_step(setup.data, setup.settings, 0, j))
            setup.step.run(i, groups_of_step(setup.data, setup.settings, 0, i))
        losses = setup.step.read_losses(0, 8)
        values = {key: value.clone() for key, value in setup.parameters.named().items()}
        setup.close()
        return losses, values

    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    eager, resumed, graphed = adapter("off", "fp32"), adapter("auto", "fp32", first=3), adapter("auto", "fp32")
    found["losses"] = eager[0]
    found["graph_equals_eager"] = all(torch.equal(eager[1][key], graphed[1][key]) for key in eager[1])
    found["graph_from_eager"] = max(float((eager[1][key] - graphed[1][key]).abs().max()) for key in eager[1])
    found["resumed_equals_uninterrupted"] = all(torch.equal(resumed[1][key], graphed[1][key]) for key in eager[1])
    if machine.cuda:
        found["bf16_losses"] = adapter("auto", "bf16")[0]
        found["fp16_losses"] = adapter("auto", "fp16")[0]
    return found


def whole_run(machine: Machine) -> dict[str, Any]:
    """`train_adapter` over 1,200 samples of the views' bucket, from reading the U-Net's file to the saved adapter."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.random_sdxl import build_unet, three_views
    from charengine.stages.train.loop import train_adapter

    weights = str(machine.work / "unet.safetensors")
    if not Path(weights).exists():
        save_file(build_unet(machine.config, torch.device(machine.device), machine.dtype).state_dict(), weights)
        torch.cuda.empty_cache()
    steps = 6 if machine.tiny else 400
    settings, store = machine.settings(steps=steps, checkpoints=5 if not machine.tiny else 2), machine.store()
    dataset = three_views(store, *machine.size(VIEW))
    seen: list[Any] = []
    started = time.perf_counter()
    record = train_adapter(
        dataset,
        settings,
        machine.diffusion(weights),
        store,
        seed=0,
        state_dir=machine.work / "state",
        on_step=seen.append,
    )
    target = machine.work / "adapter.safetensors"
    store.export(record.checkpoints[-1].adapter, target)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "loop_seconds": round(record.facts["seconds"], 2),
        "samples": record.facts["samples"],
        "step_ms": record.facts["step_ms"],
        "peak_gib": machine.peak(),
        "plan": record.plan,
        "file_mib": target.stat().st_size / 2**20,
        "last": str(seen[-1]),
    }


def adafactor(machine: Machine) -> dict[str, Any]:
    """Our batched Adafactor and transformers', on SDXL's 1,576 LoCon tensors with the same gradients."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers.optimization import Adafactor

    from charengine.adapter.network import inject
    from charengine.stages.train.optimizers import BatchedAdafactor
    from charengine.stages.train.storage import StackedParameters

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(machine.config)
    shapes = {key: parameter.shape for key, parameter in inject(unet, machine.settings()).parameters().items()}
    values = {
        key: torch.nn.Parameter(torch.randn(shape, device=machine.device) * 0.02) for key, shape in shapes.items()
    }
    theirs = [torch.nn.Parameter(value.detach().clone()) for value in values.values()]
    stacked = StackedParameters(values, torch.float32)
    ours = BatchedAdafactor(stacked)
    reference = Adafactor(theirs, lr=3e-4, scale_parameter=False, relative_step=False, warmup_init=False)
    factor = torch.ones((), device=machine.device)

    def own(i: int) -> None:
        ours.prepare(i, 3e-4)
        ours.update(factor)

    def usual(_: int) -> None:
        reference.step()
        _wait(machine)

    steps = 3
    for i in range(steps):
        for (_, mine), other in zip(values.items(), theirs, strict=True):
            gradient = torch.randn_like(mine)
            mine.grad.copy_(gradient)  # type: ignore[union-attr]
            other.grad = gradient
        own(i)
        usual(i)
    pairs = zip(values.values(), theirs, strict=True)
    difference = max(float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)
    result = {
        "tensors": len(shapes),
        "parameters": sum(value.numel() for value in values.values()),
        "stacks": len(stacked.stacks),
        "difference": difference,
        "transformers_ms": statistics.median(machine.times(usual, 2 if machine.tiny else 4, warm=1)),
        "step_ms": statistics.median(machine.times(own, machine.steps)),
    }
    if machine.cuda:
        result["graph_ms"] = graph_time(machine, lambda: ours.update(factor))
    return result


def smallest_budget(machine: Machine) -> dict[str, Any]:
    """The smallest budget in which 1024×1024 trains: float8 base, full checkpointing; each try lies below the last peak."""
    from charengine.errors import OutOfBudget

    found: dict[str, Any] = {"tried": {}}
    budget = 5.0
    for _ in range(4):
        try:
            setup = machine.setup(LARGE, fp8_base=True, checkpointing="full", batch=1, budget_gib=budget)
        except OutOfBudget as error:
            found["tried"][budget] = str(error)
            if "budget_gib" in found or error.smallest_gib is None:
                break
            budget = math.ceil(20 * error.smallest_gib + 1) / 20
            continue
        times = machine.times(lambda i: setup.step.run(i, _groups(setup, i)), 4)  # noqa: B023
        fits = {"step_ms": statistics.median(times), "peak_gib": setup.plan.peak_gib}
        found["tried"][budget] = fits
        found |= {"budget_gib": budget, "samples": 1, **fits}
        setup.close()
        if not machine.cuda:
            break
        budget = math.floor(4 * min(budget, setup.plan.peak_gib) - 0.01) / 4
    return found


def _groups(setup: Any, i: int) -> Any:
    from charengine.stages.train.sampler import groups_of_step

    return groups_of_step(setup.data, setup.settings, 0, i)


CASES: dict[str, Callable[[Machine], dict[str, Any]]] = {  # most wanted first: time may run out
    "check": check,
    "smallest-budget": smallest_budget,
    "adafactor": adafactor,
    "lycoris-bypass-1024": lambda machine: measure_eager(machine, LARGE, bypass=True),
    "ours-1024": lambda machine: measure_ours(machine, LARGE, profile=True),
    "lycoris-default-1024": lambda machine: measure_eager(machine, LARGE, bypass=False),
    "ours-320": lambda machine: measure_ours(machine, VIEW, profile=True),
    "lycoris-bypass-320": lambda machine: measure_eager(machine, VIEW, bypass=True),
    "ours-1024-batch1": lambda machine: measure_ours(machine, LARGE, batch=1, checkpointing="none"),
    "ours-1024-adamw": lambda machine: measure_ours(machine, LARGE, optimizer="adamw"),
    "run-1200-samples": whole_run,
    "ours-320-compiled": lambda machine: measure_ours(machine, VIEW, compile=True),
    "ours-1024-checkpointed": lambda machine: measure_ours(machine, LARGE, checkpointing="full"),
    "ours-320-batch6": lambda machine: measure_ours(machine, VIEW, accumulate=2),
    "ours-320-batch1": lambda machine: measure_ours(machine, VIEW, batch=1),
    "ours-1024-eager": lambda machine: measure_ours(machine, LARGE, cuda_graph="off", batch=1),
    "lycoris-default-320": lambda machine: measure_eager(machine, VIEW, bypass=False),
}
