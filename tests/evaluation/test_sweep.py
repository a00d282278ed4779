"""The sweep on a painter whose adapter is known: it repaints the coat with strength, and loses the scene when overbaked."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image
from run_samples import doll, doll_mask, png, sample_cell, sample_dataset

from charengine.adapter_files import load_adapter, save_adapter
from charengine.config import SweepSettings
from charengine.errors import BadInput, Interrupted
from charengine.evaluation import scoring, sweep
from charengine.evaluation.metrics import thumbnails
from charengine.evaluation.sample import to_webp
from charengine.folders import read_views
from charengine.models import TextConditioning
from charengine.records import AdapterRecord, CheckpointRecord, DatasetRecord, Ref, SweepRecord
from charengine.store import Store
from charengine.tracking import NullTracker

SCENES = {"desert": (220, 180, 110), "city": (30, 30, 60), "forest": (30, 110, 50), "white": (255, 255, 255)}
BASE_COAT, OWN_COAT = (200, 40, 160), (40, 90, 180)
PROMPTS = ("{subject}, front view, plain white background", "{subject} in a desert", "{subject} in a city")
SETTINGS = SweepSettings(prompts=PROMPTS, strengths=(0.25, 0.5, 0.75, 1.0), checkpoints=2, seeds=2, width=64, height=64)


@dataclass
class Unet:
    """What the adapter changes."""

    steps: int = 0
    strength: float = 0.0


@dataclass
class Applied:
    unet: Unet

    def set_strength(self, strength: float) -> None:
        self.unet.strength = strength

    def remove(self) -> None:
        self.unet.steps, self.unet.strength = 0, 0.0


GPU = torch.device("cuda")  # nothing here computes on it


@dataclass
class Painter:
    """A diffusion model that draws dolls; text conditioning is the index of the scene."""

    fingerprint: str = "painter"
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

    def unet(self) -> Unet:
        return self.model

    def sample(
        self, prompts: TextConditioning, negative: TextConditioning, *, seeds: Sequence[int], size, steps, guidance
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

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        flat = thumbnails(images, 16)[:, :, 5:9, 6:10].flatten(1) - 0.5
        return flat / flat.norm(dim=1, keepdim=True)

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        assert not any("zorgax" in text for text in texts), "the scorer must never see the trigger"
        wanted = [next(colour for name, colour in SCENES.items() if name in text) for text in texts]
        pairs = zip(map(scoring.border_colour, images), wanted, strict=True)
        return torch.tensor([1 - sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 765 for pair in pairs])

    def unload(self) -> None:
        pass


class Notebook(NullTracker):
    """Keeps what it is told."""

    def __init__(self, kind: str = "sweep", params: dict | None = None) -> None:
        self.kind, self.params = kind, dict(params or {})
        self.metrics: dict[str, float] = {}
        self.children: dict[str, Notebook] = {}
        self.pictures: list[str] = []
        self.finished = False

    def child(self, name, *, key, params=None, tags=None):
        return self.children.setdefault(key, Notebook(name, params))

    def log_metrics(self, metrics, step):
        self.metrics |= metrics

    def log_image(self, image, name, step=None):
        self.pictures.append(name)

    def finish(self, status="FINISHED"):
        self.finished = True


def _mix(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def dataset(store: Store) -> DatasetRecord:
    return sample_dataset(store)


@pytest.fixture(autouse=True)
def known_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter files say in their metadata how long they were trained; that is all the painter needs."""

    def apply(unet: Unet, data: bytes, strength: float = 1.0) -> Applied:
        unet.steps, unet.strength = int(load_adapter(data)[1]["ss_steps"]), strength
        return Applied(unet)

    monkeypatch.setattr(sweep, "apply_adapter", apply)


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


def test_the_pick_is_where_the_character_is_whole_and_the_scene_still_there(store, dataset) -> None:
    found = run_sweep(store, dataset, Painter(), 50, 200)
    assert (found.pick.checkpoint_step, found.pick.strength) == (200, 0.5)
    assert found.pick.metrics.detail["gain"] > 0.9
    assert found.pick.metrics.detail["kept"] > 0.97
    assert found.pick.overbaked.detail["kept"] < 0.8
    assert found.warnings == ()


