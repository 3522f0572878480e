# SPDX-License-Identifier: Apache-2.0
"""Logging to stderr, switched on by INFERENCE_BRIDGE_LOG=debug, info, warning, error or critical.

Every module logs to "inference_bridge" or a child of that logger. The messages of engines go there too.
"""

from __future__ import annotations

import functools
import os

_LEVELS = ("debug", "info", "warning", "error", "critical")


@functools.cache  # once
def configure() -> None:
    """Configure logging as INFERENCE_BRIDGE_LOG says. An unknown level causes a warning."""
    import logging

    logger = logging.getLogger("inference_bridge")
    # Without a handler, Python prints warnings in a program that does not configure logging.
    logger.addHandler(logging.NullHandler())
    level = os.environ.get("INFERENCE_BRIDGE_LOG", "").strip().lower()
    if not level:
        return
    if level not in _LEVELS:
        import warnings

        warnings.warn(f"INFERENCE_BRIDGE_LOG={level!r} is not one of {', '.join(_LEVELS)}", stacklevel=2)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
