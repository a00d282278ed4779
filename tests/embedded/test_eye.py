"""The eye: VAEs are trained to keep what it reads, their latents stay where models on them are, and nothing is judged by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from charengine.embedded import probe
from charengine.embedded.making import images
from charengine.embedded.making.clock import write_weights
from charengine.embedded.making.eye import NAME, Eye, build_eye, load_eye
from charengine.embedded.making.judge import halves
from charengine.embedded.making.pack import PLACES
from charengine.embedded.making.run import Run
from charengine.embedded.making.vae import Autoencoder, train_vae


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "out", torch.device("cpu"), tiny=True, max_steps=2)


def pictures(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 128, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def eye() -> Eye:
    torch.manual_seed(0)
    return Eye(probe.Probe((16, 16, 16, 16)))


def test_equal_pictures_look_equal_and_others_do_not() -> None:
    given, weight = pictures(), torch.ones(2, 1, 128, 64)
    apart, read = eye()(given, given, weight)
    assert (float(apart), float(read)) == pytest.approx((0, 0), abs=1e-6)
    apart, read = eye()(given.flip(3), given, weight)
    assert apart > 0.01 and read > 0


def test_a_difference_where_nothing_counts_is_not_looked_at() -> None:
    wanted = pictures()
    out = wanted.clone()
    out[..., 64:, :] = -out[..., 64:, :]
    above, below = torch.zeros(2, 2, 1, 128, 64)
    above[..., :48, :], below[..., 80:, :] = 1, 1
    assert eye()(out, wanted, below)[0] > 5 * eye()(out, wanted, above)[0]


def test_what_the_eye_sees_reaches_the_picture_and_not_the_eye() -> None:
    out = pictures().requires_grad_()
    looking = eye()
    sum(looking(out, pictures().flip(3), torch.ones(2, 1, 128, 64))).backward()  # type: ignore[union-attr]
    assert out.grad is not None and out.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in looking.parameters())


def test_a_vae_trained_after_the_eye_learns_from_it_and_one_without_does_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Eye, "forward", lambda *given: (looks.append(1), (given[1].mean() * 0,) * 2)[1])
    train_vae(run, "sdxl", 1.0)
    assert load_eye(run) is None and looks == []
    write_weights(run.out, {NAME: halves(build_eye(run))})
    train_vae(run, "sdxl", 1.0)
    assert len(looks) == run.max_steps


def test_latents_are_held_where_they_were() -> None:
    torch.manual_seed(0)
    run = Run(Path(), torch.device("cpu"), tiny=True)
    vae = Autoencoder("sdxl", run.sizes, run.device)
    vae.facts = {"mean": [0.0], "std": [2.0]}
    given = pictures()
    with torch.no_grad():
        mean, _ = vae.moments(given)
        assert float(vae.moved(given, mean)) == pytest.approx(0, abs=1e-9)
        assert float(vae.moved(given, mean + 1)) == pytest.approx(0.25)  # half a standard deviation


def test_the_eye_is_not_shipped() -> None:
    assert NAME not in PLACES


def test_the_picture_model_shows_the_eye_some_of_its_guesses_if_there_is_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_vae(run, "sdxl", 5)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    look = images.look

    def watched(
        looking: Eye, vae: Autoencoder, guessed: torch.Tensor, clean: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        seen.append((guessed, clean))
        return look(looking, vae, guessed, clean, weights)

    monkeypatch.setattr(images, "look", watched)
    images.train_images(run, 5)
    assert not seen
    write_weights(run.out, {NAME: halves(build_eye(run))})
    images.train_images(run, 5)
    assert len(seen) == run.max_steps
    assert all(guessed.requires_grad and guessed.shape == clean.shape for guessed, clean in seen)


def test_what_the_picture_model_guesses_is_compared_as_pictures(run: Run) -> None:
    train_vae(run, "sdxl", 5)
    vae = Autoencoder("sdxl", run.sizes, run.device)
    assert vae.load(run.made)
    vae.model.requires_grad_(False)
    clean = torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(2))
    guessed = (clean + 0.5).requires_grad_()
    weights = torch.ones(2, 1, 16, 8)
    other = images.look(eye(), vae, guessed, clean, weights)
    assert images.look(eye(), vae, clean, clean, weights) < 1e-5 < other
    other.backward()
    assert guessed.grad is not None and guessed.grad.abs().sum() > 0
    torch.testing.assert_close(vae.from_latents(clean).div(2).add(0.5).clamp(0, 1), vae.to_pictures(clean))
