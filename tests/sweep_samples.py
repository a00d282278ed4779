"""A sweep on a painter whose adapter is known: it repaints the coat with strength, and loses the scene when overbaked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from run_samples import doll

from charengine.adapter.files import load_adapter, save_adapter
from charengine.config import SweepSettings
from charengine.likeness import scoring
from charengine.likeness.metrics import thumbnails
from charengine.models import TextConditioning
from charengine.models.prediction import Prediction
from charengine.models.usage import Usage
from charengine.records import AdapterRecord, CheckpointRecord, DatasetRecord, SweepRecord
from charengine.stages.sweep import sweep
from charengine.store import Store
from charengine.tracking.protocol import NullTracker

SCENES = {"desert": (220, 180, 110), "city": (30, 30, 60), "forest": (30, 110, 50), "white": (255, 255, 255)}
BASE_COAT, OWN_COAT = (200, 40, 160), (40, 90, 180)
PROMPTS = ("{subject}, front view, plain white background", "{subject} in a desert", "{subject} in a city")
SETTINGS = SweepSettings(
    design="grid", prompts=PROMPTS, strengths=(0.25, 0.5, 0.75, 1.0), checkpoints=2, seeds=2, width=64, height=64
)
GPU = torch.device("cuda")  # nothing here computes on it


@dataclass
class Unet:
    """What the adapter changes."""

    steps: int = 0
    strength: float = 0.0


class Merger:
    """Adapter files say in their metadata how long they were trained; that is all the painter needs."""

    def __init__(self, unet: Unet, *, merge: bool = True) -> None:
        self.unet = unet

    def __enter__(self) -> Merger:
        return self

    def __exit__(self, *_: object) -> None:
        self.put_on(0, 0.0)

    def read(self, data: bytes) -> int:
        return int(load_adapter(data)[1]["ss_steps"])

    def prepare(self, steps: int) -> None:
        """Nothing is kept: the painter has no weights."""

    def put_on(self, steps: int, strength: float) -> None:
        self.unet.steps, self.unet.strength = (steps, strength) if strength else (0, 0.0)


@dataclass
class Painter:
    """A diffusion model that draws dolls; text conditioning is the index of the scene."""

    fingerprint: str = "painter"
    sampling_fingerprint: str = "painter"
    prediction: Prediction = Prediction()
    usage: Usage = Usage()
    native_area: int = 64 * 64
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    model: Unet = field(default_factory=Unet)
    asked: list[str] = field(default_factory=list)
    drawn: list[tuple[int, float, tuple[int, ...]]] = field(default_factory=list)
    freed: list[tuple[str, ...]] = field(default_factory=list)

    def encode_prompts(self, prompts: Sequence[str]) -> TextConditioning:
        self.asked += prompts
        place = [next((i for i, scene in enumerate(SCENES) if scene in prompt), 0) for prompt in prompts]
        rows = torch.tensor(place, dtype=torch.float32)
        return TextConditioning(rows[:, None, None], rows[:, None])

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def unet(self) -> Unet:
        return self.model

    def sample(
        self,
        prompts: TextConditioning,
        negative: TextConditioning,
        *,
        seeds: Sequence[int],
        size,
        steps,
        guidance,
        **_how: object,
    ) -> list[Image.Image]:
        assert len(prompts.embeds) == len(negative.embeds) == len(seeds)
        self.drawn.append((self.model.steps, self.model.strength, tuple(seeds)))
        push = self.model.strength * self.model.steps / 100  # 0 base, 1 the character, beyond: overbaked
        learned, baked = min(push, 1.0), min(max(push - 1.0, 0.0), 1.0)
        images = []
        for place, seed in zip(prompts.pooled[:, 0].tolist(), seeds, strict=True):
            scene = list(SCENES.values())[int(place)]
            coat = _mix(BASE_COAT, OWN_COAT, learned)
            shade = tuple(min(255, value + 12 * (seed % 2)) for value in coat)
            images.append(doll(size, coat=shade, ground=_mix(scene, SCENES["white"], baked)))
        return images

    def unload(self, *parts: str) -> None:
        self.freed.append(parts)


class Eye:
    """Identity by colours of the coat region; adherence by the colour of the background."""

    fingerprint = "eye"
    loaded = False

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        self.loaded = True
        flat = thumbnails(images, 16)[:, :, 5:9, 6:10].flatten(1) - 0.5
        return flat / flat.norm(dim=1, keepdim=True)

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        assert not any("zorgax" in text for text in texts), "the scorer must never see the trigger"
        wanted = [next(colour for name, colour in SCENES.items() if name in text) for text in texts]
        pairs = zip(map(scoring.border_colour, images), wanted, strict=True)
        return torch.tensor([1 - sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 765 for pair in pairs])

    def unload(self) -> None:
        self.loaded = False


class Notebook(NullTracker):
    """Keeps what it is told."""

    def __init__(self, kind: str = "sweep", params: dict | None = None) -> None:
        self.kind, self.params = kind, dict(params or {})
        self.metrics: dict[str, float] = {}
        self.children: dict[str, Notebook] = {}
        self.pictures: list[str] = []
        self.steps: list[int | None] = []
        self.finished = False

    def child(self, name, *, key, params=None, tags=None):
        return self.children.setdefault(key, Notebook(name, params))

    def log_metrics(self, metrics, step):
        self.metrics |= metrics

    def log_image(self, image, name, step=None):
        self.pictures.append(name)
        self.steps.append(step)

    def finish(self, status="FINISHED"):
        self.finished = True


def _mix(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def adapter_file(steps: int, key: str = "lora_unet_x.alpha") -> bytes:
    """One scalar per file."""
    words = {"ss_steps": str(steps), "modelspec.trigger_phrase": "zorgax", "charengine.recipe": '{"class_noun": "orc"}'}
    return save_adapter({key: torch.tensor(8.0)}, words)


def trained(store: Store, *steps: int) -> AdapterRecord:
    checkpoints = tuple(
        CheckpointRecord(step=s, adapter=store.put(adapter_file(s), "a.safetensors"), loss=1 / s) for s in steps
    )
    return AdapterRecord(
        checkpoints=checkpoints,
        steps=steps[-1],
        trigger="zorgax",
        class_noun="orc",
        dataset_digest="0" * 64,
        curve=store.put(b"step,loss,smoothed,learning_rate\n", "loss.csv"),
    )


def run_sweep(store: Store, dataset: DatasetRecord, painter: Painter, *steps: int, **more) -> SweepRecord:
    return sweep.sweep_adapter(trained(store, *steps), dataset, SETTINGS, painter, Eye(), store, seed=7, **more)
