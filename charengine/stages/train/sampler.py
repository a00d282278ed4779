"""Which samples a step trains on: a pure function of seed and step, so that resuming needs no position."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from charengine.config import TrainSettings
from charengine.stages.train.data import TrainingData

LESSONS = -1  # the bucket of a step's lessons, which are chosen on the device


@dataclass(frozen=True)
class Group:
    """Samples of one bucket; of LESSONS, as many."""

    bucket: int
    samples: tuple[int, ...]


def groups_of_step(data: TrainingData, settings: TrainSettings, seed: int, step: int) -> tuple[Group, ...]:
    """The samples of step `step` (0-based).

    batch = 0: every view, whatever its bucket, `accumulate` times; where the views stand in squares too, these take turns with all
    else. Otherwise batch × accumulate samples of one bucket; an epoch goes through all buckets in a shuffled order. Class images
    join in equal number, taken in turn. Where there are lessons, every second step takes some of these instead.
    """
    if teaches(data, step):
        return (Group(LESSONS, tuple(range(settings.distill_batch))),)
    step = view_steps(data, step)
    own = [i for i, bucket in enumerate(data.buckets) if not bucket.regularisation]
    if settings.batch == 0 and any(data.buckets[i].square for i in own):
        own = [i for i in own if data.buckets[i].square == bool(step % 2)]
    if settings.batch == 0:
        groups = [Group(i, tuple(range(len(data.buckets[i]))) * settings.accumulate) for i in own]
    else:
        groups = [_one_bucket(data, own, settings.batch * settings.accumulate, seed, step)]
    classes = [i for i, bucket in enumerate(data.buckets) if bucket.regularisation]
    if classes:
        bucket = classes[step % len(classes)]
        count, size = sum(len(group.samples) for group in groups), len(data.buckets[bucket])
        turn = step // len(classes) * count
        groups.append(Group(bucket, tuple((turn + i) % size for i in range(count))))
    return tuple(groups)


def teaches(data: TrainingData, step: int) -> bool:
    """Whether step `step` (0-based) takes lessons."""
    return data.lessons is not None and step % 2 == 1


def view_steps(data: TrainingData, step: int) -> int:
    """How many of the steps before step `step`, which learns from views, did so too."""
    return step // 2 if data.lessons else step


def _one_bucket(data: TrainingData, own: list[int], count: int, seed: int, step: int) -> Group:
    parts = {i: -(-len(data.buckets[i]) // count) for i in own}
    length = sum(parts.values())
    generator = torch.Generator().manual_seed(hash_seed(seed, step // length))
    epoch: list[Group] = []
    for i, number in parts.items():
        order = torch.randperm(len(data.buckets[i]), generator=generator).tolist()
        epoch += [
            Group(i, tuple(order[(part * count + j) % len(order)] for j in range(count))) for part in range(number)
        ]
    turn: int = torch.randperm(length, generator=generator).tolist()[step % length]
    return epoch[turn]


def hash_seed(seed: int, number: int) -> int:
    """One 63-bit seed out of two numbers (SplitMix64's finaliser), so that neighbouring steps have unrelated noise."""
    value = (seed * 0x9E3779B97F4A7C15 + number + 1) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1
