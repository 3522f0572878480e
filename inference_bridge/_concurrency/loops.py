# SPDX-License-Identifier: Apache-2.0
"""Checks which event loop runs in this thread: the async methods need asyncio's."""

from __future__ import annotations

import sys

from ..errors import UnsupportedError


def check_asyncio(backend: str) -> None:
    """Raise UnsupportedError if no asyncio event loop runs in this thread, as under trio."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        return
    here = "trio's event loop" if "trio" in sys.modules else "an event loop that is not asyncio's"
    why = "run its sync methods in a thread instead, for example with trio.to_thread.run_sync"
    raise UnsupportedError(here, backend, why)
