"""Character Engine: from one sentence to a tested, reusable SDXL character adapter.

    import charengine as ce

    studio = ce.Studio("embedded", train={"steps": 100})
    who = studio.character("an orc woman with red hair and a blue coat", name="Grisha")
    who.sweep().pick

Importing the package imports nothing else; `Studio`, `EngineError`, which everything here raises, and `__version__` are looked up
when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charengine.errors import EngineError
    from charengine.studio import Studio
    from charengine.version import __version__

__all__ = ["EngineError", "Studio", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Studio":
        from charengine.studio import Studio

        return Studio
    if name == "EngineError":
        from charengine.errors import EngineError

        return EngineError
    if name == "__version__":
        from charengine.version import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
