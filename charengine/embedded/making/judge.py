"""Trains readers of traits: the probe that judges the family, and the eye that teaches its VAEs. Both see rendered ground truth only."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields

import torch

from charengine.embedded import probe as source
from charengine.embedded.making.clock import Clock, Log, decayed, write_weights
from charengine.embedded.making.data import Refill
from charengine.embedded.making.eye import NAME, OTHER, build_eye
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.run import Run
from charengine.embedded.traits import visible_mask


def train_judge(run: Run, minutes: float, name: str = "probe") -> None:
    """Train the probe, or an eye, for `minutes`; keeps the weights of the end of the schedule."""
    device, log = run.device, Log(run.out, name)
    model = (source.Probe() if name == "probe" else build_eye(run, name)).to(device).train()
    resumed = load(run, model, name)
    clock = Clock(minutes, max_steps=run.max_steps)
    seed = run.seed + {"probe": 41, NAME: 4100, OTHER: 8200}[name]
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed + 1)
    chunk, room = run.scale(1024, 2), run.scale(40000, 8)
    kinds: list[tuple[bool, tuple[int, int]]] = [(False, (128, 384)), *((True, size) for size in source.SCENE_SIZES)]
    if run.tiny:
        kinds = kinds[:1]
    pools = [source.probe_data(chunk, generator, device, scenes=s, size=size) for s, size in kinds]
    turn = [0]

    def grow() -> None:
        k = (0, 3, 1, 0, 3, 2)[turn[0] % 6] % len(kinds)
        turn[0] += 1
        fresh = source.probe_data(chunk, generator, device, scenes=kinds[k][0], size=kinds[k][1])
        pools[k] = newest(pools[k], fresh, room)

    fill = Clock(run.scale(200, 0) / 600 * min(1.0, minutes / 3))
    while not run.tiny and fill.progress < 1:
        grow()
    refill = Refill(grow, 0.3 if not run.tiny else 0.0)
    many = run.scale(192, 2)

    def batch() -> tuple[torch.Tensor, ...]:
        data = rng.choices(pools, weights=(3, 1, 1, 3)[: len(pools)])[0]
        pick = torch.randint(0, len(data.images), (many,), generator=generator).to(device)
        images, traits, views = data.images[pick], data.traits[pick], data.views[pick]
        return images, traits, views, data.clear[pick], visible_mask(traits, views)

    log.write(event="start", resumed=resumed, parameters=sum(p.numel() for p in model.parameters()))
    rate = 2e-3 if not resumed else 1e-3
    fit(run, log, name, model, clock, rate, batch, source.reading_loss, refill, generator)
    for scenes, size in (kinds[0], kinds[-1]):
        measure(run, log, model, scenes, size)


def fit(
    run: Run, log: Log, name: str, model: source.Probe, clock: Clock, rate: float,
    batch: Callable[[], tuple[torch.Tensor, ...]], loss_of: Callable[..., torch.Tensor], refill: Refill,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Train a reader until the clock ends; writes the weights of the end of the schedule, and leaves it ready to read.

    Args:
        run: where weights go.
        log: of the part.
        name: of the reader.
        model: what is trained.
        clock: of the schedule.
        rate: the highest learning rate.
        batch: gives pictures (n, 3, h, w) uint8 and what `loss_of` is told beside the logits.
        loss_of: of logits, one (n, values) a head, and the rest of the batch.
        refill: of what batches are taken from.
        generator: for the damage done to pictures.
    """
    device = run.device
    optimiser = GraphedOptimiser(decayed(model, rate=rate), clock, clip=5.0)

    def step(images: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            logits = model(source.augment(images.float() / 255, generator))
        loss = loss_of([x.float() for x in logits], *given)
        loss.backward()
        return (loss.detach(),)

    graphed, pictures = GraphedStep(step, device), 0
    while clock.progress < 1:
        images, *given = batch()
        pictures = len(images)
        (loss,) = graphed(images.shape, images, *given)
        optimiser.step()
        refill.tick()
        if clock.step % run.every(200) == 0:
            log.write(step=clock.step, loss=loss, progress=clock.progress)
        if run.due(name):
            write_weights(run.out, {name: halves(model)})
    facts = {"steps": clock.step, "batch": pictures, "minutes": clock.total / 60}
    write_weights(run.out, {name: halves(model)}, {f"{name}_training": facts})
    model.eval()
    log.write(event="done", steps=clock.step)
    log.write(event="milliseconds", step_ms=graphed.milliseconds())


def newest(old: source.ProbeData, fresh: source.ProbeData, most: int) -> source.ProbeData:
    """Both, without the oldest where they are more than `most`."""
    both = ((getattr(old, field.name), getattr(fresh, field.name)) for field in fields(source.ProbeData))
    return source.ProbeData(*(torch.cat(pair)[-most:] for pair in both))


def measure(run: Run, log: Log, model: source.Probe, scenes: bool, size: tuple[int, int]) -> None:
    """What the probe reads right on held-out renders."""
    generator = torch.Generator().manual_seed(995)
    test = source.probe_data(run.scale(600, 2), generator, run.device, scenes=scenes, size=size, split="heldout")
    reading = source.score_images(model, test.images.float() / 255)
    traits, views, clear = test.traits.cpu(), test.views.cpu(), test.clear.cpu()
    mask = visible_mask(traits, views)
    by_trait = {k: round(v, 4) for k, v in source.trait_accuracies(reading.traits, traits, mask).items()}
    log.write(
        event="measured", size=size, accuracy=source.trait_accuracy(reading.traits, traits, mask),
        views=source.view_accuracy(reading.views[clear], views[clear]), by_trait=by_trait,
    )  # fmt: skip


def halves(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Half-precision weights on the CPU."""
    return {
        k: v.detach().half().cpu().contiguous() if v.is_floating_point() else v.detach().cpu()
        for k, v in model.state_dict().items()
    }


def load(run: Run, model: torch.nn.Module, name: str) -> bool:
    """Start from earlier weights when there are some of the same widths."""
    from safetensors.torch import load_file

    for folder in run.sources:
        if (folder / f"{name}.safetensors").is_file():
            weights = {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
            if weights["stem.weight"].shape == model.state_dict()["stem.weight"].shape:
                model.load_state_dict(weights)
                return True
    return False
