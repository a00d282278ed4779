"""What a training cannot begin with, found before any stage runs: the adapter to start from, the folder of class images, ranks."""

from __future__ import annotations

from pathlib import Path

from charengine.config import Profile, TrainSettings
from charengine.errors import BadInput, ConfigError
from charengine.models.skeleton import ranks_that_do_not_fit


def starting_problems(profile: Profile) -> list[str]:
    """What is wrong, one line each; each picture of the folder is opened."""
    return [*_adapter_problems(profile), *_regularisation_problems(profile.train), *ranks_that_do_not_fit(profile)]


def check_starting_files(profile: Profile) -> None:
    """Raises:
    ConfigError: everything that `starting_problems` finds.
    """
    if problems := starting_problems(profile):
        raise ConfigError(problems)


def _adapter_problems(profile: Profile) -> list[str]:
    if not profile.train.continue_from:
        return []
    from charengine.adapter.header import read_header

    path = Path(profile.train.continue_from)
    try:
        read_header(path)
        from charengine.adapter.starting import check_start
        from charengine.models.skeleton import unet_skeleton

        check_start(path, profile.train, unet_skeleton(profile.models))
    except BadInput as error:
        return [f"train.continue_from={str(path)[:200]!r}: {str(error).removeprefix('continue_from: ')}"]
    return []


def _regularisation_problems(settings: TrainSettings) -> list[str]:
    if not settings.regularisation:
        return []
    from charengine.dataset.reading import class_picture_problems

    return class_picture_problems(Path(settings.regularisation))
