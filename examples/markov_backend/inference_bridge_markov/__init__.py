# SPDX-License-Identifier: Apache-2.0
"""A Markov chain as a backend: `load_model("markov:book.txt")` learns from a text, and continues yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import inference_bridge as ib
from inference_bridge.authoring import TextAssembler


class MarkovModel(ib.TextModel):
    model_type = backend = "markov"
    capabilities = frozenset({"chat", "token_ids"})
    options = frozenset({"temperature", "seed", "stop"})

    def __init__(self, text: bytes, context_length: int) -> None:
        from .chain import Chain  # the engine, imported when a model is loaded and not before

        self.info = ib.ModelInfo("markov", vocab_size=256, context_length=context_length)
        self._chain = Chain(text)

    def close(self) -> None: ...

    def _run(self, request: ib.Request) -> Iterator[ib.Token]:
        config = request.config
        text = (request.prompt + "".join(f"{turn.role}: {turn.text}\n" for turn in request.messages)).encode()
        if (room := self.info.context_length - len(text)) < 0:
            raise ib.ContextLengthExceededError(len(text), self.info.context_length)
        request.measure(prompt_tokens=len(text))
        limit = room + 1 if config.max_tokens == -1 else min(config.max_tokens or 256, room + 1)
        output = TextAssembler(config.stop or ())
        for byte in self._chain.continued(text, limit, config.temperature or 0.0, config.seed):
            yield from output.push(bytes([byte]), id=byte)
            if output.stopped:
                return
        request.finish_reason = "length"
        yield from output.finish()


class MarkovBackend(ib.Backend):
    name = "markov"
    load_options = frozenset({"context_length"})

    def availability(self) -> ib.Availability:
        return ib.Availability(True)

    def can_load(self, source: str) -> bool:
        return source.endswith(".txt")

    def load_model(self, source: str, config: ib.LoadConfig) -> ib.TextModel:
        if not Path(source).is_file():
            raise ib.ModelNotFoundError(f"there is no file {source}")
        return MarkovModel(Path(source).read_bytes(), config.context_length or 4096)


@ib.hookimpl
def register_backends(register: Callable[[ib.Backend], None]) -> None:
    register(MarkovBackend())