def test_strength_zero_is_drawn_once_and_every_cell_has_the_same_seeds(store, dataset) -> None:
    painter = Painter()
    found = run_sweep(store, dataset, painter, 50, 100, 150, 200)
    assert [(steps, strength) for steps, strength, _ in painter.drawn] == [
        (0, 0.0),
        *((steps, strength) for steps in (100, 200) for strength in SETTINGS.strengths),
    ]
    assert {seeds for _, _, seeds in painter.drawn} == {(7, 8) * 3}
    assert len(found.images) == 9 * 3 * 2
    assert len(found.cells) == 9 and found.cells[0] == found.pick.baseline


def test_the_base_model_is_left_as_it_was_and_the_text_encoders_are_freed_first(store, dataset) -> None:
    painter = Painter()
    run_sweep(store, dataset, painter, 100)
    assert painter.model == Unet()
    assert painter.freed[0] == ("text_encoders",)
    assert all("zorgax orc" in text for text in painter.asked if text)


def test_an_overbaked_adapter_leaks_the_white_background_and_copies_the_views(store, dataset) -> None:
    found = run_sweep(store, dataset, Painter(), 200)
    mild, baked = found.cells[1], found.cells[-1]
    assert mild.detail["background_leak"] == 0.0 and baked.detail["background_leak"] == 1.0
    assert baked.copying > mild.copying + 0.1


def test_a_white_background_by_itself_earns_no_identity(store, dataset) -> None:
    references = scoring.References(dataset, Eye(), store)
    prompts = sweep.sweep_prompts(SETTINGS)[1:2]
    on_sand, on_white = (
        scoring.score_cell([[doll(coat=OWN_COAT, ground=ground)]], prompts, "orc", references).identity.item()
        for ground in (SCENES["desert"], SCENES["white"])
    )
    assert on_sand > 0.99
    assert on_white == pytest.approx(on_sand, abs=0.005)


def test_a_named_view_is_compared_with_that_view_alone(store, dataset) -> None:
    references = scoring.References(dataset, Eye(), store)
    assert references.allowed("side").tolist() == [False, True, False]
    assert references.allowed(None).all()


def test_a_picture_that_fits_every_prompt_alike_keeps_no_adherence() -> None:
    class Grid(Eye):
        def match(self, images, texts):
            rows = {"desert": 0.5, "city": 0.2, "white": 0.2}
            return torch.tensor([0.3 + (rows[next(k for k in rows if k in text)] if image.width == 1 else 0.4)
                                 for image, text in zip(images, texts, strict=True)])  # fmt: skip

    prompts = sweep.sweep_prompts(SETTINGS)
    images = [Image.new("RGB", (1, 1)), Image.new("RGB", (2, 2))]
    adherence, margin = scoring.match_all(images, [prompts[1]] * 2, prompts, "orc", Grid())
    assert adherence.tolist() == pytest.approx([0.8, 0.7])
    assert margin.tolist() == pytest.approx([0.3, 0.0], abs=1e-6)


def test_each_cell_is_a_child_run_with_its_numbers(store, dataset) -> None:
    notebook = Notebook()
    found = run_sweep(store, dataset, Painter(), 50, 200, tracker=notebook)
    runs = list(notebook.children.values())
    assert [(run.params["checkpoint"], run.params["strength"]) for run in runs] == [
        (cell.checkpoint_step, cell.strength) for cell in found.cells
    ]
    for run, cell in zip(runs, found.cells, strict=True):
        assert run.finished and run.pictures
        for name in ("identity", "adherence", "diversity", "copying", "score"):
            assert run.metrics[name] == getattr(cell, name)
    assert [run.kind for run in runs[:2]] == ["base model", "step 50 × 0.25"]
    assert runs[-1].params["final_loss"] == 1 / 200
    assert {"contact_sheet", "trade_off"} <= set(notebook.pictures)


def test_a_repeated_sweep_gives_the_same_record_and_reopens_the_same_child_runs(store, dataset) -> None:
    notebook = Notebook()
    first = run_sweep(store, dataset, Painter(), 50, 200, tracker=notebook)
    second = run_sweep(store, dataset, Painter(), 50, 200, tracker=notebook)
    assert first == second
    assert len(notebook.children) == 9


def test_two_adapters_are_exported_as_trained_and_rescaled_to_the_pick(store, dataset) -> None:
    found = run_sweep(store, dataset, Painter(), 100, 200, recipe={"seed": 7})
    assert store.get(found.adapter) == adapter_file(200)
    tensors, metadata = load_adapter(store.get(found.recommended_adapter))
    assert tensors["lora_unet_x.alpha"].item() == pytest.approx(8.0 * found.pick.strength)
    assert metadata["ss_steps"] == str(found.pick.checkpoint_step)
    assert json.loads(metadata["charengine.pick"])["strength"] == found.pick.strength
    assert json.loads(metadata["charengine.recipe"]) == {"seed": 7}
    assert found.adapter.name == "zorgax.safetensors"
    assert found.recommended_adapter.name == "zorgax_recommended.safetensors"


