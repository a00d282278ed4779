"""Adapters merged into the weights: what they compute, and that the base's bits come back whatever happens."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from cases.adapter_samples import ALGORITHMS, CONV, LINEAR, WIDE, file_of, output, tensors_of, tiny_unet

from charengine import host_memory
from charengine.adapter import merging
from charengine.adapter.files import by_module, load_adapter
from charengine.adapter.merging import AdapterMerger, packed, why_hooked
from charengine.adapter.network import apply_adapter
from charengine.errors import BadInput
from charengine.models.streaming import BlockStream
from charengine.stages.train.plan import store_in_float8

HALF = (torch.float16, torch.bfloat16)
BOUND = 3e-6  # of the output's largest value: merged against hooked in float32


@pytest.fixture
def unet():
    return tiny_unet()


def bits(unet) -> dict[str, bytes]:
    """Every parameter and buffer, byte for byte."""
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in unet.state_dict().items()}


def hooked(unet, data: bytes, strength: float) -> torch.Tensor:
    applied = apply_adapter(unet, data, strength)
    try:
        return output(unet)
    finally:
        applied.remove()


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("strength", [0.4, 1.0, 1.4])
def test_merged_and_hooked_compute_the_same_within_the_bound(unet, algorithm: str, strength: float) -> None:
    data = file_of(tensors_of(unet, algorithm, alpha=3.0))
    wanted, base = hooked(unet, data, strength), output(unet)
    with AdapterMerger(unet) as merger:
        merger.put_on(merger.read(data), strength)
        assert distance(output(unet), wanted) < BOUND
        assert distance(base, wanted) > 100 * BOUND


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_half_precision_merged_is_as_near_the_truth_as_hooked(unet, algorithm: str, kind: torch.dtype) -> None:
    """The truth: the same rounded base weights, all else in float32."""
    data = file_of(tensors_of(unet, algorithm, alpha=3.0))
    unet.to(kind)
    merger = AdapterMerger(unet)
    merger.put_on(merger.read(data), 0.8)
    merged = output_in(unet, kind)
    merger.take_off()
    applied = apply_adapter(unet, data, 0.8)
    beside = output_in(unet, kind)
    applied.remove()
    truth = hooked(unet.float(), data, 0.8)
    assert distance(merged, truth) < 1.5 * distance(beside, truth)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, *HALF])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_bases_bits_come_back(unet, algorithm: str, kind: torch.dtype, in_place: bool) -> None:
    unet.to(kind)
    before, data = bits(unet), file_of(tensors_of(unet, algorithm, alpha=3.0))
    with AdapterMerger(unet, in_place=in_place) as merger:
        layers = merger.read(data)
        for strength in (1.0, 0.3, 1.4):
            merger.put_on(layers, strength)
            changed = [name for name, value in bits(unet).items() if value != before[name]]
            assert changed == [f"{name}.weight" for name in layers]
        merger.put_on(layers, 0.0)
        assert bits(unet) == before
        merger.put_on(layers, 1.0)
    assert bits(unet) == before
    assert not [module for module in unet.modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupt_amid_merging_leaves_the_bases_bits(unet, monkeypatch, stop, after: int, in_place: bool) -> None:
    before, merge, seen = bits(unet), merging.merged_weight, []

    def interrupted(*arguments) -> torch.Tensor:
        seen.append(1)
        if len(seen) > 3 + after:
            raise stop
        return merge(*arguments)

    data = file_of(tensors_of(unet, "LoRA"))
    monkeypatch.setattr(merging, "merged_weight", interrupted)
    with pytest.raises(stop), AdapterMerger(unet, in_place=in_place) as merger:
        layers = merger.read(data)
        merger.put_on(layers, 1.0)
        assert bits(unet) != before
        merger.put_on(layers, 0.5)
    assert bits(unet) == before


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_merged_does_not_depend_on_what_was_on_before(unet, in_place: bool) -> None:
    first = file_of(tensors_of(unet, "LoRA"))
    second = file_of(tensors_of(unet, "LoHa", layers=(LINEAR, CONV)))
    with AdapterMerger(unet, in_place=in_place) as fresh:
        fresh.put_on(fresh.read(second), 0.6)
        wanted = bits(unet)
    with AdapterMerger(unet, in_place=in_place) as merger:
        merger.put_on(merger.read(first), 1.0)
        layers = merger.read(second)
        for strength in (1.4, 0.2, 0.6):
            merger.put_on(layers, strength)
        assert bits(unet) == wanted  # the layer that only the first adapts has its own bits again


def test_in_place_takes_no_memory_of_the_device_and_beside_gives_the_bases_storage_back(unet) -> None:
    def places() -> list[int]:
        return [unet.get_submodule(name).weight.data_ptr() for name in (LINEAR, WIDE, CONV)]

    before, data = places(), file_of(tensors_of(unet, "LoRA"))
    for in_place in (True, False):
        with AdapterMerger(unet, in_place=in_place) as merger:
            merger.put_on(merger.read(data), 1.0)
            assert (places() == before) is in_place
        assert places() == before


def test_a_bad_file_is_refused_and_what_was_on_stays_on(unet) -> None:
    data, before = file_of(tensors_of(unet, "LoRA")), bits(unet)
    with AdapterMerger(unet) as merger:
        merger.put_on(merger.read(data), 1.0)
        on = bits(unet)
        with pytest.raises(BadInput):
            merger.read(file_of({"lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}))
        assert bits(unet) == on
    assert bits(unet) == before


# --- layers whose weight cannot be exchanged --------------------------------------------------------------------------


def test_packed_layers_keep_a_hook_and_the_log_says_why(unet, caplog) -> None:
    store_in_float8([unet.get_submodule(LINEAR)])
    before, data = bits(unet), file_of(tensors_of(unet, "LoRA"))
    wanted = hooked(unet, data, 0.7)
    with caplog.at_level(logging.INFO), AdapterMerger(unet) as merger:
        layers = merger.read(data)
        merger.put_on(layers, 0.7)
        assert [name for name in layers if "forward" in unet.get_submodule(name).__dict__] == [LINEAR]
        assert distance(output(unet), wanted) < BOUND
        merger.put_on(layers, 0.0)
        assert "forward" not in unet.get_submodule(LINEAR).__dict__
        merger.put_on(layers, 1.0)
    assert bits(unet) == before
    assert "forward" not in unet.get_submodule(LINEAR).__dict__
    assert caplog.text.count("its weight is packed (float8_e4m3fn)") == 1


def test_layers_of_streamed_blocks_keep_a_hook(unet) -> None:
    blocks = unet.down_blocks[1].attentions[0].transformer_blocks
    data = file_of(tensors_of(unet, "LoRA"))
    wanted = hooked(unet, data, 0.7)
    stream = BlockStream(unet, blocks, torch.device("cpu"), resident=0)
    stream.place()
    base = output(unet)
    with AdapterMerger(unet) as merger:
        merger.put_on(merger.read(data), 0.7)
        assert "forward" in unet.get_submodule(LINEAR).__dict__
        assert "forward" not in unet.get_submodule(CONV).__dict__
        assert distance(output(unet), wanted) < BOUND
    assert torch.equal(output(unet), base)


def test_offloaded_layers_keep_a_hook(unet) -> None:
    layer = unet.get_submodule(LINEAR)
    layer.weight = torch.nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    assert "waits elsewhere (meta)" in why_hooked(unet, LINEAR)
    assert why_hooked(unet, CONV) == ""


def test_as_asked_nothing_is_merged(unet) -> None:
    before, data = bits(unet), file_of(tensors_of(unet, "LoRA"))
    wanted = hooked(unet, data, 0.7)
    with AdapterMerger(unet, merge=False) as merger:
        merger.put_on(merger.read(data), 0.7)
        assert bits(unet) == before
        assert torch.equal(output(unet), wanted)
    assert bits(unet) == before


def output_in(unet, kind: torch.dtype) -> torch.Tensor:
    """The U-Net's output computed in half precision, float32."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(kind)

    conditions = {"text_embeds": draw(1, 16), "time_ids": torch.ones(1, 6, dtype=kind)}
    with torch.no_grad():
        return unet(draw(1, 4, 16, 8), torch.tensor([500]), draw(1, 8, 24), added_cond_kwargs=conditions).sample.float()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parts_packed_for_one_copy_are_the_same_parts_and_merge_to_the_same_bits(unet, algorithm: str) -> None:
    layers = by_module(load_adapter(file_of(tensors_of(unet, algorithm, alpha=3.0)))[0], unet)
    together = packed(layers)
    assert list(together) == list(layers)
    for name, parts in layers.items():
        assert list(together[name]) == list(parts)
        assert all(torch.equal(together[name][part], value) for part, value in parts.items())
    values = [value for parts in together.values() for part, value in parts.items() if part != "alpha"]
    assert len({value.untyped_storage().data_ptr() for value in values}) == len({value.dtype for value in values})
    found = []
    for given in (layers, together):
        with AdapterMerger(unet) as merger:
            merger.put_on(given, 0.7)
            found.append(bits(unet))
    assert found[0] == found[1]


