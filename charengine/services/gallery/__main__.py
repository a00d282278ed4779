"""`python -m charengine.services.gallery --port 4300`: the gallery's server, as `charengine up` starts it."""

from __future__ import annotations

import argparse

from charengine.services.gallery.server import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
