# SPDX-License-Identifier: Apache-2.0
"""Errors of this library, shown as llm shows errors: one line, exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import llm

from inference_bridge import BridgeError


class ShownError(llm.ModelError, click.ClickException):
    """An error that llm shows as one line, with exit code 1.

    It is a ClickException as well as llm's ModelError, because `llm chat` does not catch a ModelError.
    """


@contextmanager
def shown() -> Iterator[None]:
    """Return a context that raises a BridgeError, TypeError or ValueError as a ShownError."""
    try:
        yield
    except (BridgeError, TypeError, ValueError) as error:
        raise ShownError(str(error)) from error
