# SPDX-License-Identifier: Apache-2.0
"""The commands `inference-bridge …`, which are `llm bridge …` where llm is installed.

They are made with click, because llm's are: the same objects serve both. The core does without it, so
this package alone asks for the extra `cli` (which the extra `llm` brings along).
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
