"""How long a training takes, over all its sessions."""

from __future__ import annotations

import time


class Clock:
    """Seconds spent on this training, this time and before."""

    def __init__(self, step: int, before: float) -> None:
        self.step, self.before, self.started = step, before, time.perf_counter()
        self.last_read = self.started
        self.begun, self.stepping = 0.0, 0.0

    def step_begins(self) -> None:
        """The first step since the losses were read is the one that counts: a GPU works through all of them by then."""
        self.begun = self.begun or time.perf_counter()

    def read(self) -> float:
        """Seconds of all sessions, now that the losses were read."""
        self.last_read = time.perf_counter()
        self.stepping += self.last_read - self.begun if self.begun else 0.0
        self.begun = 0.0
        return self.before + self.last_read - self.started

    def since_read(self) -> float:
        """Seconds since the losses were read."""
        return time.perf_counter() - self.last_read

    def per_step(self, step: int) -> float:
        """Seconds a step in this session."""
        return (time.perf_counter() - self.started) / max(1, step - self.step)

    def alone(self, step: int) -> float:
        """Seconds of a step in this session without validations, checkpoints and pictures between steps."""
        return self.stepping / max(1, step - self.step)
