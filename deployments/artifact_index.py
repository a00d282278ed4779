"""An index that a table of Prefect's lacks: what a run shows of how far it is looks at its own row, not at all that were ever shown.

Prefect 3.8 changes an artifact's newest version by `latest_id`, for which it has no index. A character does so sixteen times, and
leaves five rows: of a thousand each change took 7 ms of the server's processor (`benchmarks/load.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI
from prefect.server.database import provide_database_interface

BY_LATEST = "CREATE INDEX IF NOT EXISTS charengine_artifact_collection_latest_id ON artifact_collection (latest_id)"


def index_artifacts(app: FastAPI) -> FastAPI:
    """Prefect's application, which makes the index at its start, once it has made its tables."""
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with own(application) as state:
            async with provide_database_interface().session_context(begin_transaction=True) as session:
                await session.execute(sa.text(BY_LATEST))
            yield state

    app.router.lifespan_context = lifespan
    return app
