"""The sweep on a real (tiny, random) SDXL and CLIP with a real adapter: what is exported draws what was picked."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_samples import sample_dataset

from charengine.adapter.files import load_adapter, save_adapter
from charengine.adapter.merging import AdapterMerger
from charengine.adapter.network import inject
from charengine.config import Profile, SweepSettings, TrainSettings
from charengine.embedded.making.family import build_random_family
from charengine.errors import Interrupted
from charengine.models import Models, load
from charengine.records import AdapterRecord, CheckpointRecord, SweepRecord
from charengine.stages.sweep.adapters import training_from_file
from charengine.stages.sweep.sample import draw, encode_cell_inputs
from charengine.stages.sweep.sweep import sweep_adapter
from charengine.stages.sweep.words import Pick, find_words
from charengine.store import Store

SETTINGS = SweepSettings(
    design="grid", strengths=(0.3, 0.6), checkpoints=1, seeds=2, width=64, height=64, steps=3, guidance=2.0
)

WORDS = "an orc with red hair and a blue coat"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    family = build_random_family(tmp_path_factory.mktemp("family"), tiny=True)
    folders = {name: str(family / folder) for name, folder in (("edit", "qwen"), ("sdxl", "sdxl"), ("clip", "clip"))}
    return load(Profile.model_validate({"name": "tiny", "models": {"family": "embedded", **folders}}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def training(models: Models, store: Store) -> AdapterRecord:
    """An adapter whose up matrices are drawn instead of trained, strong enough to change every picture."""
    unet = models.diffusion.unet()
    adapter = inject(unet, TrainSettings(rank=4, conv_rank=4, alpha=4, conv_alpha=4), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            if ".lora_up." in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    data = save_adapter(adapter.state_dict(), {"ss_steps": "10"})
    adapter.remove()
    return AdapterRecord(
        checkpoints=(CheckpointRecord(step=10, adapter=store.put(data, "a.safetensors"), loss=0.1),),
        steps=10,
        trigger="zorgax",
        class_noun="orc",
        dataset_digest="0" * 64,
        curve=store.put(b"step,loss,smoothed,learning_rate\n", "loss.csv"),
    )


@pytest.fixture(scope="module")
def found(training: AdapterRecord, models: Models, store: Store) -> SweepRecord:
    return sweep_adapter(training, sample_dataset(store), SETTINGS, models.diffusion, models.embedder, store, seed=5)


def pictures(record: SweepRecord, store: Store, step: int, strength: float) -> np.ndarray:
    keys = [key for key in record.images if key.startswith(f"{step}/{strength:g}/")]
    return np.stack([np.array(Image.open(io.BytesIO(store.get(record.images[key])))) for key in keys]).astype(float)


def test_the_adapter_changes_the_pictures_more_the_stronger_it_is(found: SweepRecord, store: Store) -> None:
    base, mild, strong = (pictures(found, store, *cell) for cell in ((0, 0.0), (10, 0.3), (10, 0.6)))
    assert base.shape == (8, 64, 64, 3)
    assert 1.0 < np.abs(mild - base).mean() < np.abs(strong - base).mean()


def test_the_recommended_file_at_strength_one_draws_what_the_pick_drew(
    found: SweepRecord, training: AdapterRecord, models: Models, store: Store
) -> None:
    checkpoint = CheckpointRecord(step=10, adapter=found.recommended_adapter, loss=0.1)
    again = sweep_adapter(
        training.model_copy(update={"checkpoints": (checkpoint,)}),
        sample_dataset(store),
        SETTINGS.model_copy(update={"strengths": (1.0,)}),
        models.diffusion,
        models.embedder,
        store,
        seed=5,
    )
    picked = pictures(found, store, found.pick.checkpoint_step, found.pick.strength)
    assert np.abs(pictures(again, store, 10, 1.0) - picked).mean() < 0.5
    assert again.cells[1].identity == pytest.approx(found.pick.metrics.identity, abs=1e-3)


def test_a_file_that_says_no_steps_is_put_on_as_any_other(
    found: SweepRecord, training: AdapterRecord, models: Models, store: Store, tmp_path: Path
) -> None:
    tensors, _ = load_adapter(store.get(training.checkpoints[0].adapter))
    (tmp_path / "a.safetensors").write_bytes(save_adapter(tensors, {}))
    foreign = training_from_file(tmp_path / "a.safetensors", store, trigger="zorgax", class_noun="orc")
    again = sweep_adapter(foreign, sample_dataset(store), SETTINGS, models.diffusion, models.embedder, store, seed=5)
    step = foreign.checkpoints[0].step
    assert np.array_equal(pictures(again, store, step, 0.6), pictures(found, store, 10, 0.6))


def test_after_the_sweep_the_base_model_draws_what_it_drew_before(found: SweepRecord, models: Models) -> None:
    inputs = encode_cell_inputs(models.diffusion, ["zorgax orc, running"], (5,))
    ((before,),) = draw(models.diffusion, inputs, SETTINGS)
    fresh = load(Profile.model_validate({"name": "again", "models": _folders(models)}))
    ((after,),) = draw(fresh.diffusion, encode_cell_inputs(fresh.diffusion, ["zorgax orc, running"], (5,)), SETTINGS)
    assert before.tobytes() == after.tobytes()


def _folders(models: Models) -> dict[str, str]:
    family = Path(models.embedder.folder).parent
    return {
        "family": "embedded",
        "edit": str(family / "qwen"),
        "sdxl": str(family / "sdxl"),
        "clip": str(family / "clip"),
    }


def test_merged_and_hooked_adapters_draw_the_same_pictures_and_rank_the_cells_alike(
    found: SweepRecord, training: AdapterRecord, models: Models, store: Store
) -> None:
    hooked = sweep_adapter(
        training,
        sample_dataset(store),
        SETTINGS.model_copy(update={"merge": False}),
        models.diffusion,
        models.embedder,
        store,
        seed=5,
    )
    assert [one.identity for one in hooked.cells] == pytest.approx([one.identity for one in found.cells], abs=1e-4)
    assert ranked(hooked) == ranked(found)
    assert (hooked.pick.checkpoint_step, hooked.pick.strength) == (found.pick.checkpoint_step, found.pick.strength)


def test_merged_and_hooked_pictures_differ_by_a_level_of_255_in_a_pixel_of_a_thousand(
    training: AdapterRecord, models: Models, store: Store
) -> None:
    inputs = encode_cell_inputs(models.diffusion, ["zorgax orc, running", "zorgax orc"], (5, 6))
    drawn = []
    for merge in (True, False):
        with AdapterMerger(models.diffusion.unet(), merge=merge) as merger:
            merger.put_on(merger.read(store.get(training.checkpoints[0].adapter)), 0.6)
            drawn.append(draw(models.diffusion, inputs, SETTINGS))
    merged, hooked = (np.stack([np.array(image) for row in rows for image in row]).astype(int) for rows in drawn)
    assert np.abs(merged - hooked).max() <= 1
    assert (merged != hooked).mean() < 0.001


def ranked(record: SweepRecord) -> list[tuple[int, float]]:
    cells = sorted(record.cells, key=lambda cell: cell.score)
    return [(cell.checkpoint_step, cell.strength) for cell in cells]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("ends", [KeyboardInterrupt(), RuntimeError("no more"), None])
def test_however_a_sweep_ends_the_base_model_has_its_own_bits(
    ends: BaseException | None,
    merge: bool,
    training: AdapterRecord,
    models: Models,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet, drawn = models.diffusion.unet(), models.diffusion.sample
    before = {name: value.numpy().tobytes() for name, value in unet.state_dict().items()}
    asked: list[int] = []

    def sample(*arguments, **more):
        asked.append(1)
        if ends is not None and len(asked) == 2:
            raise ends
        return drawn(*arguments, **more)

    monkeypatch.setattr(models.diffusion, "sample", sample)
    settings = SETTINGS.model_copy(update={"merge": merge, "seeds": 1, "steps": 1})
    with pytest.raises(Interrupted if ends is None else type(ends)):
        sweep_adapter(
            training,
            sample_dataset(store),
            settings,
            models.diffusion,
            models.embedder,
            store,
            seed=5,
            should_stop=lambda: len(asked) > 1,
        )
    assert len(asked) == 2
    assert {name: value.numpy().tobytes() for name, value in unet.state_dict().items()} == before
    assert not [module for module in unet.modules() if "forward" in module.__dict__]


class Looker:
    """A reader that looks what else is there when it is asked."""

    fingerprint = "looker"

    def __init__(self, models: Models) -> None:
        self.models, self.beside = models, list[str]()
        self.unet = weakref.ref(models.diffusion.unet())

    def shown(self, images: Sequence[Image.Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        gc.collect()
        self.beside += ["U-Net"] if self.unet() is not None else []
        self.beside += list(self.models.diffusion._loaded._held.keys() & {"unet", "vae", "text_encoders"})
        self.beside += list(self.models.embedder._loaded._held)
        return [[True] * len(traits) for _ in images]

    def step_aside(self) -> None:
        pass

    unload = step_aside


def test_a_reader_that_reads_at_the_end_has_the_card_to_itself(
    training: AdapterRecord, models: Models, store: Store
) -> None:
    models.diffusion.unload()
    reader, settings = Looker(models), SETTINGS.model_copy(update={"traits": "end", "seeds": 1, "steps": 1})
    dataset = sample_dataset(store)
    swept = sweep_adapter(
        training, dataset, settings, models.diffusion, models.embedder, store, seed=5, reader=reader, description=WORDS
    )
    assert reader.beside == []
    assert not models.embedder._loaded._held
    reader.unet = weakref.ref(models.diffusion.unet())
    find_words(Pick(training, swept, settings, models.diffusion, store, 5), WORDS, reader)
    assert reader.beside == []
