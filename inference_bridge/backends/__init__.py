# SPDX-License-Identifier: Apache-2.0
"""The built-in backends, as a plugin like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ..backend import Backend


@hookimpl
def register_backends(register: Callable[[Backend], None]) -> None:
    from .http.backend import HttpBackend
    from .llama_cpp.backend import LlamaCppBackend
    from .llama_server.backend import LlamaServerBackend
    from .llama_server.rocm import RocmBackend
    from .mlx.backend import MetalBackend, MlxBackend

    register(MetalBackend())
    register(RocmBackend())
    register(LlamaCppBackend())
    register(MlxBackend())
    register(LlamaServerBackend())
    register(HttpBackend())
