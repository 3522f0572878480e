# SPDX-License-Identifier: Apache-2.0
"""Embedding models for `llm embed`, `embed-multi` and `similar`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import click
from llm.models import EmbeddingModel as LLMEmbeddingModel

from .catalog import Offer
from .command import is_command
from .errors import ShownError, shown
from .models import Keys

if TYPE_CHECKING:
    from inference_bridge import ContextLengthExceededError


class InferenceBridgeEmbedding(Keys, LLMEmbeddingModel):
    """An embedding model for llm. Its vectors are those of `TextModel.embed`. The first call loads the model."""

    batch_size = 64

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.model_id = offer.model_id
        self._set_key_names()

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Embed a batch of texts.

        In `embed-multi`, a text that is too long is shortened, with a warning on stderr. With an error, llm would store
        no text of the batch.

        Args:
            items: The texts.
            key: The API key of the model's server.

        Yields:
            A vector for each text, in order.

        Raises:
            ShownError: Loading or embedding failed, or the model is not an embedding model.
        """
        from inference_bridge import ContextLengthExceededError, EmbeddingModel
        from inference_bridge.cli.progress import waiting

        from . import loaded

        with shown():
            with waiting(self.offer.shown_name, is_command()) as progress:
                model = loaded.load(self.offer, key or self.get_key(), self)
                if not isinstance(model, EmbeddingModel):
                    raise ShownError(f"{self.model_id} generates text and is not an embedding model")
                texts = cast("list[str]", list(items))
                progress.loaded(f"embeds {len(texts)} text{'' if len(texts) == 1 else 's'}")
                vectors: Sequence[Sequence[float]] | None = None
                try:
                    vectors = model.embed(texts)
                except ContextLengthExceededError:
                    if not _is_embed_multi():
                        raise
            if vectors is None:
                vectors = [_embed_shortened(model, text) for text in texts]
            yield from (list(vector) for vector in vectors)


def _is_embed_multi() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "embed-multi"


def _embed_shortened(model: Any, text: str) -> list[float]:
    """Embed a text. If it is too long, embed its beginning, with a warning on stderr."""
    from inference_bridge import ContextLengthExceededError

    kept, vectors = text, None
    while vectors is None:
        try:
            vectors = model.embed([kept])
        except ContextLengthExceededError as error:
            kept = _beginning(model, kept, error)
    if kept is not text:
        start = " ".join(text[:60].split())
        click.echo(
            f"Warning: the text that begins with {start!r} is too long for the model: "
            f"its first {len(kept)} of {len(text)} characters were embedded",
            err=True,
        )
    return list(vectors[0])


def _beginning(model: Any, text: str, error: ContextLengthExceededError) -> str:
    """Return the longest beginning of a text that has as many tokens as fit, according to the numbers in `error`.

    Raises:
        ContextLengthExceededError: `error`: not even one character fits.
    """
    least = max(error.prompt_tokens - error.context_length, 1)
    wanted = model.count_tokens(text) - least
    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if model.count_tokens(text[:middle]) <= wanted:
            low = middle
        else:
            high = middle - 1
    if not low:
        raise error
    return text[:low]
