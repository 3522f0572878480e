# SPDX-License-Identifier: Apache-2.0
"""An optional interface of a model: its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Unpack, runtime_checkable

from .options import GenerateConfig, GenerateOptions
from .types import Message


@runtime_checkable
class TokenModel(Protocol):
    """Gives access to its tokenizer. Every method may block, and be called from any thread."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text.
            special: Add the tokens that the model expects around a prompt, such as BOS, and read the names of
                special tokens in the text as those tokens.
        """
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names.

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
        """Return how many tokens the prompt has that `chat` makes of these arguments. Raises as `chat`."""
        ...