def test_an_adapter_that_cannot_be_rescaled_is_exported_as_it_is_with_a_warning() -> None:
    data = adapter_file(100, "lora_unet_x.dora_scale")
    exported, doubts = sweep.recommended(data, sample_cell(100, 0.6), None)
    assert load_adapter(exported)[0]["lora_unet_x.dora_scale"].item() == 8.0
    assert len(doubts) == 1 and "use it at strength 0.6" in doubts[0]


def test_any_adapter_file_can_be_swept_if_it_names_its_character(store, dataset, tmp_path) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes(adapter_file(200))
    training = sweep.training_from_file(path, store)
    assert (training.trigger, training.class_noun, training.steps) == ("zorgax", "orc", 200)
    found = sweep.sweep_adapter(training, dataset, SETTINGS, Painter(), Eye(), store, seed=7)
    assert found.pick.checkpoint_step == 200


def test_an_adapter_file_without_a_trigger_asks_for_it(store, tmp_path) -> None:
    path = tmp_path / "nameless.safetensors"
    path.write_bytes(save_adapter({"lora_unet_x.alpha": torch.tensor(1.0)}, {}))
    with pytest.raises(BadInput, match="trigger and class noun"):
        sweep.training_from_file(path, store)
    assert sweep.training_from_file(path, store, trigger="ohwx", class_noun="man").trigger == "ohwx"


def test_pictures_without_masks_are_cut_from_their_plain_background(store, tmp_path) -> None:
    for view in ("front", "side", "back"):
        doll(ground=SCENES["forest"]).save(tmp_path / f"{view}.png")
    views = read_views(tmp_path, store)
    assert views.background == SCENES["forest"]
    mask = scoring.open_image(store.get(views.views[0].alpha), "L")
    assert mask.getbbox() == doll_mask().getbbox()


def test_what_a_single_seed_cannot_measure_is_said(store, dataset) -> None:
    settings = SETTINGS.model_copy(update={"seeds": 1})
    found = sweep.sweep_adapter(trained(store, 200), dataset, settings, Painter(), Eye(), store, seed=7)
    assert any("variety between seeds was not measured" in warning for warning in found.warnings)
    assert found.pick.strength == 0.5


def test_an_embedder_that_sees_no_one_is_found_out(store, dataset) -> None:
    class Blind(Eye):
        def embed_images(self, images):
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    found = sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Painter(), Blind(), store, seed=7)
    assert any("identity says little" in warning for warning in found.warnings)
    assert any("barely moves" in warning for warning in found.warnings)


def test_a_sweep_asked_to_stop_stops_between_cells_and_restores_the_base_model(store, dataset) -> None:
    painter = Painter()
    with pytest.raises(Interrupted, match="after 2 cells"):
        run_sweep(store, dataset, painter, 100, 200, should_stop=lambda: len(painter.drawn) == 3)
    assert painter.model == Unet()


@pytest.mark.parametrize("device", [torch.device("cpu"), GPU])
def test_what_fails_while_pictures_are_scored_ends_the_sweep_and_restores_the_base_model(
    store, dataset, device: torch.device
) -> None:
    class Failing(Eye):
        def embed_images(self, images):
            if len(painter.drawn) > 1:
                raise ArithmeticError("no scores today")
            return super().embed_images(images)

    painter = Painter(device=device)
    with pytest.raises(ArithmeticError, match="no scores today"):
        sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, painter, Failing(), store, seed=7)
    assert painter.model == Unet()


def test_a_sweep_that_may_be_cut_concludes_from_the_cells_it_finished_and_says_so(store, dataset) -> None:
    painter = Painter()
    found = run_sweep(store, dataset, painter, 100, 200, should_stop=lambda: len(painter.drawn) == 3, keep_cut=True)
    whole = run_sweep(store, dataset, Painter(), 100, 200)
    assert [(cell.checkpoint_step, cell.strength) for cell in found.cells] == [(0, 0.0), (100, 0.25), (100, 0.5)]
    assert [cell.score for cell in found.cells] == [cell.score for cell in whole.cells[:3]]
    assert found.images.items() < whole.images.items()
    assert found.pick.overbaked.checkpoint_step == 100
    assert "cut after 2 of 8 cells" in found.warnings[0] and "cut" not in "".join(whole.warnings)
    assert painter.model == Unet()


