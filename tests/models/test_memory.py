from __future__ import annotations

from pathlib import Path

import pytest
import torch

from charengine.embedded.making.family import TINY, build_transformer
from charengine.errors import OutOfBudget
from charengine.models.files import Header, TensorInfo
from charengine.models.memory import GIB, TakingTurns, measure_part, place, plan, usable
from charengine.models.quantised import fill
from charengine.models.streaming import BlockStream, shrink_when_out_of_memory, streamed_blocks

CPU = torch.device("cpu")


def header(dtype: str, block: int, blocks: int, rest: int, layers: str = "transformer_blocks") -> Header:
    """A model of square matrices; sizes in elements."""
    width = {"F8_E4M3": 1, "BF16": 2}[dtype]
    tensors = {f"{layers}.{i}.w.weight": TensorInfo(dtype, (block // 1024, 1024), block * width) for i in range(blocks)}
    return Header(Path("x"), "safetensors", tensors | {"rest.weight": TensorInfo("BF16", (rest,), rest * 2)})


def published(dtype: str) -> tuple[Header, Header]:
    """Qwen2.5-VL 7B and the Qwen-Image transformer, about."""
    return header(dtype, 233_000_000, 28, 1_760_000_000, "model.layers"), header(dtype, 340_000_000, 60, 30_000_000)


def test_on_twelve_gib_the_encoder_stays_whole_and_the_transformer_streams() -> None:
    encoder, transformer = published("F8_E4M3")
    result = plan(12, encoder, transformer, sheet=(1536, 1024))
    assert result.encoder.streamed == 0
    assert 18 <= result.transformer.resident <= 30
    for placement in (result.encoder, result.transformer):
        assert placement.device_bytes <= 11.5 * GIB
    assert not result.together


def test_bf16_files_are_rounded_only_where_they_do_not_fit() -> None:
    encoder, transformer = published("BF16")
    small, large = (plan(gib, encoder, transformer, sheet=(1024, 1024)) for gib in (12, 80))
    assert small.encoder.fp8 and small.transformer.fp8
    assert not large.encoder.fp8 and not large.transformer.fp8
    assert large.transformer.streamed == 0 and large.together


def test_the_encoder_may_work_in_what_the_weights_on_the_gpu_leave() -> None:
    encoder, transformer = published("BF16")
    alone, beside = (plan(gib, encoder, transformer, sheet=(1024, 1024)) for gib in (12, 80))
    weights = [part.block * part.blocks + part.rest for part in (alone.encoder.part, beside.encoder.part)]
    assert alone.encoder_room == usable(12) - weights[0]
    drawer = beside.transformer.part
    assert beside.encoder_room == usable(80) - weights[1] - drawer.block * drawer.blocks - drawer.rest


def test_bigger_sheets_leave_room_for_fewer_blocks() -> None:
    encoder, transformer = published("F8_E4M3")
    resident = [
        plan(12, encoder, transformer, sheet=side).transformer.resident for side in ((1024, 1024), (1536, 1536))
    ]
    assert resident[0] > resident[1]


def test_a_budget_too_small_names_the_smallest_that_fits_and_that_one_does() -> None:
    encoder, transformer = published("F8_E4M3")
    with pytest.raises(OutOfBudget, match=r"the budget is 3 GiB") as caught:
        plan(3, encoder, transformer, sheet=(1024, 1024))
    smallest = caught.value.smallest_gib
    assert smallest is not None and 3 < smallest < 8
    part = measure_part(encoder, "encoder", workspace=int(1.4 * GIB), fp8=False)
    assert place(part, smallest).resident >= 0


def test_streamed_blocks_are_spread_between_resident_ones() -> None:
    assert streamed_blocks(6, 3) == [1, 3, 5]
    assert streamed_blocks(5, 5) == [0, 1, 2, 3, 4]
    assert streamed_blocks(5, 0) == []
    assert len(streamed_blocks(60, 37)) == 37


@pytest.mark.parametrize("resident", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("packed", "lock"), [(True, True), (True, False), (False, True)])
def test_a_streamed_model_computes_what_the_resident_one_does(resident: int, packed: bool, lock: bool) -> None:
    torch.manual_seed(0)
    model = build_transformer(TINY)
    blocks = [type(model.transformer_blocks[0])(dim=32, num_attention_heads=2, attention_head_dim=16) for _ in range(5)]
    model.transformer_blocks = torch.nn.ModuleList(blocks)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fill(model, state, torch.float32, "state", fp8=(lambda name: "blocks" in name) if packed else None)
    inputs = {
        "hidden_states": torch.randn(1, 16, 64),
        "encoder_hidden_states": torch.randn(1, 5, 32),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 4, 4)]],
    }
    with torch.no_grad():
        expected = model(**inputs)[0]
        stream = BlockStream(model, model.transformer_blocks, CPU, resident, lock_resident=lock)
        for _ in range(2):
            stream.place()
            for _ in range(3):
                assert torch.equal(model(**inputs)[0], expected)
            stream.release()


