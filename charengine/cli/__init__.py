"""The commands of `charengine`, by what they are about; each module registers its own.

The only part of the package that starts flows: they are imported inside functions, as the top of the dependency order.
"""

from charengine.cli.main import main

__all__ = ["main"]
