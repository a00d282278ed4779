"""The WD14 tagger: what its model is really fed, and what becomes of its answers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from charengine.errors import BadInput, MissingDependency
from charengine.models.tagger import WD14Captioner, preprocess, readable


@pytest.fixture
def tagger_folder(tmp_path: Path) -> Path:
    """An ONNX tagger whose four outputs are: blue of the centre, red of the centre, top-left red, mean red; all / 255."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, values: list[int]):
        return numpy_helper.from_array(np.array(values, dtype=np.int64), name)

    nodes, initial = [], [numpy_helper.from_array(np.array(255.0, dtype=np.float32), "white")]
    for name, (row, column, channel) in {"a": (160, 160, 0), "b": (160, 160, 2), "c": (0, 0, 2)}.items():
        initial += [
            constant(f"{name}0", [row, column, channel]),
            constant(f"{name}1", [row + 1, column + 1, channel + 1]),
        ]
        initial.append(constant(f"{name}x", [1, 2, 3]))
        nodes.append(helper.make_node("Slice", ["pixels", f"{name}0", f"{name}1", f"{name}x"], [f"{name}p"]))
        nodes.append(helper.make_node("Reshape", [f"{name}p", "flat"], [f"{name}f"]))
    initial += [constant("flat", [1, 1]), constant("m0", [2]), constant("m1", [3]), constant("mx", [3])]
    nodes += [
        helper.make_node("Slice", ["pixels", "m0", "m1", "mx"], ["red"]),
        helper.make_node("ReduceMean", ["red"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["mf"]),
        helper.make_node("Concat", ["af", "bf", "cf", "mf"], ["all"], axis=1),
        helper.make_node("Div", ["all", "white"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 320, 320, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
        initial,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "selected_tags.csv").write_text(
        "tag_id,name,category,count\n1,blue_centre,0,9\n2,from_behind,0,9\n3,white_corner,4,9\n4,sensitive,9,9\n"
    )
    return tmp_path


def test_the_tagger_is_fed_bgr_of_its_models_size_padded_with_white_in_the_middle(tagger_folder: Path):
    pytest.importorskip("onnxruntime")
    blue_bar = Image.new("RGB", (100, 50), (0, 0, 255))
    found = WD14Captioner(tagger_folder, "x").describe(blue_bar)
    assert found.tags == ("blue centre",)  # channel 0 is blue, and the bar is in the middle
    assert found.facts["character"] == "white corner"  # above the bar: white padding
    assert found.facts["rating"] == "sensitive"
    red_bar = WD14Captioner(tagger_folder, "x").describe(Image.new("RGB", (100, 50), (255, 0, 0)))
    assert red_bar.tags == ("from behind",)
    assert red_bar.facts["view"] == "back"


def test_thresholds_decide_what_is_a_tag(tagger_folder: Path):
    pytest.importorskip("onnxruntime")
    dim = Image.new("RGB", (64, 64), (40, 0, 120))
    assert WD14Captioner(tagger_folder, "x").describe(dim).tags == ("blue centre",)
    assert WD14Captioner(tagger_folder, "x", threshold=0.5).describe(dim).tags == ()
    assert WD14Captioner(tagger_folder, "x", threshold=0.1).describe(dim).tags == ("blue centre", "from behind")
    assert "character" not in WD14Captioner(tagger_folder, "x").describe(dim).facts


def test_pixels_keep_their_values_and_transparency_is_white():
    pixels = preprocess(Image.new("RGB", (448, 448), (10, 20, 30)), 448)
    assert pixels.shape == (1, 448, 448, 3)
    assert pixels.dtype == np.float32
    assert pixels[0, 5, 7].tolist() == [30.0, 20.0, 10.0]
    assert preprocess(Image.new("RGBA", (448, 448), (10, 20, 30, 0)), 448)[0, 0, 0].tolist() == [255.0, 255.0, 255.0]
    tall = preprocess(Image.new("RGB", (224, 448), (0, 0, 0)), 448)[0]
    assert (tall[:, :112] == 255).all()
    assert (tall[:, 112:336] == 0).all()
    assert (tall[:, 336:] == 255).all()


def test_underscores_become_spaces_except_in_faces():
    assert [readable(tag) for tag in ("long_hair", "^_^", ">_<", "o_o", "off_shoulder")] == [
        "long hair",
        "^_^",
        ">_<",
        "o_o",
        "off shoulder",
    ]


def test_a_missing_file_or_package_is_named_with_what_to_do(
    tagger_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    with pytest.raises(MissingDependency, match=r"has no model\.onnx.*selected_tags\.csv"):
        WD14Captioner(tmp_path_factory.mktemp("empty"), "x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        WD14Captioner(tagger_folder, "x").describe(Image.new("RGB", (8, 8)))


def test_files_of_two_different_taggers_are_refused(tagger_folder: Path):
    pytest.importorskip("onnxruntime")
    with open(tagger_folder / "selected_tags.csv", "a") as file:
        file.write("5,extra,0,1\n")
    with pytest.raises(BadInput, match=r"answers 4 tags, selected_tags\.csv names 5"):
        WD14Captioner(tagger_folder, "x").describe(Image.new("RGB", (8, 8)))
