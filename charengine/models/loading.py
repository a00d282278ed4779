"""Loading on first use, freeing on request, and where to compute."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeVar

import torch

from charengine.errors import BadInput, ran_out_of_memory
from charengine.machine.collection import collect_as_usual, keep_for_good

log = logging.getLogger(__name__)

T = TypeVar("T")


class Loaded:
    """Named objects that are loaded on first use and really freed afterwards."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def get(self, name: str, load: Callable[[], T]) -> T:
        """The object called `name`, made by `load` if it is not held yet."""
        if name not in self._held:
            if _accelerator():
                set_imports_aside()
            collect_as_usual()
            self._held[name] = load()
        held: T = self._held[name]
        return held

    def free(self, *names: str) -> None:
        """Drop the named objects, or all of them, and give their memory back to the device.

        Without an accelerator garbage is collected only if it has to be: most models die with their last reference.
        """
        self._let_go(names or tuple(self._held))

    def _let_go(self, names: Sequence[str], kept: Collection[str] = ()) -> None:
        """Drop the named objects; those in `kept` live on elsewhere, so that no collection would find them."""
        dropped = {name: _weights_of(self._held.pop(name, None)) for name in names}
        left = any(ref() is not None for name in dropped if name not in kept for ref in dropped[name])
        release_memory(collect=_accelerator() or left)

    def forget(self, *names: str) -> None:
        """`free`, and keep nothing of them anywhere."""
        self.free(*names)


MADE_OF = (
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)


@lru_cache(maxsize=1)
def set_imports_aside() -> None:
    """Import what models are made of and take all objects there are out of garbage collection, once and before the first model.

    Looking through the million objects of imported libraries takes a second, and memory is released thirty times in a run.
    """
    for name in MADE_OF:
        import_module(name)
    keep_for_good()


def release_memory(collect: bool = True) -> None:
    """Collect garbage (some modules sit in reference cycles) and return cached blocks to the accelerator."""
    if collect:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if unlock := getattr(torch._C, "_host_emptyCache", None):
            unlock()  # page-locked host memory that nobody uses goes back to the system
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _accelerator() -> bool:
    """Whether there is memory so scarce that what else is garbage must not stay in it."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _weights_of(held: Any) -> list[weakref.ref[Any]]:
    """Every module, parameter and buffer in what is held: one model, several, or none."""
    modules = [one for one in (held if isinstance(held, tuple | list) else [held]) if isinstance(one, torch.nn.Module)]
    return [weakref.ref(part) for one in modules for part in (*one.modules(), *one.parameters(), *one.buffers())]


def resolve_device(name: str = "auto") -> torch.device:
    """The device a profile asks for; "auto" = CUDA, else MPS, else CPU.

    Raises:
        BadInput: the named device is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present.get(name, False):
        there = ", ".join(kind for kind, yes in present.items() if yes)
        raise BadInput(f"models.device is {name!r}, which this machine does not have; it has {there}, or use auto")
    return torch.device(name)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def in_parts(
    count: int,
    at_once: Callable[[], int],
    fewer: Callable[[int], None],
    work: Callable[[slice], T],
    spare: Callable[[], bool] = lambda: False,
) -> list[T]:
    """`work` on `count` things in parts; where memory runs out, on half as many from then on.

    Args:
        at_once: the most that may be tried.
        fewer: told what is to be tried from then on.
        work: on some of them; what it gives does not depend on how many.
        spare: gives back memory that can be done without, before fewer are tried; whether there was any.
    """
    made: list[T] = []
    done = 0
    while done < count:
        few = min(count - done, at_once())
        try:
            made.append(work(slice(done, done + few)))
            done += few
            continue
        except Exception as error:
            full = ran_out_of_memory(error)
            again = full and spare()
            if not again and (few == 1 or not full):
                raise
            if not again:
                log.warning("out of memory with %d pictures at once: from here on %d", few, few // 2)
                fewer(few // 2)
                if min(count - done, at_once()) >= few:
                    raise  # the same would be tried for ever
        release_memory()
    return made


def noise_from_seeds(seeds: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Gaussian noise (n, *shape), float32 on the CPU: row i depends on `seeds[i]` alone, on every machine."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32) for seed in seeds]
    )
