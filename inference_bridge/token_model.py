# SPDX-License-Identifier: Apache-2.0
"""An optional interface of a model: its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Unpack, runtime_checkable

from .options import GenerateConfig, GenerateOptions
from .types import Message


@runtime_checkable
class TokenModel(Protocol):
    """A model with access to its tokenizer. Every method may block. Every method may be called from any thread."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text.
            special: Add the tokens that the model expects around a prompt, such as BOS, and read the names of
                special tokens in the text as those tokens.
        """
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens are shown by their names.

        Raises:
            ValueError: An id is not in the model's vocabulary.
        """
        ...

    def count_chat_tokens(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> int:
        """Return the number of tokens of the prompt that `chat` renders from these arguments. Raises as `chat`."""
        ...
