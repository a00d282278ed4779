"""Passes of SDXL's U-Net with fewer kernels, and recorded: here what they compute and when, on a card what is replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from PIL import ImageChops
from torch import nn

from charengine.adapter.files import save_adapter
from charengine.adapter.merging import AdapterMerger
from charengine.adapter.network import inject
from charengine.config import TrainSettings
from charengine.models import fused_layers, passes
from charengine.models.fused_layers import fused
from charengine.models.passes import MOST, Passes
from charengine.models.sdxl import SDXL
from charengine.models.sdxl_parts import SDXLFolder

CPU = torch.device("cpu")
REPLACED = (ResnetBlock2D, GEGLU, nn.GroupNorm)


def model(folder: Path, device: torch.device = CPU, *, recorded: bool = True) -> SDXL:
    return SDXL(SDXLFolder(folder, device, torch.float32), device, torch.float32, 64 * 64, "tiny", recorded=recorded)


def given(unet: Any, rows: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    wide, pooled = unet.config.cross_attention_dim, unet.add_embedding.linear_1.in_features
    pooled -= 6 * unet.config.addition_time_embed_dim
    shapes = ((rows, 4, 8, 8), (rows, 77, wide), (rows, pooled))
    latents, embeds, told = (torch.randn(shape, generator=random) for shape in shapes)
    return latents, torch.tensor(400.0 + seed), embeds, told, torch.full((rows, 6), 64.0)


# --- fewer kernels ---


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: plain torch stands in for the kernels."""
    monkeypatch.setattr(fused_layers, "_is_worth_it", lambda model: True)


