# SPDX-License-Identifier: Apache-2.0
"""Conversion between text and token ids, and the number of tokens of a rendered conversation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from ..model import TextModel
from ..options import GenerateConfig, GenerateOptions

if TYPE_CHECKING:
    from ..request import Request
    from ..types import Message
    from .model import Tokenizer
    from .scheduler import StepEngine


class TokenAccess(TextModel):
    """The part of an `EngineModel` that implements `TokenModel`."""

    _engine: StepEngine
    _tokenizer: Tokenizer

    @abstractmethod
    def _tokens(self, request: Request) -> tuple[list[int], Mapping[int, Any]]: ...

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of `text`; see `TokenModel.tokenize`."""
        self._check_text(text)
        return self._tokenizer.encode(text, special=special, check=self._check_open)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids; see `TokenModel.detokenize`."""
        self._check_open()
        for token in tokens:
            if isinstance(token, bool) or not isinstance(token, int):
                raise TypeError(f"a token id must be an int, not {type(token).__name__}")
            if not 0 <= token < self.info.vocab_size:
                raise ValueError(f"{token} is not a token id: this model's are 0 to {self.info.vocab_size - 1}")
        return b"".join(self._engine.piece(token, True) for token in tokens).decode("utf-8", "replace")

    def count_chat_tokens(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> int:
        """Return the number of tokens of a rendered conversation; see `TokenModel.count_chat_tokens`."""
        return len(self._tokens(self._verified(self._conversation(messages, config, options)))[0])
