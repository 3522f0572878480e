# SPDX-License-Identifier: Apache-2.0
"""Models that stay loaded between programs, in one process for each user that runs this package's server.

A backend's `load_model` calls `load` if `keep_alive` is set. The process is found by its socket, or started.
"""

from __future__ import annotations

from importlib.util import find_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...model import TextModel
    from ...options import LoadConfig


def load(backend: str, source: str, config: LoadConfig, *, files: Sequence[str] = ()) -> TextModel:
    """Return a model of the process that keeps models loaded. It is loaded there if it is not yet.

    Args:
        backend: The name of the backend that loads it there.
        source: What that backend loads.
        config: The load options, with `keep_alive`: seconds for which the model stays loaded after its last use.
        files: Further files that the model depends on, such as a program. If one changes, the model is loaded again.

    Returns:
        The model. Closing it leaves it loaded.

    Raises:
        UnsupportedError: Models can't be kept loaded on this system, or a package is missing.
        ModelNotFoundError, ModelLoadError, UnsupportedError: As the backend raises them.
        ServerError: The process can't be started.
    """
    from .model import load as load_kept

    return load_kept(backend, source, config, files)


def why_not() -> str:
    """Return why models can't be kept loaded here: a package is missing, or the system has no UNIX sockets; or ""."""
    import os
    import socket

    if not hasattr(socket, "AF_UNIX") or os.name != "posix":
        return "this system has no UNIX sockets"
    missing = [name for name in ("httpx2", "starlette", "uvicorn") if find_spec(name) is None]
    if not missing:
        return ""
    from ...availability import install_command

    return f"it needs the package {missing[0]}. Run: {install_command('http,serve')}"
