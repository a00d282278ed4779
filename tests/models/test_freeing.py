"""What `Loaded` lets go of is gone when it returns, and garbage is looked for only where something is left."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from charengine.models import loading
from charengine.models.loading import Loaded
from charengine.models.memory import TakingTurns

Watch = list[weakref.ref[torch.Tensor]]


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """One entry for each time that garbage is collected on purpose; nothing else collects it meanwhile."""
    seen: list[str] = []
    collect = gc.collect
    monkeypatch.setattr(gc, "collect", lambda: seen.append("full") or collect())
    monkeypatch.setattr(loading, "_accelerator", lambda: False)
    gc.disable()
    yield seen
    gc.enable()


def held(loaded: Loaded, name: str, *models: torch.nn.Module) -> Watch:
    loaded.get(name, lambda: models if len(models) > 1 else models[0])
    return [weakref.ref(weight) for model in models for weight in model.parameters()]


def in_a_circle() -> torch.nn.Module:
    """As LyCORIS leaves a U-Net: a layer that a hook of its own leads back to."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: model)
    return model


def test_models_that_die_with_their_last_reference_are_freed_without_a_collection(collections: list[str]) -> None:
    loaded = Loaded()
    one, two = held(loaded, "one", torch.nn.Linear(2, 2)), held(loaded, "two", torch.nn.Linear(2, 2), torch.nn.ReLU())
    loaded.free("one")
    assert [ref() for ref in one] == [None, None] and all(ref() is not None for ref in two)
    loaded.free()
    loaded.free()  # nothing is left
    assert [ref() for ref in two] == [None, None] and collections == []


@pytest.mark.parametrize("beside", [(), (torch.nn.Linear(2, 2),)], ids=["alone", "one of two"])
def test_a_model_in_a_reference_cycle_is_freed_by_one(collections: list[str], beside: tuple[torch.nn.Module]) -> None:
    loaded, models = Loaded(), [in_a_circle(), *beside]
    watch = held(loaded, "unet", *models)[:2]
    models.clear()
    loaded.free("unet")
    assert [ref() for ref in watch] == [None, None] and collections == ["full"]


def test_weights_in_a_cycle_that_their_model_is_not_in_are_freed(collections: list[str]) -> None:
    loaded, model = Loaded(), torch.nn.Linear(2, 2)
    circle: list[object] = [model.weight]
    circle.append(circle)
    [weight, _] = held(loaded, "vae", model)
    del model, circle
    loaded.free("vae")
    assert weight() is None and collections == ["full"]


def test_a_model_that_host_memory_keeps_is_not_taken_for_garbage(collections: list[str]) -> None:
    streamed = torch.nn.Linear(2, 2)
    loaded = TakingTurns(frozenset(), release=lambda name: name == "transformer", drop=lambda name: None)
    held(loaded, "transformer", streamed)
    loaded.free("transformer")
    assert collections == []
    held(loaded, "transformer", streamed)
    [weight, *_] = held(loaded, "vae", in_a_circle())
    loaded.free()
    assert weight() is None and collections == ["full"]


def test_where_memory_is_an_accelerators_garbage_is_always_collected(
    collections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_accelerator", lambda: True)
    Loaded().free()
    assert collections == ["full"]


def test_on_an_accelerator_what_was_imported_is_set_aside_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    monkeypatch.setattr(loading, "_accelerator", lambda: True)
    monkeypatch.setattr(loading, "set_imports_aside", lambda: order.append("aside"))
    loaded = Loaded()
    loaded.get("unet", lambda: order.append("loaded") or 1)
    loaded.get("unet", lambda: order.append("again") or 1)
    assert order == ["aside", "loaded"]
