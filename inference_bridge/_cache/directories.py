# SPDX-License-Identifier: Apache-2.0
"""The directories of this user's files: configuration and caches."""

from __future__ import annotations

import os
from typing import Literal

_NO_HOME = os.path.join(os.sep, "nonexistent")
"""The home directory of a user who has none, as Debian names it. It does not exist, so nothing is read or written."""


def user_directory(kind: Literal["config", "cache"]) -> str:
    """Return the absolute path of a directory for this user's files. It need not exist.

    In a container a process may run as a user without HOME and without a passwd entry. Then a directory that does not
    exist is returned. A temporary directory would not be safe, because other users can put files there first.

    Args:
        kind: Whether the directory is for configuration files or for caches.
    """
    import platformdirs

    find = platformdirs.user_config_dir if kind == "config" else platformdirs.user_cache_dir
    try:
        return find("inference-bridge", appauthor=False)
    except RuntimeError:
        return os.path.join(_NO_HOME, f".{kind}", "inference-bridge")
