# SPDX-License-Identifier: Apache-2.0
"""The directories of this user's files: configuration and caches."""

from __future__ import annotations

import os
from typing import Literal

_NO_HOME = os.path.join(os.sep, "nonexistent")
"""The home of a user that has none, as Debian names it: nothing is found there, and nothing is written."""


def user_directory(kind: Literal["config", "cache"]) -> str:
    """Return the absolute path of a directory for this user's files. It need not exist.

    In a container a process may run as a user without HOME and without a passwd entry. There is no place
    for its files then; a temporary directory is not one, because other users can put files there first.
    """
    import platformdirs

    find = platformdirs.user_config_dir if kind == "config" else platformdirs.user_cache_dir
    try:
        return find("inference-bridge", appauthor=False)
    except RuntimeError:
        return os.path.join(_NO_HOME, f".{kind}", "inference-bridge")
