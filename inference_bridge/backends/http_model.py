# SPDX-License-Identifier: Apache-2.0
"""A model that a server runs, as a TextModel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import GenerationError, ServerError
from ..model import TextModel
from ..request import Request
from ..types import Token
from .http_connection import Connection
from .http_facts import ServerFacts


class HttpModel(TextModel):
    """A model on a llama-server or an OpenAI-compatible server.

    backend    the backend's name, for messages
    connect    gives the connection; called in the calling thread before the first request of every
               operation. It may block (start a process, say) where `blocks`: then coroutines call it in a thread
    facts      what the server is; None: it is asked when that is first needed
    model      the name to send; None: the server's only one
    extra      fields added to the body of every generation request, as they are
    slots      how many operations may run at once; 0: as many as the server has slots
    explain    turns a failure to reach the server, or one in the middle of its answer, into what the caller
               should see; what was generated until then is put on `partial` afterwards

    The model closes the last connection it was given when it is closed itself.
    """

    def __init__(
        self,
        backend: str,
        connect: Callable[[], Connection],
        *,
        facts: ServerFacts | None = None,
        model: str | None = None,
        extra: Mapping[str, Any] | None = None,
        slots: int = 0,
        explain: Callable[[ServerError], GenerationError] = lambda error: error,
        blocks: bool = False,
    ) -> None:
        raise NotImplementedError

    @property
    def facts(self) -> ServerFacts:
        """What the server is; asked once, when first needed."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def count_tokens(self, text: str) -> int:
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    def _run(self, request: Request) -> Iterator[Token]:
        raise NotImplementedError

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        raise NotImplementedError
        yield
