# SPDX-License-Identifier: Apache-2.0
"""GGUF models that rank documents by a query (rank pooling), on llama.cpp in this process.

A query and a document are evaluated as one text, of the same form as in llama-server (`format_prompt_rerank` in
tools/server/server-common.cpp of llama.cpp's repository), so the scores are the same. They are logits: higher is
better, and only those of one query compare.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cached_property, partial

from ...._calls.arguments import strings
from ...._concurrency.background import off_loop
from ...._concurrency.loops import check_asyncio
from ....errors import ContextLengthExceededError
from ....types import Ranked, ranked
from ..library import lib
from .base import LlamaPooledModel

_PLACES = re.compile(r"(\{query\}|\{document\})")


class LlamaRankModel(LlamaPooledModel):
    """A RankModel. It generates nothing: `generate` and `chat` raise UnsupportedError."""

    capabilities = frozenset({"rerank", "stats"})
    _instead = "this model ranks documents: use rerank()"

    def rerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """Return the index and the score of each document, the best first.

        Args:
            query: The text that the documents are compared with.
            documents: The texts to rank.

        Raises:
            ContextLengthExceededError: A document, with the query, is longer than the context. The error names it, and
                nothing was evaluated.
        """
        begun = time.monotonic()
        return ranked(scores[0] for scores in self._evaluate(begun, self._pairs(query, documents)))

    async def arerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """`rerank`, asynchronously."""
        check_asyncio(self._name)
        self._check_open()
        begun = time.monotonic()
        pairs = await off_loop(partial(self._pairs, query, strings(documents, "documents")))
        return ranked(scores[0] for scores in await self._aevaluate(begun, pairs))

    def _pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        self._check_text(query)
        pairs = [self._pair(query, document) for document in strings(documents, "documents")]
        for index, tokens in enumerate(pairs):
            if len(tokens) > self.info.context_length:
                what = f"documents[{index}] with the query"
                raise ContextLengthExceededError(len(tokens), self.info.context_length, what=what)
        return pairs

    def _pair(self, query: str, document: str) -> list[int]:
        """Return the token ids of a query together with a document."""
        encode = partial(self._native.tokenizer.encode, add_special=False, check=self._check_open)
        if self._template is not None:
            mark = self._native.shield.mark_for(query, document)
            texts = {"{query}": query, "{document}": document}
            if mark:
                texts = {place: self._native.shield.plain(text, mark) for place, text in texts.items()}
            text = "".join(texts.get(part, part) for part in _PLACES.split(self._template))
            return encode(text, parse_special=True, mark=mark)
        begins, between, ends = self._around
        first, second = (encode(text, parse_special=False) for text in (query, document))
        return [*begins, *first, *between, *second, *ends]

    @cached_property
    def _template(self) -> str | None:
        """The model's template for a query with a document. None: the model has none."""
        with self._native.gate:
            found = lib.llama_model_chat_template(self._native.pointer, b"rerank")
        return None if found is None else found.decode("utf-8", "replace")

    @cached_property
    def _around(self) -> tuple[list[int], list[int], list[int]]:
        """The tokens to write around a pair where the model has no template.

        They are: those before the query, those between the query and the document, those after the document."""
        vocab = self._native.vocab
        with self._native.gate:
            bos, eos = int(lib.llama_vocab_bos(vocab)), int(lib.llama_vocab_eos(vocab))
            sep = int(lib.llama_vocab_sep(vocab))
            begins = [bos] if lib.llama_vocab_get_add_bos(vocab) else []
            ends = [eos if eos >= 0 else sep] if lib.llama_vocab_get_add_eos(vocab) else []
            between = [*ends, sep] if lib.llama_vocab_get_add_sep(vocab) else ends
        return begins, between, ends
