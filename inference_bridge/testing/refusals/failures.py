# SPDX-License-Identifier: Apache-2.0
"""Errors raised during iteration, with the partial result (behaviour 4)."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from ...errors import GenerationTimeoutError
from ...model import TextModel
from ...types import GenerateResult, Token
from ..base import Contract
from ..callers import Sync


class Failures(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (4,)

    def test_time_that_is_over_is_an_error(self, model: TextModel, caller: Sync) -> None:
        # The call itself does not raise the error.
        stream = caller.generate(model, self.endless, max_tokens=-1, timeout=1e-6)
        with pytest.raises(GenerationTimeoutError) as raised:
            list(stream)
        assert isinstance(raised.value, TimeoutError)
        assert stream.finish_reason is None
        assert list(stream) == [], "an error must be raised only once"
        self.is_free(model)

    def test_an_error_keeps_what_was_generated(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.endless, max_tokens=-1, timeout=1e-6)
        read, error = _drained(stream)
        assert isinstance(error, GenerationTimeoutError)
        partial = error.partial
        assert isinstance(partial, GenerateResult), "error.partial must have what was generated"
        assert list(partial.tokens[: len(read)]) == read
        assert partial.finish_reason is None
        assert partial.metrics == stream.metrics

    def test_partial_has_every_token_until_then(self, model: TextModel, caller: Sync) -> None:
        """The time runs out while the reader pauses after two tokens. On a slow machine it may run out before."""
        stream = caller.generate(model, self.endless, max_tokens=-1, timeout=0.25)
        read, error = _drained(stream, pause=0.3)
        assert isinstance(error, GenerationTimeoutError)
        assert error.partial is not None
        assert list(error.partial.tokens[: len(read)]) == read
        assert len(error.partial.tokens) <= len(read) + 1  # a token that arrived after the time limit may be included

    def test_a_conversation_has_its_time_too(self, model: TextModel, caller: Sync) -> None:
        if self.chats(model):
            with pytest.raises(GenerationTimeoutError) as raised:
                caller.chat(model, self.asked(), timeout=1e-6).result()
            assert raised.value.partial is not None

    def test_time_enough_changes_nothing(self, model: TextModel, caller: Sync) -> None:
        result = caller.generate(model, self.prompt, **self.greedily(model, timeout=1000.0)).result()
        assert result.finish_reason == "length"


def _drained(stream: Any, pause: float = 0.0) -> tuple[list[Token], Exception | None]:
    """Read a stream to its end, with a pause after the second token. Return the tokens, and the error raised."""
    read: list[Token] = []
    try:
        for token in stream:
            read.append(token)
            if len(read) == 2:
                time.sleep(pause)
    except Exception as error:
        return read, error
    return read, None
