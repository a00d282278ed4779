"""What is known of a sweep before anything is drawn or trained: why it is refused, and which words of its prompts say nothing."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from charengine.config import Profile
from charengine.errors import BadInput, EngineError

if TYPE_CHECKING:
    from charengine.run.workspace import Workspace

log = logging.getLogger(__name__)


def sweep_problems(profile: Profile) -> list[str]:
    """One line each."""
    from charengine.likeness.prompts import sweep_prompts
    from charengine.stages.sweep.budget import check_budget

    try:
        check_budget(profile.sweep, len(sweep_prompts(profile.sweep)))
    except BadInput as error:
        return [f"sweep.pictures: {str(error).removeprefix('sweep.pictures ')}", *_guidance_problems(profile)]
    return _guidance_problems(profile)


def foretell(workspace: Workspace) -> None:
    """Log what the sweep will say of its prompts, hours before it begins."""
    prompts = workspace.profile.sweep.prompts
    if prompts:
        for warning in workspace.models.diffusion.usage.untaught("sweep.prompts", *prompts):
            log.warning(warning)


def _guidance_problems(profile: Profile) -> list[str]:
    """An interval of noise in which no step of a picture lies; the base model's own schedule says where they lie."""
    asked = profile.sweep
    above, below = asked.guided_above, asked.guided_below or math.inf
    if asked.guidance <= 1 or (above, below) == (0, math.inf):
        return []
    from charengine.models import load

    try:
        noise = load(profile).diffusion.noise_of_steps(asked.steps, asked.solver)
    except EngineError:
        return []  # told where models are looked for
    if any(above < one <= below for one in noise):
        return []
    nearest = min(noise, key=lambda one: max(above - one, one - below))
    return [
        f"sweep.guided_above={above:g} and sweep.guided_below={asked.guided_below:g} leave none of a picture's {len(noise)} steps guided: their "
        f"noise goes from {noise[0]:.3g} to {noise[-1]:.3g}, and {nearest:.3g} is the nearest; let one lie between them, or set "
        "sweep.guidance to 1"
    ]
