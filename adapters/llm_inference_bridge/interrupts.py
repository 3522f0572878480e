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
    """Whether the user has pressed Ctrl-C, in `came`."""

    came = False


@contextmanager
def ending(stream: TokenStream) -> Iterator[Interruption]:
    """Close `stream` at the first Ctrl-C in `llm chat`, also while llm prints.

    A second Ctrl-C is a KeyboardInterrupt, as every one is outside of `llm chat`.
    """
    found, before = Interruption(), signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not is_chat() or not in_main or before is not signal.default_int_handler:
        yield found
        return

    def first(*_: Any) -> None:
        found.came = True
        signal.signal(signal.SIGINT, before)
        stream.close()

    signal.signal(signal.SIGINT, first)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


def is_chat() -> bool:
    """Whether the command `llm chat` asks, which goes on when an answer is interrupted."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "chat"
