# SPDX-License-Identifier: Apache-2.0
"""The commands `inference-bridge …`, which are also `llm bridge …` if llm is installed.

They are written with click because llm's commands are, so both programs share them. Only this package needs click,
which the extras `cli` and `llm` install.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        from ..availability import install_command

        sys.exit(f"The commands need the package click. Run: {install_command('cli')}")
    from .commands import bridge

    bridge(prog_name="inference-bridge")
