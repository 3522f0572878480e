# SPDX-License-Identifier: Apache-2.0
"""The llm plugin in tests: the models that it registers, and an llm model with scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import llm

import inference_bridge as ib
from inference_bridge import ContextLengthExceededError, GenerateConfig, LoadConfig, Message, Request, TextModel, Token
from llm_inference_bridge import register_models
from llm_inference_bridge.models import AsyncInferenceBridge, InferenceBridge

from .models.tiny import WordsBackend


class Scripted(TextModel):
    """Answers each request with the next of `answers`, and keeps the requests."""

    info = ib.ModelInfo(architecture="scripted")
    capabilities = frozenset({"images", "json_schema", "reasoning", "tools"})
    options = frozenset({"temperature", "top_k", "top_p", "stop", "stop_tokens", "seed", "template_options"})

    def __init__(self, answers: Sequence[Sequence[Token]]) -> None:
        self.answers = iter(answers)
        self.requests: list[Request] = []
        self.room: int | None = None
        """The number of messages that the context window holds; None: unlimited."""

    def _run(self, request: Request) -> Iterator[Token]:
        if self.room is not None and len(request.messages) > self.room:
            raise ContextLengthExceededError(len(request.messages), self.room)
        self.requests.append(request)
        request.measure(prompt_tokens=7, cached_tokens=3)
        yield from next(self.answers)

    def close(self) -> None:
        pass

    @property
    def asked(self) -> list[Sequence[Message]]:
        """The conversations that were answered."""
        return [request.messages for request in self.requests]

    @property
    def config(self) -> GenerateConfig:
        return self.requests[-1].config


class ScriptedBackend(WordsBackend):
    capabilities = Scripted.capabilities

    def __init__(self, model: TextModel) -> None:
        super().__init__("scripted", loads=lambda source: source.startswith("play"))
        self.model = model

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        return self.model


def offered() -> dict[str, tuple[InferenceBridge, AsyncInferenceBridge]]:
    """The models that the plugin registers, by id."""
    registered: dict[str, tuple[InferenceBridge, AsyncInferenceBridge]] = {}

    def register(model: llm.Model, async_model: llm.AsyncModel, aliases: Sequence[str]) -> None:
        assert isinstance(model, InferenceBridge)
        assert isinstance(async_model, AsyncInferenceBridge)
        assert model.model_id == async_model.model_id
        assert model.model_id not in registered
        registered[model.model_id] = model, async_model

    register_models(register, [])
    return registered


Play = Callable[..., tuple[InferenceBridge, Scripted]]


def text(*words: str) -> list[Token]:
    return [Token(word) for word in words]
