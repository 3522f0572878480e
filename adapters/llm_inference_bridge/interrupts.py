# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in `llm chat`: the first one ends the answer, a second one ends the chat."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from inference_bridge.streams import TokenStream


class Interruption:
    """A record of the first Ctrl-C.

    Attributes:
        received: Whether the user has pressed Ctrl-C.
    """

    received = False


@contextmanager
def ending(stream: TokenStream) -> Iterator[Interruption]:
    """Return a context in which the first Ctrl-C of `llm chat` closes `stream`, also while llm prints.

    The second Ctrl-C raises KeyboardInterrupt. Outside of `llm chat`, the first one raises it too. So does every
    Ctrl-C in a thread other than the main thread, or in a program with a signal handler of its own.
    """
    found, before = Interruption(), signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not is_chat() or not in_main or before is not signal.default_int_handler:
        yield found
        return

    def first(*_: Any) -> None:
        found.received = True
        signal.signal(signal.SIGINT, before)
        stream.close()

    signal.signal(signal.SIGINT, first)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


def is_chat() -> bool:
    """Return whether this thread runs the command `llm chat`, which continues after an interrupted answer."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "chat"
