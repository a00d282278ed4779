"""The commands of `charengine`, by what they are about; each module registers its own.

The only part of the package that starts flows: they are imported inside functions, as the top of the dependency order.
"""

import sys

try:
    from charengine.cli.main import main
except KeyboardInterrupt:  # before there is anybody who could say more
    print("error: stopped before anything was begun; the same command begins again", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["main"]
