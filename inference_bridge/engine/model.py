# SPDX-License-Identifier: Apache-2.0
"""A TextModel over a scheduled engine: what the in-process backends have in common."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any, Protocol

from ..errors import ContextLengthExceededError, UnsupportedError
from ..mailbox import AsyncMailbox, Mailbox, Sink
from ..model import TextModel
from ..options import GenerateConfig
from ..request import Request
from ..stats import GenerateStats, StatsRecorder
from ..types import Message, Token, Tool
from .chat_template import ChatTemplate, RenderedPrompt
from .markup import chat_output
from .scheduler import Sampling, Scheduler, Sequence, StepEngine
from .text import Output, TextAssembler
from .worker import Worker

DEFAULTS = GenerateConfig(max_tokens=256, temperature=0.0)
"""What holds where neither the caller nor the configuration sets a field; all else is off."""


class Tokenizer(Protocol):
    """Between text and token ids. Every method may be called from any thread."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; `special`: with what the model wants around a prompt, such as BOS,
        and with the names of special tokens read as those."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat template, which has put everything where it belongs."""
        ...

    def __contains__(self, text: object) -> bool:
        """Whether `text` is a token by itself, a special one perhaps."""
        ...


class EngineModel(TextModel):
    """Runs requests on a Scheduler. A backend makes the engine, the tokenizer and the template."""

    options = frozenset(
        {
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
            "stop",
            "stop_tokens",
            "seed",
            "template_options",
        }
    )

    def __init__(self, engine: StepEngine, worker: Worker, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.parallel = engine.slots
        self._tokenizer = tokenizer
        self._template = template
        self.capabilities = frozenset({"token_ids", "logprobs", "stats"})
        if template is not None:
            self.capabilities |= {"chat", "tools"} | ({"reasoning"} if template.reasons else set())
        self._context_length = engine.context_length
        self._scheduler = Scheduler(engine, worker)
        self._stats = StatsRecorder()
        # A model that is dropped is closed by this; at exit the workers stop by themselves.
        self._release = weakref.finalize(self, worker.stop)
        self._release.atexit = False

    def close(self) -> None:
        self._release()

    def stats(self) -> GenerateStats:
        """Of every operation since loading."""
        return self._stats.stats()

    def count_tokens(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        self._check_open()
        return len(self._tokenizer.encode(text, special=False))

    # ------------------------------------------------ from request to tokens

    def _run(self, request: Request) -> Iterator[Token]:
        box: Mailbox[Token] = Mailbox(request.deadline)
        self._start(request, box)
        try:
            yield from box
        except GeneratorExit:
            request.cancel()
            raise

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        box: AsyncMailbox[Token] = AsyncMailbox(request.deadline)
        self._start(request, box)
        try:
            async for token in box:
                yield token
        except GeneratorExit:
            request.cancel()
            raise

    def _start(self, request: Request, sink: Sink[Token]) -> None:
        try:
            sequence = self._sequence(request, sink)
        except Exception as error:
            sink.close(error)
            return
        self._scheduler.submit(sequence)

    def _sequence(self, request: Request, sink: Sink[Token]) -> Sequence:
        config = request.config.over(DEFAULTS)
        prompt = self._tokens(request)
        if len(prompt) > self._context_length:
            raise ContextLengthExceededError(len(prompt), self._context_length)
        return Sequence(
            request=request,
            prompt=prompt,
            sampling=Sampling.of(config),
            output=self._output(request),
            sink=sink,
            max_tokens=config.max_tokens or -1,
            stop_tokens=frozenset(config.stop_tokens or ()),
            special=request.kind == "chat",
        )

    def _generation(self, prompt: str, config: GenerateConfig | None, options: Mapping[str, Any]) -> Request:
        request = super()._generation(prompt, config, options)
        if not prompt and not self._tokenizer.encode("", special=True):
            raise ValueError("the prompt is empty, and this model begins a text with no token of its own")
        return request

    def _conversation(
        self,
        messages: SequenceOf[Message | Mapping[str, Any]],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> Request:
        if self._template is None:
            self._check_open()
            raise UnsupportedError(
                "chat", self._name, "the model has no chat template: use generate(), or load it with chat_template="
            )
        request = super()._conversation(messages, config, options)
        # Rendered at the call, because a template may refuse the messages: that is the caller's ValueError.
        asked = request.config
        request.prepared = self._template.render(
            request.messages,
            tools=self._tools(request),
            reasoning=asked.reasoning,
            options=asked.template_options or {},
        )
        return request

    @staticmethod
    def _tools(request: Request) -> tuple[Tool, ...]:
        """The tools that may be called."""
        if request.config.tool_choice == "none":
            return ()
        return tuple(tool for tool in request.config.tools or () if isinstance(tool, Tool))

    def _tokens(self, request: Request) -> list[int]:
        """The prompt as the engine takes it."""
        if request.kind == "generate":
            return self._tokenizer.encode(request.prompt, special=True)
        return self._tokenizer.encode_rendered(request.prepared.text)

    def _output(self, request: Request) -> Output:
        """What makes Tokens of the engine's."""
        stops = tuple(request.config.stop or ())
        if request.kind == "generate":
            return TextAssembler(stops)
        rendered: RenderedPrompt = request.prepared
        return chat_output(rendered.format, stops=stops, tools=self._tools(request), in_reasoning=rendered.in_reasoning)

    @property
    def _batch_width(self) -> int:
        return 2 * self.parallel  # so that a slot that comes free finds the next prompt waiting

    def _end(self, request: Request) -> None:
        super()._end(request)
        self._stats.record(request.metrics, request.finish_reason)
