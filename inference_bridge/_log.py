# SPDX-License-Identifier: Apache-2.0
"""What the library logs, on stderr when asked: INFERENCE_BRIDGE_LOG=debug, info, warning or error.

Every module logs to "inference_bridge" or a child of it, engines' own messages included.
"""

from __future__ import annotations

import functools
import os

_LEVELS = ("debug", "info", "warning", "error", "critical")


@functools.cache  # once
def configure() -> None:
    """Do what INFERENCE_BRIDGE_LOG says. A level that is none is reported by a warning."""
    import logging

    logger = logging.getLogger("inference_bridge")
    logger.addHandler(logging.NullHandler())  # else Python prints warnings of a program that configures no logging
    level = os.environ.get("INFERENCE_BRIDGE_LOG", "").strip().lower()
    if not level:
        return
    if level not in _LEVELS:
        import warnings

        warnings.warn(f"INFERENCE_BRIDGE_LOG={level!r} is none of {', '.join(_LEVELS)}", stacklevel=2)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
