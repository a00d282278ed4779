"""`load(profile)`: the one place that knows which family is in use."""

from __future__ import annotations

from charengine.config import Profile
from charengine.models.protocols import Models


def load(profile: Profile) -> Models:
    """The models a profile names. Finds files and checks their headers; loads no weights yet.

    Raises:
        MissingDependency: a model file or package is not there; says how to get it.
        BadInput: a file is not what the profile says it is.
    """
    if profile.models.family == "embedded":
        from charengine.models import embedded

        return embedded.load(profile)
    from charengine.models import full

    return full.load(profile)


def known(profile: Profile) -> Models | None:
    """The same models by what keys are made from, without torch; None of the full-size family, whose files take libraries to tell.

    Raises:
        MissingDependency: a model file is not there.
        BadInput: a file or a setting is not what the family takes.
    """
    if profile.models.family != "embedded":
        return None
    from charengine.models.embedded_known import known_models

    return known_models(profile)
