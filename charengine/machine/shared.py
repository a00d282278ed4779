"""The store of a home: its own folder, or one that several machines share, named by CHARENGINE_STORE.

Machines that share a store share no folder. What a stage made is taken from the store wherever it was made, a training goes on
from the state that is kept there, and the locks are leases in it (charengine/machine/leases.py).
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.leases import InStore, wait_until_free

if TYPE_CHECKING:
    from charengine.store import Store

STORE = "CHARENGINE_STORE"
PRUNING = "prune.lock"  # the lease of who removes files from a store that machines share
REMOVING = "charengine prune removes files from the store there"  # what is waited for meanwhile


def shared_url() -> str:
    """The URL of the store that machines share; empty when this machine's home has one of its own.

    Raises:
        BadInput: the variable names a folder.
    """
    url = os.environ.get(STORE, "")
    if url and "://" not in url:
        raise BadInput(
            f"{STORE}={url!r} is no URL: s3://BUCKET/PREFIX is allowed; a folder that all machines see is shared with CHARENGINE_HOME"
        )
    return url


def open_store(home: Home) -> Store:
    """The store that stages write to and read from; the home is made with it, as `Home.create` does.

    Raises:
        BadInput: it cannot be written.
        MissingDependency: a package for its kind of URL is not installed.
    """
    from charengine.store import Store

    return shared_store() or Store(home.create().store)


def shared_store() -> Store | None:
    """The store that machines share; None without one."""
    url = shared_url()
    return _opened(url) if url else None


def check_locks(store: Store) -> None:
    """Whether locks hold in a store that machines share: its server must refuse to write a file that is there.

    Raises:
        BadInput: it does not.
    """
    place = f"{store.root}/try-{uuid.uuid4().hex}"
    try:
        with suppress(FileExistsError):  # the answer was lost, and what was written is found
            store.fs.create(place, b"1")
        store.fs.create(place, b"2")
    except FileExistsError:
        return
    finally:
        store.drop_files([place])
    raise BadInput(
        f"the server of {store.url} writes over a file that is there (If-None-Match: * has no effect), and the machines' locks "
        "rest on that it refuses: take another S3 server (docs/howto/many-machines.md names some)"
    )


@cache
def _opened(url: str) -> Store:
    from charengine.store import Store

    store = Store(url)
    removal = InStore(store, PRUNING)
    store.after_prune = lambda: wait_until_free(removal, REMOVING)
    return store