def test_bits_that_wait_on_the_host_lie_in_one_buffer_whatever_their_shapes_and_types() -> None:
    tensors = [torch.randn(3, 5), torch.randn(7).to(torch.bfloat16), torch.randn(2, 2, 3, 3).half(), torch.zeros(0)]
    copies = host_memory.HostCopies(tensors).copies
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    for tensor, found in zip(tensors, copies, strict=True):
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
        assert found.data_ptr() % host_memory.ALIGNMENT == 0
        tensor.zero_()
    assert copies[0].abs().min() > 0
    assert host_memory.HostCopies([]).copies == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("locked", [True, False])
def test_on_a_gpu_the_bases_bits_wait_in_page_locked_memory_and_come_back(
    unet, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file_of(tensors_of(unet, "LoRA"))
    before = bits(unet)
    with AdapterMerger(unet, in_place=True) as merger:
        merger.put_on(merger.read(data), 0.7)
        wanted = bits(unet)
    unet.to("cuda")
    if not locked:
        monkeypatch.setattr(host_memory, "page_lock", lambda buffer: False)  # the system locks no more
    with AdapterMerger(unet) as merger:
        layers = merger.read(data)
        for strength in (1.4, 0.7):
            merger.put_on(layers, strength)
        kept = [one for one in merger._kept.values() if one is not None]
        # torch asks where a storage begins, which may be before the locked pages: so of views that begin with the bits
        assert kept and all(torch.from_numpy(one.bits.numpy()).is_pinned() == locked for one in kept)
        merged = copy.deepcopy(unet).to("cpu")
    assert bits(copy.deepcopy(unet).to("cpu")) == before
    for (name, found), kept_bytes in zip(merged.state_dict().items(), wanted.values(), strict=True):
        on_cpu = torch.frombuffer(bytearray(kept_bytes), dtype=found.dtype).view(found.shape)
        assert torch.allclose(found, on_cpu, atol=1e-6, rtol=1e-5), name
