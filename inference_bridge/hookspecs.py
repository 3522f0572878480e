# SPDX-License-Identifier: Apache-2.0
"""The hooks with which a package adds backends and models.

A plugin is a module that implements any of these hooks and is named in its package's metadata:

    [project.entry-points.inference_bridge]
    echo = "my_package.echo"

`my_package/echo.py` should import its engine only when a model is loaded:

    from inference_bridge import Backend, hookimpl

    class EchoBackend(Backend):
        name = "echo"
        ...

    @hookimpl
    def register_backends(register):
        register(EchoBackend())

Plugins are loaded at the first use of the registry, after the built-in backends. A plugin that fails
is reported and skipped. If the environment variable INFERENCE_BRIDGE_LOAD_PLUGINS is set to a
comma-separated list of distribution names, only the plugins of these distributions are loaded. If it is set to
an empty string, no plugin is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .backend import Backend

hookspec = pluggy.HookspecMarker("inference_bridge")
hookimpl = pluggy.HookimplMarker("inference_bridge")


@hookspec
def register_backends(register: Callable[[Backend], None]) -> None:
    """Register the backends of this plugin.

    Args:
        register: Call it with each Backend instance.
    """


@hookspec
def model_directories() -> Iterable[str | os.PathLike[str]]:  # type: ignore[empty-body]
    """Return the directories in which this plugin keeps models, for discovery to search."""