@pytest.mark.usefixtures("everywhere")
def test_fewer_kernels_predict_the_same(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = model(sdxl_folder).unet()
    plain, asked = Passes(unet, recorded=False), given(unet)
    with monkeypatch.context() as before, torch.no_grad():
        before.setattr(fused_layers, "_is_worth_it", lambda model: False)
        wanted = plain.predict(*asked)
    normed: list[tuple[bool, bool]] = []
    norm = fused_layers.group_norm
    monkeypatch.setattr(
        fused_layers,
        "group_norm",
        lambda x, own, **more: (
            normed.append((more.get("shift") is not None, more.get("silu", False))) or norm(x, own, **more)
        ),
    )
    with torch.no_grad():
        found = plain.predict(*asked)
    assert torch.allclose(found, wanted, atol=1e-5)
    blocks = sum(isinstance(module, ResnetBlock2D) for module in unet.modules())
    assert normed.count((False, True)) == normed.count((True, True)) == blocks > 3
    assert (
        normed.count((False, False)) == sum(isinstance(module, nn.GroupNorm) for module in unet.modules()) - 2 * blocks
    )


@pytest.mark.usefixtures("everywhere")
def test_fewer_kernels_decode_and_encode_the_same(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdxl, latents = model(sdxl_folder), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = sdxl.decode(latents)
    encoded = sdxl.encode_images(pictures)
    monkeypatch.setattr(fused_layers, "_is_worth_it", lambda model: False)
    for ours, theirs in zip(pictures, sdxl.decode(latents), strict=True):
        assert max(high for _, high in ImageChops.difference(ours, theirs).getextrema()) <= 1
    assert torch.allclose(encoded.mean, sdxl.encode_images(pictures).mean, atol=1e-4)


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_pictures_are_decoded_in_the_u_nets_precision_where_that_cannot_overflow_and_encoded_in_float32(
    dtype: torch.dtype, wanted: torch.dtype, sdxl_folder: Path
) -> None:
    exact, half = model(sdxl_folder), SDXL(SDXLFolder(sdxl_folder, CPU, dtype), CPU, dtype, 64 * 64, "tiny")
    pictures = exact.decode(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    latents = exact.encode_images(pictures).mean
    assert torch.equal(half.encode_images(pictures).mean, latents)
    decoding = {weight.dtype for weight in half._vae().vae.decoder.parameters()}
    (ours,), (theirs,) = half.decode(latents), exact.decode(latents)
    off = max(high for _, high in ImageChops.difference(ours, theirs).getextrema())
    assert decoding == {wanted} and (off <= 12 if wanted == torch.bfloat16 else off == 0)


@pytest.mark.usefixtures("everywhere")
def test_a_model_is_left_as_it_was_and_what_others_compute_is_left_to_them(sdxl_folder: Path) -> None:
    unet = model(sdxl_folder).unet()
    block = next(module for module in unet.modules() if isinstance(module, ResnetBlock2D))
    own = block.forward
    block.__dict__["forward"] = own
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), fused(unet):
        replaced = {name for name, module in unet.named_modules() if "forward" in module.__dict__}
        assert block.forward is own
        raise KeyboardInterrupt
    assert replaced == {name for name, module in unet.named_modules() if isinstance(module, REPLACED)}
    assert [module for module in unet.modules() if "forward" in module.__dict__] == [block]


@pytest.mark.usefixtures("everywhere")
def test_where_gradients_are_wanted_and_without_a_gpu_nothing_is_replaced(
    sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = model(sdxl_folder).unet()
    with fused(unet):
        assert not any("forward" in module.__dict__ for module in unet.modules())
    monkeypatch.undo()
    with torch.no_grad(), fused(unet):
        assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("change", ["upsample", "time_embedding_norm", "skip_time_act", "nonlinearity"])
def test_a_residual_block_of_another_kind_computes_as_it_does(change: str, sdxl_folder: Path) -> None:
    unet = model(sdxl_folder).unet()
    block: Any = next(module for module in unet.modules() if isinstance(module, ResnetBlock2D))
    setattr(block, change, {"time_embedding_norm": "scale_shift", "nonlinearity": nn.GELU()}.get(change, True))
    with torch.no_grad(), fused(unet):
        assert "forward" not in block.__dict__


# --- recorded ---


class Recorder:
    """Stands in for CUDA graphs: a recording is the work itself, and is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.replayed, self.place = 0, 0, 1
        monkeypatch.setattr(passes, "record", self.record)
        monkeypatch.setattr(passes, "_standing", lambda unet: self.place)

    def record(self, step: Callable[[], None], what: str, pool: object) -> Callable[[], None]:
        self.made += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay

    @property
    def counts(self) -> tuple[int, int]:
        return self.made, self.replayed


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@torch.no_grad()
def test_a_shape_is_recorded_at_its_second_pass_and_replayed_with_what_is_asked_then(
    sdxl_folder: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = model(sdxl_folder).unet()
    plain, ours = Passes(unet, recorded=False), Passes(unet, recorded=True)
    ours.look()
    asked = [given(unet, seed=seed) for seed in range(4)]
    found, forward, memory = [ours.predict(*asked[0])], ours._forward, torch.empty(2, 4, 8, 8)
    monkeypatch.setattr(ours, "_forward", lambda *one: memory.copy_(forward(*one)))  # a graph writes where it wrote
    found += [ours.predict(*one) for one in asked[1:]]
    assert recorder.counts == (1, 3)
    for one, predicted in zip(asked, found, strict=True):  # what was given out before is not written over
        assert torch.equal(predicted, plain.predict(*one))
    monkeypatch.setattr(ours, "_forward", forward)
    ours.predict(*given(unet, rows=1))
    assert recorder.counts == (1, 3)
    ours.predict(*given(unet, rows=1))
    assert recorder.counts == (2, 4)


@torch.no_grad()
def test_a_recording_lasts_while_the_weights_lie_where_they_lay(sdxl_folder: Path, recorder: Recorder) -> None:
    unet = model(sdxl_folder).unet()
    ours, asked = Passes(unet, recorded=True), given(unet)
    for place, wanted in ((1, (1, 2)), (1, (1, 5)), (2, (2, 7)), (None, (2, 7))):
        recorder.place = place
        ours.look()
        for _ in range(3):
            ours.predict(*asked)
        assert recorder.counts == wanted, place


@torch.no_grad()
def test_few_shapes_stay_recorded(sdxl_folder: Path, recorder: Recorder) -> None:
    unet = model(sdxl_folder).unet()
    ours = Passes(unet, recorded=True)
    ours.look()
    for rows in (*range(1, MOST + 2), 1):
        for _ in range(2):
            ours.predict(*given(unet, rows=rows))
    assert recorder.made == MOST + 2  # the first was forgotten for the last


@torch.no_grad()
def test_nothing_is_recorded_where_that_is_off_or_was_given_up(sdxl_folder: Path, recorder: Recorder) -> None:
    unet = model(sdxl_folder).unet()
    for ours in (Passes(unet, recorded=False), Passes(unet, recorded=True)):
        assert not ours.give_up()
        ours.look()
        for _ in range(3):
            ours.predict(*given(unet))
    assert recorder.counts == (0, 0)


def test_without_room_for_recordings_the_same_pictures_are_drawn_without(
    sdxl_folder: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdxl = model(sdxl_folder)
    text = sdxl.encode_prompts(["a robot"])
    asked: dict[str, Any] = {"seeds": [3], "size": (64, 64), "steps": 3, "guidance": 2.0}
    wanted = sdxl.sample(text, text, **asked)
    assert recorder.counts == (1, 2)
    decode, failed = sdxl.decode, []

    def full(latents: torch.Tensor) -> Any:
        if not failed:
            failed.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(sdxl, "decode", full)
    at_once = sdxl.pixels_per_pass
    assert [one.tobytes() for one in sdxl.sample(text, text, **asked)] == [one.tobytes() for one in wanted]
    assert sdxl.pixels_per_pass == at_once and failed
    made = recorder.counts
    sdxl.sample(text, text, **asked)
    assert recorder.counts == made == (1, 5)


def test_without_room_to_record_as_many_pictures_are_drawn_at_once_as_before(
    sdxl_folder: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdxl = model(sdxl_folder)
    text = sdxl.encode_prompts(["a robot", "an orc"])
    at_once = sdxl.pixels_per_pass

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(passes, "record", full)
    assert len(sdxl.sample(text, text, seeds=[3, 4], size=(64, 64), steps=3, guidance=2.0)) == 2
    assert sdxl.pixels_per_pass == at_once and recorder.counts == (0, 0)


# --- on a card ---


def adapter_of(sdxl: SDXL) -> bytes:
    adapter = inject(sdxl.unet(), TrainSettings(rank=2, conv_rank=1), seed=0)
    random = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(value.shape, generator=random) * 0.2 for key, value in adapter.state_dict().items()}
    sdxl.unload()
    return save_adapter(tensors, {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_pictures_are_the_same_with_and_without_adapters(sdxl_folder: Path) -> None:
    card = torch.device("cuda")
    pictures: dict[bool, list[bytes]] = {}
    for recorded in (False, True):
        sdxl = model(sdxl_folder, card, recorded=recorded)
        data, text = adapter_of(sdxl), sdxl.encode_prompts(["a robot", "an orc"])
        drawn = pictures[recorded] = []

        def draw(sdxl: SDXL = sdxl, text: Any = text, drawn: list[bytes] = drawn) -> None:
            made = sdxl.sample(text, text.rows(0, 1), seeds=[1, 2], size=(64, 64), steps=4, guidance=3.0)
            drawn.extend(one.tobytes() for one in made)

        draw()
        for merge in (True, False):
            with AdapterMerger(sdxl.unet(), merge=merge) as merger:
                for strength in (1.0, 0.5):
                    merger.put_on(merger.read(data), strength)
                    draw()
        draw()
        if recorded:
            assert sdxl._passes()._recorded
    assert pictures[True] == pictures[False]
    assert pictures[True][:2] == pictures[True][-2:] and len(set(pictures[True])) >= 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_unloading_gives_back_what_recordings_took(sdxl_folder: Path) -> None:
    sdxl = model(sdxl_folder, torch.device("cuda"))
    text = sdxl.encode_prompts(["a robot"])
    sdxl.unload()
    before = torch.cuda.memory_reserved()
    for _ in range(2):
        sdxl.sample(text, text, seeds=[1], size=(64, 64), steps=4, guidance=3.0)
        assert sdxl._passes()._recorded
        sdxl.unload()
        assert torch.cuda.memory_reserved() <= before + 2**21
