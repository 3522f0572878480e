# SPDX-License-Identifier: Apache-2.0
"""What some models have beyond TextModel, each as a protocol, so that `isinstance` tells whether a model has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Unpack, runtime_checkable

from .options import GenerateConfig, GenerateOptions
from .types import Message, Ranked, Token

if TYPE_CHECKING:
    from .stats import GenerateStats


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


@runtime_checkable
class BatchModel(Protocol):
    """A model that streams many prompts at once. Every TextModel does."""

    def stream_batch(
        self, prompts: Iterable[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[tuple[int, Token]]:
        """Yield pairs (index of the prompt, token). Arguments and errors are those of `TextModel.stream_batch`."""
        ...


@runtime_checkable
class StatsModel(Protocol):
    """A model that keeps statistics of its operations: capability "stats"."""

    def stats(self) -> GenerateStats:
        """Return the statistics of the operations since the model was loaded."""
        ...


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model that turns texts into vectors: capability "embeddings"."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of texts.

        Args:
            texts: The texts, used as they are.

        Returns:
            One vector for each text, in their order, of length `info.hidden_size`.

        Raises:
            ContextLengthExceededError: A text is too long. Its `what` names the text, such as "texts[3]".
            GenerationError: The engine or the server failed.
        """
        ...

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        """`embed`, asynchronously. Argument, result and errors are the same."""
        ...


@runtime_checkable
class RankModel(Protocol):
    """A model that ranks documents by how well they fit a query: capability "rerank"."""

    def rerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """Order documents by how well they fit a query.

        Args:
            query: What is searched for.
            documents: The texts to order.

        Returns:
            The index and the score of each document, the best first.

        Raises:
            ContextLengthExceededError: A document is too long with the query.
            GenerationError: The engine or the server failed.
        """
        ...

    async def arerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """`rerank`, asynchronously. Arguments, result and errors are the same."""
        ...
