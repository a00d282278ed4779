from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from charengine.adapter.header import read_header as read_adapter_header
from charengine.errors import BadInput, UnsafeFile
from charengine.models.files import fingerprint, read_header, read_header_of_folder
from charengine.models.identify import expect, identify_path
from charengine.models.reading import read_state

UNET = "model.diffusion_model."


def weights(path: Path, *names: str, shape: tuple[int, ...] = (4, 4), **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shapes.get(name, shape)) for name in names}, path)
    return path


def test_a_header_gives_names_shapes_types_and_sizes_without_reading_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(5)}, path, metadata={"who": "me"})
    header = read_header(path)
    assert header.tensors["a"].shape == (2, 3)
    assert (header.tensors["a"].dtype, header.nbytes, header.metadata) == ("F16", 32, {"who": "me"})


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused_by_name_and_told_how_to_convert(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeFile, match=r"save_file"):
        read_header(path)


def test_a_pickle_named_safetensors_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(BadInput, match="pickle under another name"):
        read_header(path)


def test_a_truncated_file_is_told_by_its_size(tmp_path: Path) -> None:
    path = weights(tmp_path / "model.safetensors", "a", "b")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match="cut short"):
        read_header(path)


def test_a_git_lfs_pointer_is_told_apart_from_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 6938078334\n")
    with pytest.raises(BadInput, match="git lfs pull"):
        read_header(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"a": ([4], [0, 8])},
        {"a": ([float("inf")], [0, 16])},
        {"a": ([4], [0, 16]), "b": ([4], [0, 16])},  # one place for two
        {"a": ([4], [0, 16]), "b": ([4], [8, 24])},
        {"a": ([4], [0, 16]), "b": ([4], [20, 36])},  # bytes of none
        {"a": ([4], [4, 20])},
        {"a": ([4], [-8, 8]), "b": ([4], [8, 24])},  # in the header
        {"a": ([4], [2**64, 2**64 + 16])},
        {"a": ([2.0], [0, 8])},
    ],
    ids=repr,
)
def test_a_header_that_lies_about_where_tensors_lie_is_refused(tmp_path: Path, entries: dict) -> None:
    path = tmp_path / "model.safetensors"
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": at} for name, (shape, at) in entries.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(max(at[1] for _, at in entries.values()) % 2**64))
    for reader in (read_header, read_adapter_header):
        with pytest.raises(BadInput, match=r"is damaged|is no tensor|cut short"):
            reader(path)