def test_running_out_of_memory_streams_more_blocks_and_gives_the_same_answer() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(6)]).requires_grad_(False)
    x = torch.randn(2, 4)
    expected = model(x)
    stream = BlockStream(model, torch.nn.ModuleList(model), CPU, 6)
    stream.place()
    failures = iter([True, True])

    def fails_twice(*_: object) -> None:
        if next(failures, False):
            raise torch.cuda.OutOfMemoryError("no room")

    model[5].register_forward_pre_hook(fails_twice)
    shrink_when_out_of_memory(stream)
    assert torch.equal(model(x), expected)
    assert len(stream.streamed) == 6
    assert torch.equal(model(x), expected)


def test_out_of_memory_with_nothing_left_to_stream_is_raised() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))

    def fails(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    model[0].register_forward_pre_hook(fails)
    stream = BlockStream(model, torch.nn.ModuleList(model), CPU, 0)
    stream.place()
    shrink_when_out_of_memory(stream)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model(torch.zeros(1, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [0, 3, 8])
def test_streaming_to_a_gpu_gives_the_same_numbers_and_its_memory_back(resident: int) -> None:
    device = torch.device("cuda", 0)
    blocks = torch.nn.ModuleList([torch.nn.Linear(1024, 1024, dtype=torch.bfloat16) for _ in range(8)]).requires_grad_(
        False
    )
    x = torch.randn(4096, 1024, device=device, dtype=torch.bfloat16)
    torch.nn.functional.linear(x, blocks[0].weight.to(device), blocks[0].bias.to(device))  # cuBLAS takes its workspace
    before = torch.cuda.memory_allocated(device)
    with torch.no_grad():
        expected = [torch.nn.functional.linear(x, b.weight.to(device), b.bias.to(device)) for b in blocks]
        stream = BlockStream(blocks, blocks, device, resident)
        for _ in range(2):
            stream.place()
            for _ in range(20):
                outputs = [block(x) for block in blocks]
            assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
            stream.release()
    del outputs, expected
    assert torch.cuda.memory_allocated(device) <= before + 2**20


def test_an_interrupted_forward_does_not_leave_a_wrong_block_in_a_slot() -> None:
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(5)])
    x = torch.randn(1, 4)
    with torch.no_grad():
        outputs = [layer(x) for layer in layers]
        stream = BlockStream(layers, layers, CPU, 0)
        stream.place()
        for order in ([0, 1, 2], [0, 1, 2, 3, 4], [0], [0, 1, 2, 3, 4]):
            for index in order:
                assert torch.equal(layers[index](x), outputs[index])


def test_rivals_are_put_aside_before_the_other_is_loaded_and_unloading_drops_them() -> None:
    events: list[str] = []
    release, drop = (lambda name: events.append(f"release {name}")), (lambda name: events.append(f"drop {name}"))
    loaded = TakingTurns(frozenset({"text_encoder", "transformer"}), release, drop)
    for name in ("text_encoder", "vae", "transformer", "transformer", "text_encoder"):
        loaded.get(name, lambda name=name: events.append(f"load {name}"))
    loaded.forget("text_encoder", "transformer")
    assert events == [
        "load text_encoder", "load vae", "release text_encoder", "load transformer", "release transformer", "load text_encoder",
        "release text_encoder", "drop text_encoder", "drop transformer",
    ]  # fmt: skip


def test_the_scales_of_packed_rows_do_not_make_a_packed_file_one_that_is_to_be_rounded() -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = {
        f"{name}.weight": TensorInfo("I8", (64, 32), 64 * 32),
        f"{name}.weight_scale": TensorInfo("F32", (64, 1), 256),
    }
    packed = Header(Path("x"), "safetensors", tensors)
    sizes = {fp8: measure_part(packed, "x", workspace=0, fp8=fp8).block for fp8 in (False, True)}
    assert sizes[False] == sizes[True]
