"""How long a training takes, over all its sessions."""

from __future__ import annotations

import time


class Clock:
    """Seconds spent on this training, this time and before."""

    def __init__(self, step: int, before: float) -> None:
        self.step, self.before, self.started = step, before, time.perf_counter()
        self.last_read = self.started

    def read(self) -> float:
        """Seconds of all sessions, now that the losses were read."""
        self.last_read = time.perf_counter()
        return self.before + self.last_read - self.started

    def since_read(self) -> float:
        """Seconds since the losses were read."""
        return time.perf_counter() - self.last_read

    def per_step(self, step: int) -> float:
        """Seconds a step in this session."""
        return (time.perf_counter() - self.started) / max(1, step - self.step)
