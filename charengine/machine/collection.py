"""What Python's garbage collector looks at, and how often: not, again and again, at what never goes.

Python looks through the youngest objects whenever 700 more were made than went, and now and then through all there are. Where half a
million stay, and thousands come with each answer or each import, that was most of the work: two thirds of an answer of MLflow's about a
hundred runs (13,000 rows), and a fifth of the ten seconds in which torch, diffusers and transformers are imported.
"""

from __future__ import annotations

import atexit
import gc

USUAL = gc.get_threshold()
YOUNG = 10_000  # objects made and kept before the youngest are looked through; Python's own 700 is of the year 2000


def collect_rarely() -> None:
    """While a process mostly imports, or answers."""
    gc.set_threshold(YOUNG, *USUAL[1:])


def end_without_looking() -> None:
    """At its end a process looks through all there is once more, more than a second where torch and MLflow are imported; the system takes it all anyway."""
    atexit.register(gc.freeze)  # the first to be registered is the last to be called


def keep_for_good() -> None:
    """What is there stays as long as the process and is not looked at again; so nothing large may be there yet."""
    gc.collect()
    gc.freeze()


def before_serving() -> None:
    """All that a server is made of has been imported, and answers follow."""
    keep_for_good()
    collect_rarely()


def collect_as_usual() -> None:
    """While models are at work: what they leave in circles is memory of the GPU."""
    gc.set_threshold(*USUAL)
