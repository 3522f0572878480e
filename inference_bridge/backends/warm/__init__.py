# SPDX-License-Identifier: Apache-2.0
"""Models that stay loaded between programs: one process for each user, which this package's server runs in.

`load` is for a backend's own `load_model`, where `keep_alive` is set. The process is found by its socket, or started.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...model import TextModel
    from ...options import LoadConfig


def load(backend: str, source: str, config: LoadConfig, *, files: Sequence[str] = ()) -> TextModel:
    """Have the process that keeps models load one, if it has not, and return it.

    Args:
        backend: The name of the backend that loads it there.
        source: What that backend loads.
        config: The load options, with `keep_alive`: seconds for which it stays loaded after its last use.
        files: Further files that it depends on, such as a program: after a change of one, it is loaded anew.

    Returns:
        The model. Closing it leaves it loaded.

    Raises:
        UnsupportedError: The system, or what is installed, has no such process.
        ModelNotFoundError, ModelLoadError, UnsupportedError: As the backend raises them.
        ServerError: The process can't be started.
    """
    from .model import load as load_kept

    return load_kept(backend, source, config, files)
