"""The probe learns from renders alone, and its scores count what they say."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from charengine.embedded.making.judge import train_judge
from charengine.embedded.making.run import Run
from charengine.embedded.probe import (
    cross_view_agreement,
    load_probe,
    probe_data,
    reading_loss,
    score_images,
    score_sheets,
    sheet_mask,
    side_item_accuracy,
    trait_accuracies,
    trait_accuracy,
    view_accuracy,
)
from charengine.embedded.traits import COLUMN, TRAITS, VIEWS, is_heldout, normalise, sample_indices


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("probe")
    train_judge(Run(folder, torch.device("cpu"), tiny=True, max_steps=2), minutes=5)
    return load_file(folder / "probe.safetensors")


def test_the_shipped_weights_are_half_precision_and_fit_in_2_megabytes(weights: dict[str, torch.Tensor]) -> None:
    floats = [value for value in weights.values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float16}
    assert sum(value.numel() * value.element_size() for value in weights.values()) <= 2_000_000


def test_a_sheet_is_read_box_by_box_from_left_to_right(weights: dict[str, torch.Tensor]) -> None:
    probe = load_probe(weights)
    sheet = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    reading = score_sheets(probe, sheet)
    assert reading.traits.shape == (1, 3, len(TRAITS)) and reading.views.shape == (1, 3)
    middle = score_images(probe, sheet[..., 64:128])
    assert torch.equal(reading.traits[:, 1], middle.traits)


def test_training_data_holds_no_heldout_character_and_every_view() -> None:
    data = probe_data(12, torch.Generator().manual_seed(3), "cpu", scenes=True, size=(32, 96))
    assert data.images.dtype == torch.uint8 and data.images.shape == (12, 3, 96, 32)
    assert not is_heldout(data.traits).any()
    assert set(data.views.tolist()) == set(range(len(VIEWS)))


def test_figures_in_scenes_are_turned_and_no_view_is_asked_of_one_between_two() -> None:
    generator = torch.Generator().manual_seed(4)
    scenes = probe_data(64, generator, "cpu", scenes=True, size=(32, 32))
    sheets = probe_data(4, generator, "cpu", scenes=False, size=(32, 96))
    assert 0.3 < scenes.clear.float().mean() < 0.85
    assert sheets.clear.all()
    logits = [torch.zeros(2, len(values)) for values in TRAITS.values()] + [torch.tensor([[9.0, 0, 0], [9.0, 0, 0]])]
    traits, views = torch.zeros(2, len(TRAITS), dtype=torch.long), torch.tensor([0, 2])
    shown = torch.ones_like(traits, dtype=torch.bool)
    both, first = (
        reading_loss(logits, traits, views, torch.tensor(clear), shown) for clear in ([True, True], [True, False])
    )
    assert (both - first) * len(logits) == pytest.approx(4.5, abs=0.01)  # the second figure's view is read wrong


def test_accuracy_counts_visible_traits_only() -> None:
    truth = torch.zeros(1, 2, dtype=torch.long)
    predicted = torch.tensor([[0, 5]])
    assert trait_accuracy(predicted, truth, torch.tensor([[True, True]])) == 0.5
    assert trait_accuracy(predicted, truth, torch.tensor([[True, False]])) == 1.0


def test_view_accuracy_wants_front_side_back_from_left_to_right() -> None:
    assert view_accuracy(torch.tensor([[0, 1, 2], [0, 2, 2]])) == pytest.approx(5 / 6)


def _sheet_truth(**values: str) -> torch.Tensor:
    truth = sample_indices(1, torch.Generator().manual_seed(9), "all")
    for name, value in values.items():
        truth[0, COLUMN[name]] = TRAITS[name].index(value)
    return normalise(truth)


def test_an_item_on_the_wrong_side_counts_as_wrong() -> None:
    truth = _sheet_truth(right_item="hook", left_item="none")
    mask = sheet_mask(truth)
    right = truth[:, None].repeat(1, 3, 1)
    swapped = right.clone()
    swapped[..., COLUMN["left_item"]] = right[..., COLUMN["right_item"]]
    swapped[..., COLUMN["right_item"]] = 0
    assert side_item_accuracy(right, right, mask) == 1.0
    assert side_item_accuracy(swapped, right, mask) == 0.0


def test_agreement_falls_when_one_view_has_another_coat_colour() -> None:
    truth = _sheet_truth(headgear="none", hair_style="short", top="coat", bottom="trousers")
    mask = sheet_mask(truth)
    same = truth[:, None].repeat(1, 3, 1)
    odd = same.clone()
    odd[0, 2, COLUMN["top_colour"]] = (odd[0, 2, COLUMN["top_colour"]] + 1) % 10
    assert cross_view_agreement(same, mask) == 1.0
    assert cross_view_agreement(odd, mask) == pytest.approx(2 / 3)
    assert trait_accuracies(odd, same, mask)["top_colour"] == pytest.approx(2 / 3)