def test_a_sweep_cut_before_its_first_cell_has_nothing_to_conclude(store, dataset) -> None:
    with pytest.raises(Interrupted, match="after 0 cells"):
        run_sweep(store, dataset, Painter(), 100, should_stop=lambda: True, keep_cut=True)


def test_a_cell_is_scored_while_the_next_one_is_drawn(store, dataset) -> None:
    drawing = threading.Event()

    class Slow(Painter):
        def sample(self, *args, **kwargs):
            if len(self.drawn) == 2:
                drawing.set()
                assert scored.wait(20), "the cell before was not scored while this one was drawn"
            return super().sample(*args, **kwargs)

    class Patient(Eye):
        def match(self, images, texts):
            rows = super().match(images, texts)
            if seen.count("cell") == 1:  # the first cell after strength 0
                assert drawing.wait(20), "nothing was drawn while this cell was scored"
                scored.set()
            seen.append("cell")
            return rows

    scored, seen = threading.Event(), list[str]()
    found = sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Slow(device=GPU), Patient(), store, seed=7)
    assert found == run_sweep(store, dataset, Painter(), 200)


def test_where_the_cores_draw_they_score_on_the_same_thread(store, dataset) -> None:
    """Another thread would bring torch threads of its own."""
    seen = set()

    class Draws(Painter):
        def sample(self, *args, **kwargs):
            seen.add(threading.current_thread())
            return super().sample(*args, **kwargs)

    class Scores(Eye):
        def match(self, images, texts):
            seen.add(threading.current_thread())
            return super().match(images, texts)

    found = sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Draws(), Scores(), store, seed=7)
    assert len(seen) == 1
    assert found == run_sweep(store, dataset, Painter(), 200)


def test_a_picture_that_cannot_be_stored_ends_the_sweep_and_restores_the_base_model(
    store, dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def full(self, data: bytes, name: str, *rest) -> Ref:
        if name.startswith("100-0.5-1"):
            raise BadInput(f"cannot write {name}: no space left")
        return put(self, data, name, *rest)

    monkeypatch.setattr(Store, "put", full)
    painter = Painter()
    with pytest.raises(BadInput, match="cannot write 100-0.5-1-7.webp"):
        run_sweep(store, dataset, painter, 100, 200)
    assert painter.model == Unet()
    assert len(painter.drawn) <= 4, "one more cell may have been drawn meanwhile, no more"


def test_stored_pictures_are_in_order_and_the_bytes_of_each_are_its_own(store, dataset) -> None:
    painter = Painter()
    found = run_sweep(store, dataset, painter, 200)
    cells = [(0, 0.0), *((200, strength) for strength in SETTINGS.strengths)]
    wanted = [f"{step}/{strength:g}/{row}/{seed}" for step, strength in cells for row in range(3) for seed in (7, 8)]
    assert list(found.images) == wanted
    painter.model = Unet(200, 0.5)
    scene = painter.encode_prompts([PROMPTS[2]])
    again = painter.sample(scene, scene, seeds=[8], size=(64, 64), steps=1, guidance=1.0)[0]
    assert store.get(found.images["200/0.5/2/8"]) == to_webp(again)


def test_checkpoints_are_spread_evenly_and_the_last_is_always_among_them(store) -> None:
    checkpoints = trained(store, *range(10, 110, 10)).checkpoints
    assert [c.step for c in sweep.spread(checkpoints, 3)] == [30, 70, 100]
    assert [c.step for c in sweep.spread(checkpoints, 1)] == [100]
    assert len(sweep.spread(checkpoints, 40)) == 10


def test_a_figure_on_a_plain_background_is_cut_out_and_a_scene_is_left_whole() -> None:
    scene = doll((80, 80), ground=(255, 255, 255))
    cut = scoring.figure(scene, (255, 255, 255))
    assert cut.size == (81, 81)  # the figure is 72 pixels tall, and has a margin of 6 % on either side
    scene.paste((10, 80, 20), (0, 0, 80, 30))
    assert scoring.figure(scene, scoring.border_colour(scene)).size == (80, 80)
    assert png(scoring.figure(Image.new("RGB", (40, 40)), (0, 0, 0))) == png(Image.new("RGB", (40, 40)))
