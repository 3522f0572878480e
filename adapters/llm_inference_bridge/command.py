# SPDX-License-Identifier: Apache-2.0
"""Whether the plugin runs for a command or for a program."""

from __future__ import annotations

import click


def is_command() -> bool:
    """Return whether this thread runs a command of llm. A command sends one prompt after the other.

    A program may send several prompts at once.
    """
    return click.get_current_context(silent=True) is not None
