# SPDX-License-Identifier: Apache-2.0
"""The server with a model that answers at once, to measure the server's own cost. Run it with uvicorn."""

from __future__ import annotations

from collections.abc import Iterator

from inference_bridge import ModelInfo, Request, TextModel, Token
from inference_bridge.serve import app


class Instant(TextModel):
    """Answers with as many tokens as it is asked for."""

    model_type = "instant"
    info = ModelInfo(architecture="instant")
    capabilities = frozenset({"chat"})
    options = frozenset({"temperature"})

    def close(self) -> None: ...

    def _run(self, request: Request) -> Iterator[Token]:
        for _ in range(request.config.max_tokens or 0):
            yield Token(" word")


application = app({"model": Instant()})
