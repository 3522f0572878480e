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
    from .http import HttpBackend
    from .llama_cpp import LlamaCppBackend
    from .llama_server import LlamaServerBackend
    from .metal import MetalBackend, MlxBackend
    from .rocm import RocmBackend

    register(MetalBackend())
    register(RocmBackend())
    register(LlamaCppBackend())
    register(MlxBackend())
    register(LlamaServerBackend())
    register(HttpBackend())
