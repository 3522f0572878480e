# SPDX-License-Identifier: Apache-2.0
"""What the garbage collector need not do for a command of llm.

Thousands of new objects, or an engine's modules, set it off again and again, over all that llm has imported. That would
take longer than everything else here, and find nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(command: bool) -> Iterator[None]:
    """Within this nothing is collected; in a `command` what is there at the end of it never is."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if command:
            gc.freeze()
        gc.enable()


def is_command() -> bool:
    """Whether a command of llm calls, in this thread: it asks one question after the other. A program may ask several
    at once."""
    import click

    return click.get_current_context(silent=True) is not None