def test_a_gguf_file_cut_short_or_grown_is_refused(tmp_path: Path) -> None:
    original = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = original.GGUFWriter(path, "qwen_image")
    writer.add_tensor("a", torch.zeros(64, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(path).tensors["a"].shape == (64, 64)
    path.write_bytes(path.read_bytes().replace(b"qwen_image", b"qwen\xff\xfeimag"))
    assert identify_path(path).kind == "other"  # what its architecture says is no text
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(64))
    with pytest.raises(BadInput, match="64 bytes lie behind its last tensor"):
        read_header(path)
    path.write_bytes(whole[:-5000])
    with pytest.raises(BadInput, match="truncated"):
        read_header(path)


@pytest.mark.parametrize(("place", "value"), [
    ("b", 0), ("b", 32), ("b", 4096), ("c", 64), ("b", 2**64 - 64), ("a", 2**64 - 32), ("array", 2**40), ("count", 2**60),
])  # fmt: skip
def test_a_gguf_header_that_lies_is_refused_before_a_value_is_read(tmp_path: Path, place: str, value: int) -> None:
    original = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = original.GGUFWriter(path, "qwen_image")
    writer.add_array("array", [1, 2])
    for name in "abc":
        writer.add_tensor(name, torch.ones(3, 5).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    # after a tensor's name come its axes, their number and its type; after an array's its type and its elements'
    places = {name: data.index(bytes([1, *[0] * 7, ord(name), 2])) + 33 for name in "abc"}
    at = (places | {"array": data.index(b"array") + 13, "count": 8})[place]
    data[at : at + 8] = struct.pack("<Q", value)
    path.write_bytes(data)
    for reader in (read_header, read_state):
        with pytest.raises(BadInput, match="download it again"):
            reader(path)


def test_a_folder_with_a_missing_shard_is_refused(tmp_path: Path) -> None:
    weights(tmp_path / "model-00001-of-00002.safetensors", "a")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="lacks 1 of 2 shards"):
        read_header_of_folder(tmp_path)
    weights(tmp_path / "model-00002-of-00002.safetensors", "a", "b")
    with pytest.raises(BadInput, match="00002.*: a stands twice"):
        read_header_of_folder(tmp_path)


def test_a_folder_of_pickles_only_is_unsafe(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeFile):
        read_header_of_folder(tmp_path)


SDXL = [
    f"{UNET}input_blocks.0.0.weight",
    f"{UNET}label_emb.0.0.weight",
    "conditioner.embedders.1.model.ln_final.weight",
    "first_stage_model.x",
]
CASES = [
    (SDXL, "SDXL checkpoint"),
    ([*SDXL, "v_pred"], "v-prediction"),
    (SDXL[:2], "without its text encoders"),
    ([SDXL[0], "cond_stage_model.transformer.text_model.x"], "Stable Diffusion 1"),
    ([SDXL[0], "cond_stage_model.model.ln_final.weight"], "Stable Diffusion 2"),
    ([f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale"], "FLUX"),
    (["joint_blocks.0.context_block.adaLN_modulation.1.bias"], "Stable Diffusion 3"),
    (["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"], "LoRA"),
    (["transformer_blocks.0.attn.add_k_proj.lora_A.weight"], "Qwen-Image LoRA"),
    (["transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"], "Qwen-Image transformer of 1 blocks"),
    (
        [
            "visual.blocks.0.attn.qkv.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.mlp.gate_proj.weight",
        ],
        "Qwen2.5-VL",
    ),
    (["visual.blocks.0.attn.qkv.weight", "model.layers.0.self_attn.q_norm.weight"], "other than Qwen2.5-VL"),
    (["encoder.middle.0.residual.0.gamma"], "Qwen-Image VAE"),
    (["decoder.conv_in.weight"], "VAE"),
    (["blk.0.attn_q.weight"], "llama.cpp language model"),
    (["banana"], "not known here"),
]


@pytest.mark.parametrize(("names", "title"), CASES)
def test_what_a_file_is_is_told_from_its_keys(tmp_path: Path, names: list[str], title: str) -> None:
    assert title in identify_path(weights(tmp_path / "model.safetensors", *names)).title


@pytest.mark.parametrize("names", [["decoder.conv_in.weight"], SDXL])
def test_kernels_without_axes_make_a_file_another_model(tmp_path: Path, names: list[str]) -> None:
    assert identify_path(weights(tmp_path / "model.safetensors", *names, shape=(4,))).kind == "other"


def test_a_vae_of_sixteen_channels_is_not_sdxls(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}, path)
    assert "16 latent channels" in identify_path(path).title


def test_a_lora_given_as_a_checkpoint_is_refused_with_both_names(tmp_path: Path) -> None:
    path = weights(tmp_path / "style.safetensors", "lora_unet_input_blocks_4_1_proj_in.lora_down.weight")
    with pytest.raises(BadInput, match=r"models\.sdxl: .*style\.safetensors is a LoRA .* needs an SDXL checkpoint"):
        expect(path, ("sdxl",), "models.sdxl")


def test_packed_integer_formats_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "svdq-int4-qwen.safetensors"
    save_file({"transformer_blocks.0.attn.to_q.qweight": torch.zeros(4, 4, dtype=torch.int8)}, path)
    with pytest.raises(BadInput, match="quantised as svdq"):
        identify_path(path)


def test_a_fingerprint_follows_content_not_place_and_is_remembered(tmp_path: Path) -> None:
    memory = tmp_path / "home" / "fingerprints.json"
    first = weights(tmp_path / "a.safetensors", "a")
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "b.safetensors"
    moved.write_bytes(first.read_bytes())
    digest = fingerprint([first], memory)
    assert digest == fingerprint([moved], memory)
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: "f" * 64 for key in known}))
    assert fingerprint([first], memory) == fingerprint([moved], memory) != digest
    moved.write_bytes(weights(tmp_path / "c.safetensors", "c").read_bytes())
    assert fingerprint([moved], memory) not in (digest, fingerprint([first], memory))


def test_a_four_bit_folder_is_refused_now_not_when_its_shapes_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "QwenImageTransformer2DModel"}')
    weights(
        tmp_path / "model.safetensors",
        "transformer_blocks.0.attn.to_q.weight.quant_state.bitsandbytes__nf4",
        "a.weight.absmax",
    )
    with pytest.raises(BadInput, match="quantised as bitsandbytes"):
        identify_path(tmp_path)
