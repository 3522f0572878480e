# SPDX-License-Identifier: Apache-2.0
"""An HTTP server for any TextModel, with OpenAI's and Anthropic's APIs.

    inference-bridge serve llama_cpp:SmolLM2-135M-Instruct.Q4_1

`app` returns the same server as an ASGI application, to mount in another one. It needs the extra `serve`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .application import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .application import app

    return app
