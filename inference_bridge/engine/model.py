# SPDX-License-Identifier: Apache-2.0
"""A TextModel over a scheduled engine: what the in-process backends have in common."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, Unpack

from .._concurrency.mailbox import AsyncMailbox, Mailbox, Sink
from ..batch import AsyncBatchStream, BatchStream
from ..chat.answer_prompt import answer_prompt
from ..chat.assembler import Output, TextAssembler
from ..chat.call_notation import notation
from ..chat.markup import chat_output
from ..chat.template import ChatTemplate, RenderedPrompt
from ..deciding import Deciding, summed
from ..decisions import Decision
from ..errors import ContextLengthExceededError, GenerationError, UnsupportedError
from ..grammar.grammar import Asked, Grammar, answer_grammar, check_answer
from ..model import strings
from ..options import DEFAULTS, GenerateConfig, GenerateOptions, is_forced
from ..request import Request
from ..stats import GenerateStats, StatsRecorder
from ..types import BatchResult, ClassifyResult, Message, Token, Tool
from .classify import Evaluation, Plan
from .classify import plan as plan_classification
from .scheduler import Constraint, Sampling, Scheduler, Sequence, StepEngine
from .steering import EndTokens, Steering
from .token_access import TokenAccess
from .worker import Worker

_OF_CLASSIFY = frozenset({"return_logits", "logprobs", "timeout"})


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


class EngineModel(TokenAccess):
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
            "logit_bias",
            "min_tokens",
        }
    )

    _media_marker: str | None = None
    """What stands for an attachment in a rendered chat, if the engine takes any."""

    def __init__(self, engine: StepEngine, worker: Worker, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.parallel = engine.slots
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self.capabilities = frozenset({"token_ids", "logits", "logprobs", "stats"})
        if engine.vocabulary is not None:
            self.capabilities |= {"json_schema"}
            self.options |= {"regex", "choices", "grammar"}
        if template is not None:
            self.capabilities |= {"chat", "tools"} | ({"reasoning"} if template.reasons else set())
        self._context_length = engine.context_length
        self._ends = EndTokens(engine.is_end)
        self._scheduler = Scheduler(engine, worker)
        self._stats = StatsRecorder()
        self._worker = worker
        # A model that is dropped is closed by this; at exit the workers stop by themselves.
        self._release = weakref.finalize(self, partial(worker.remove, self._scheduler, wait=False))
        self._release.atexit = False

    def close(self) -> None:
        self._release()
        self._worker.remove(self._scheduler)
        if self._template is not None:
            self._template.close()

    def stats(self) -> GenerateStats:
        """Of every operation since loading."""
        return self._stats.stats()

    def count_tokens(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        self._check_open()
        return len(self._tokenizer.encode(text, special=False))

    # ------------------------------------------------ classify

    def classify(
        self,
        prompts: SequenceOf[str],
        config: GenerateConfig | None = None,
        *,
        labels: SequenceOf[str] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[ClassifyResult]:
        """Predict what follows each prompt, from one evaluation of it: the likeliest token, or label.

        `labels`: `scores` gives the probability that the label, and no other, follows the
        prompt. Options: `return_logits`, `logprobs`, `timeout` (for each evaluation).
        """
        plan, batch = self._classification(prompts, config, labels, options)
        _raise_first(BatchStream(self, *batch).results())
        return plan.results(self._token_text)

    async def aclassify(
        self,
        prompts: SequenceOf[str],
        config: GenerateConfig | None = None,
        *,
        labels: SequenceOf[str] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[ClassifyResult]:
        plan, batch = self._classification(prompts, config, labels, options)
        _raise_first(await AsyncBatchStream(self, *batch).results())
        return plan.results(self._token_text)

    def _classification(
        self,
        prompts: SequenceOf[str],
        config: GenerateConfig | None,
        labels: SequenceOf[str] | None,
        options: Mapping[str, Any],
    ) -> tuple[Plan, tuple[Callable[[Evaluation], Request], list[Evaluation]]]:
        asked = self._config(config, options, defaults=GenerateConfig(), logits=True)
        for name, value in asked.set_fields().items():
            if name not in _OF_CLASSIFY and (name, value) not in (("max_tokens", 1), ("temperature", 0.0)):
                raise UnsupportedError(f"{name}={value!r} in classify", self._name, "it predicts one token, greedily")
        checked = asked.over(self.defaults)
        if labels is not None:
            labels = strings(labels, "labels")
            if not labels:
                raise ValueError("labels is empty: name at least one")
        texts = strings(prompts, "prompts")
        plan = plan_classification(
            texts,
            labels and [labels] * len(texts),
            lambda text: self._tokenizer.encode(text, special=True),
            top=checked.logprobs or 0,
            keep=bool(checked.return_logits),
        )
        one = GenerateConfig(max_tokens=1, temperature=0.0, timeout=checked.timeout)

        def request(evaluation: Evaluation) -> Request:
            made = Request("generate", one)
            made.prepared = evaluation
            return made

        return plan, (request, plan.order())

    # ------------------------------------------------ decide

    def _decide(self, work: Deciding) -> Decision:
        if self._template is None:
            return super()._decide(work)
        begun = time.monotonic()
        plan, batch = self._decision_plan(work)
        results = BatchStream(self, *batch).results()
        _raise_first(results)
        return self._decided(work, plan, results, begun)

    async def _adecide(self, work: Deciding) -> Decision:
        if self._template is None:
            return await super()._adecide(work)
        begun = time.monotonic()
        plan, batch = await asyncio.to_thread(self._decision_plan, work)
        results = await AsyncBatchStream(self, *batch).results()
        _raise_first(results)
        return self._decided(work, plan, results, begun)

    def _decision_plan(self, work: Deciding) -> tuple[Plan, tuple[Callable[[Evaluation], Request], list[Evaluation]]]:
        """The evaluations behind each question's prompt, which the chat template has rendered."""
        assert self._template is not None
        plan = plan_classification(
            [answer_prompt(self._template, ask.text, work) for ask in work.asks],
            [ask.labels for ask in work.asks],
            self._tokenizer.encode_rendered,
            top=0,
            keep=False,
        )

        def request(evaluation: Evaluation) -> Request:
            made = Request("generate", GenerateConfig(max_tokens=1, temperature=0.0, timeout=work.remaining()))
            made.prepared = evaluation
            return made

        return plan, (request, plan.order())

    def _decided(self, work: Deciding, plan: Plan, results: Iterable[BatchResult], begun: float) -> Decision:
        metrics = summed((result.metrics for result in results), time.monotonic() - begun)
        return work.decision(plan.results(self._token_text), metrics)

    def _token_text(self, token: int) -> str:
        return self._engine.piece(token, True).decode("utf-8", "replace")

    # ------------------------------------------------ from request to tokens

    def _run(self, request: Request) -> Iterator[Token]:
        box: Mailbox[Token] = Mailbox(request.deadline)
        self._start(request, box)
        return box.read(request.cancel)

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        box: AsyncMailbox[Token] = AsyncMailbox(request.deadline)
        vocabulary = self._engine.vocabulary
        if vocabulary is not None and not vocabulary.ready and self._constrained(request.config):
            await asyncio.to_thread(vocabulary.prepare)
        if any(message.attachments for message in request.messages):
            await asyncio.to_thread(self._start, request, box)  # to decode images takes its time
        else:
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
        prompt, media = self._tokens(request)
        if len(prompt) > self._context_length:
            raise ContextLengthExceededError(len(prompt), self._context_length)
        constraint = self._constraint(request)
        forced_call = is_forced(config.tool_choice) and constraint is not None
        if constraint is not None:
            room = self._context_length - len(prompt) + 1
            limit = room if config.max_tokens in (None, -1) else min(config.max_tokens, room)
            constraint.limit(limit)
            if forced_call and (constraint.shortest or 0) > limit:
                raise GenerationError(
                    f"the shortest tool call takes {constraint.shortest} tokens, and there is room for {limit}: "
                    "raise max_tokens or context_length"
                )
        return Sequence(
            request=request,
            prompt=prompt,
            media=media,
            sampling=Sampling.of(config),
            output=self._output(request),
            sink=sink,
            max_tokens=config.max_tokens or -1,
            stop_tokens=frozenset(config.stop_tokens or ()),
            constraint=self._steered(config, constraint),
            forced_call=forced_call,
            special=request.kind == "chat",
            on_logits=request.prepared.take if isinstance(request.prepared, Evaluation) else None,
        )

    def _check_chats(self) -> None:
        if self._template is None:
            self._check_open()
            raise UnsupportedError(
                "chat", self._name, "the model has no chat template: use generate(), or load it with chat_template="
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
        self._check_chats()
        assert self._template is not None
        request = super()._conversation(messages, config, options)
        # Rendered at the call, because a template may refuse the messages: that is the caller's ValueError.
        asked = request.config
        request.prepared = self._template.render(
            request.messages,
            tools=_tools(request.config),
            reasoning=asked.reasoning,
            options=asked.template_options or {},
            media_marker=self._media_marker,
        )
        return request

    def _tokens(self, request: Request) -> tuple[list[int], Mapping[int, Any]]:
        """The prompt as the engine takes it, and what of it is no text."""
        if isinstance(request.prepared, Evaluation):
            return list(request.prepared.tokens), {}
        if request.kind == "generate":
            return self._tokenizer.encode(request.prompt, special=True), {}
        return self._tokenizer.encode_rendered(request.prepared.text), {}

    def _output(self, request: Request) -> Output:
        """What makes Tokens of the engine's."""
        stops = tuple(request.config.stop or ())
        if request.kind == "generate":
            return TextAssembler(stops)
        rendered: RenderedPrompt = request.prepared
        tools = _tools(request.config)
        calls_forced = bool(tools) and self._constrained(request.config)
        # What a grammar forces is in a notation of the families, which a response template need not read.
        constrained = self._constrained(request.config)
        return chat_output(
            replace(rendered.format, response=None) if constrained else rendered.format,
            stops=stops,
            tools=tools,
            in_reasoning=rendered.in_reasoning,
            in_answer=rendered.in_answer,
            forced_call=calls_forced and notation(rendered.format, [tool.name for tool in tools]) is None,
        )

    # ------------------------------------------------ grammars

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        for token in (*(config.logit_bias or ()), *((config.stop_tokens or ()) if config.min_tokens else ())):
            if token >= self.info.vocab_size > 0:
                raise ValueError(f"there is no token {token}: the model has {self.info.vocab_size} tokens")
        if self._constrained(config):
            if self._engine.vocabulary is None:
                raise UnsupportedError(f"tool_choice={config.tool_choice!r}", self._name)
            check_answer(_asked(config), _tools(config), config.tool_choice, backend=self._name)
        return config

    @staticmethod
    def _constrained(config: GenerateConfig) -> bool:
        """Whether not everything may be answered."""
        return bool(_asked(config)) or is_forced(config.tool_choice)

    def _constraint(self, request: Request) -> Grammar | None:
        config, vocabulary = request.config, self._engine.vocabulary
        if vocabulary is None or not self._constrained(config):
            return None
        chat: RenderedPrompt | None = request.prepared if request.kind == "chat" else None
        return answer_grammar(
            vocabulary,
            _asked(config),
            _tools(config),
            config.tool_choice,
            format=chat.format if chat else None,
            in_reasoning=chat is not None and chat.in_reasoning,
            may_reason=chat is not None and not chat.in_answer,
            backend=self._name,
        )

    def _steered(self, config: GenerateConfig, grammar: Grammar | None) -> Constraint | None:
        """The grammar, with what else changes logits."""
        if not (config.logit_bias or config.min_tokens):
            return grammar
        stops = frozenset(config.stop_tokens or ())
        return Steering(config.logit_bias or {}, config.min_tokens or 0, self._ends, stops, grammar)

    @property
    def _batch_width(self) -> int:
        return 2 * self.parallel  # so that a slot that comes free finds the next prompt waiting

    def _end(self, request: Request) -> None:
        super()._end(request)
        self._stats.record(request.metrics, request.finish_reason)


def _asked(config: GenerateConfig) -> Asked:
    """What the answer must be."""
    return Asked(config.json_schema, config.regex, config.choices, config.grammar)


def _tools(config: GenerateConfig) -> tuple[Tool, ...]:
    """The tools that may be called."""
    if config.tool_choice == "none":
        return ()
    return tuple(tool for tool in config.tools or () if isinstance(tool, Tool))


def _raise_first(results: Iterable[BatchResult]) -> None:
    for result in results:
        if result.error is not None:
            raise result.error
