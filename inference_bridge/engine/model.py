# SPDX-License-Identifier: Apache-2.0
"""A TextModel that runs on a scheduled engine: the code shared by the in-process backends."""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from .._calls.arguments import check_token_ids
from .._calls.classify import ClassifyCall
from .._concurrency.background import off_loop, submit
from .._concurrency.loops import check_asyncio
from .._concurrency.mailbox import AsyncMailbox, Mailbox, Sink
from ..batch import AsyncBatchStream, BatchStream
from ..chat.answer_prompt import answer_prompt
from ..chat.assembler import Output, TextAssembler
from ..chat.call_notation import notation
from ..chat.markup import chat_output
from ..chat.schema_prompt import with_schema
from ..chat.templates.template import ChatTemplate, ChatTemplateError, RenderedPrompt
from ..decisions import Decision
from ..decisions.deciding import Deciding, summed
from ..errors import ContextLengthExceededError, GenerationError, ToolCallCutError, UnsupportedError
from ..grammar.grammar import AnswerConstraint, Grammar, answer_grammar, check_answer
from ..model import SHORT_TEXT
from ..options import DEFAULTS, SAMPLING, GenerateConfig, is_forced
from ..request import Request
from ..stats import GenerateStats, StatsRecorder
from ..types import BatchResult, ClassifyResult, Message, Token, Tool
from .classify import Evaluation, Plan
from .classify import plan as plan_classification
from .infill import Infill, fill_names, infill_tokens
from .prefix_cache.common import common_length
from .reasoning_budget import ReasoningBudget, ReasoningTags
from .scheduler import Constraint, Sampling, Scheduler, Sequence, StepEngine, failure_of
from .schema_shape import check_schema
from .special_tokens import Shield
from .steering import EndTokens, Steering
from .token_access import TokenAccess
from .worker import Worker

LONG_TEXT = 1 << 16
"""Characters of a prompt from which on a sync call tokenizes it in another thread, so that its timeout is kept."""

FEWEST_FROM = 4
"""Characters for each token of the context from which on a lower bound of the prompt's tokens is computed first."""


class Tokenizer(Protocol):
    """Converts text to token ids. Thread-safe.

    `check` is called between two parts of the work. It may raise to abort it.
    """

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = ...) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text.
            special: Whether to add the tokens that the model expects around a prompt, such as BOS, and to read the
                names of special tokens in the text as these tokens.
            check: See above.
        """
        ...

    def encode_rendered(self, text: str, mark: str = "", check: Callable[[], None] = ...) -> list[int]:
        """Return the token ids of a rendered chat, whose template has written all special tokens.

        Args:
            text: The rendered chat.
            mark: A character. A name of a special token with it inside is plain text: see `engine.special_tokens`.
            check: See above.
        """
        ...

    def fewest(self, text: str) -> int:
        """Return a lower bound of the number of tokens, computed from the length of the text. 0: no bound is known."""
        ...

    @property
    def shield(self) -> Shield:
        """Prevents text of users from becoming special tokens."""
        ...

    def __contains__(self, text: object) -> bool:
        """Return whether `text` is exactly one token, possibly a special one."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered chat.

    Attributes:
        rendered: The text, and the format of its answer.
        mark: A character inside names of special tokens that are plain text: see `engine.special_tokens`.
        media: (kind, content) of each image and sound, kind "image" or "audio".
    """

    rendered: RenderedPrompt
    mark: str = ""
    media: tuple[tuple[str, bytes], ...] = ()

    @property
    def text(self) -> str:
        return self.rendered.text


class EngineModel(TokenAccess):
    """Runs requests on a Scheduler. A backend creates the engine, the tokenizer and the template."""

    options = frozenset({*SAMPLING, "stop", "stop_tokens", "seed", "template_options", "logit_bias", "min_tokens"})

    _media_marker: str | None = None
    """The text that stands for an attachment in a rendered chat. None: the engine takes no attachments."""

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
            if engine.vocabulary is not None:
                self.options |= {"schema_in_prompt"}
            if ReasoningTags.of(template.format) is not None:
                self.options |= {"reasoning_budget"}
        if fill_names(tokenizer) is not None:
            self.capabilities |= {"infill"}
        self._context_length = engine.context_length
        self._ends = EndTokens(engine.is_end)
        self._scheduler = Scheduler(engine, worker)
        self._stats = StatsRecorder()
        self._worker = worker
        # Closes a model that is dropped. At exit the workers are stopped in `engine.worker`.
        self._release = weakref.finalize(self, partial(worker.remove, self._scheduler, wait=False))
        self._release.atexit = False

    def close(self) -> None:
        self._release()
        self._worker.remove(self._scheduler)
        if self._template is not None:
            self._template.close()

    def stats(self) -> GenerateStats:
        """Return the statistics of every operation since loading."""
        return self._stats.stats()

    def count_tokens(self, text: str) -> int:
        self._check_text(text)
        return len(self._tokenizer.encode(text, special=False, check=self._check_open))

    async def acount_tokens(self, text: str) -> int:
        if isinstance(text, str) and len(text) <= SHORT_TEXT:
            return self.count_tokens(text)
        check_asyncio(self._name)
        return await off_loop(partial(self.count_tokens, text))

    # ------------------------------------------------ classify

    def _classify(self, call: ClassifyCall) -> list[ClassifyResult]:
        """Predict one token after each prompt. All labels reuse the prefix cache of their prompt."""
        plan, batch = self._classification(call)
        _raise_first(BatchStream(self, *batch).results())
        return plan.results(self._token_text)

    async def _aclassify(self, call: ClassifyCall) -> list[ClassifyResult]:
        check_asyncio(self._name)
        planning = partial(self._classification, call._replace(prompts=call.texts()))
        plan, batch = await off_loop(planning)
        _raise_first(await AsyncBatchStream(self, *batch).results())
        return plan.results(self._token_text)

    def _classification(
        self, call: ClassifyCall
    ) -> tuple[Plan, tuple[Callable[[Evaluation], Request], list[Evaluation]]]:
        asked = self._config(call.config, call.options, defaults=GenerateConfig(), logits=True)
        call.check_options(self._name)
        texts, labels = call.texts(), call.label_texts()
        checked = asked.over(self.defaults)
        plan = plan_classification(
            texts,
            labels and [labels] * len(texts),
            self._encode_to_classify,
            top=checked.logprobs or 0,
            keep=bool(checked.return_logits),
        )
        one = GenerateConfig(max_tokens=1, temperature=0.0, timeout=checked.timeout)

        def request(evaluation: Evaluation) -> Request:
            made = Request("generate", one)
            made.prepared = evaluation
            return made

        return plan, (request, plan.order())

    def _encode_to_classify(self, text: str) -> list[int]:
        """Return the token ids of a prompt, or of a prompt with a label, whose last token is not evaluated."""
        self._check_fits(text)
        return self._all_but_last_fits(self._tokenizer.encode(text, special=True, check=self._check_open))

    def _all_but_last_fits(self, tokens: list[int]) -> list[int]:
        if len(tokens) - 1 > self._context_length:
            raise ContextLengthExceededError(len(tokens), self._context_length)
        return tokens

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
        plan, batch = await off_loop(partial(self._decision_plan, work))
        results = await AsyncBatchStream(self, *batch).results()
        _raise_first(results)
        return self._decided(work, plan, results, begun)

    def _decision_plan(self, work: Deciding) -> tuple[Plan, tuple[Callable[[Evaluation], Request], list[Evaluation]]]:
        """Plan the evaluations after the prompt of each question, which the chat template renders."""
        assert self._template is not None
        shield = self._tokenizer.shield
        self._check_fits(work.asks[0].text)  # before a prompt is rendered for each question
        texts, labels = [ask.text for ask in work.asks], [ask.labels for ask in work.asks]
        mark = shield.mark_for(texts, labels)
        if mark:
            texts, labels = shield.plain(texts, mark), shield.plain(labels, mark)

        def check() -> None:
            self._check_open()
            work.check_time()

        def encode(text: str) -> list[int]:
            self._check_fits(text)
            return self._all_but_last_fits(self._tokenizer.encode_rendered(text, mark, check))

        prompts = [answer_prompt(self._template, text, work) for text in texts]
        plan = plan_classification(prompts, labels, encode, top=0, keep=False)
        one = GenerateConfig(max_tokens=1, temperature=0.0, timeout=work.config.timeout)

        def request(evaluation: Evaluation) -> Request:
            made = Request("generate", one, spent=work.spent)
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
        self._worker.check_caller()
        box: Mailbox[Token] = Mailbox(request.deadline)
        self._start(request, box)
        return box.read(request.cancel)

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
        if request.work is not None or self._is_quick(request, LONG_TEXT):
            self._begin_sequence(request, sink)
        else:  # in another thread, so that the caller does not wait for it after a timeout or a cancellation
            request.on_cancel(sink.close)
            submit(partial(self._begin_sequence, request, sink))

    def _astart(self, request: Request, sink: Sink[Token]) -> None:
        if self._is_quick(request, SHORT_TEXT):
            self._begin_sequence(request, sink)
        else:
            request.on_cancel(sink.close)
            submit(partial(self._begin_sequence, request, sink))

    def _is_quick(self, request: Request, characters: int) -> bool:
        """Return whether the work before the prefill is short: at most `characters` of text, and no grammar."""
        prompt = request.prepared
        if isinstance(prompt, Evaluation):
            return True
        if request.kind == "chat" and prompt is None:
            return False
        text = prompt.text if isinstance(prompt, Prompt) else request.prompt
        media = isinstance(prompt, Prompt) and prompt.media
        return len(text) <= characters and not media and not self._constrained(request.config)

    def _begin_sequence(self, request: Request, sink: Sink[Token]) -> None:
        try:
            if request.kind == "chat" and request.prepared is None:  # one of a batch of chats
                self._verify(request)
            if request.work is None:
                self._ready(request)
            sequence = self._sequence(request, sink)
        except BaseException as error:  # a panic of a Rust library is not an Exception
            sink.close(failure_of(error))
            return
        self._scheduler.submit(sequence)

    def _takes_long(self, request: Request) -> bool:
        return request.kind == "chat" or not self._is_quick(request, SHORT_TEXT) or bool(request.config.tools)

    def _ready(self, request: Request) -> None:
        """Tokenize the prompt, and compile the grammar."""
        prompt, media = self._tokens(request)
        if len(prompt) > self._context_length:
            raise ContextLengthExceededError(len(prompt), self._context_length)
        config = request.config.over(DEFAULTS)
        constraint = self._constraint(request)
        if constraint is not None:
            room = self._context_length - len(prompt) + 1
            limit = room if config.max_tokens in (None, -1) else min(config.max_tokens, room)
            constraint.limit(limit)
            if is_forced(config.tool_choice) and (constraint.shortest or 0) > limit:
                raise ToolCallCutError(
                    f"the shortest tool call takes {constraint.shortest} tokens, and there is room for {limit}: "
                    "raise max_tokens or context_length"
                )
        request.work = (prompt, media, constraint)

    def _sequence(self, request: Request, sink: Sink[Token]) -> Sequence:
        config = request.config.over(DEFAULTS)
        prompt, media, constraint = request.work
        request.work = None
        return Sequence(
            request=request,
            prompt=prompt,
            media=media,
            sampling=Sampling.of(config),
            output=self._output(request),
            sink=sink,
            max_tokens=config.max_tokens or -1,
            stop_tokens=frozenset(config.stop_tokens or ()),
            constraint=self._steered(request, config, constraint),
            forced_call=is_forced(config.tool_choice) and constraint is not None,
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

    def _infilling(
        self, prefix: str, suffix: str, config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        if "infill" not in self.capabilities or not isinstance(prefix, str) or not isinstance(suffix, str):
            return super()._infilling(prefix, suffix, config, options)
        request = super()._generation(prefix + suffix, config, options)
        request.prepared = Infill(prefix, suffix)
        return request

    def _conversation(
        self,
        messages: SequenceOf[Message | Mapping[str, Any]],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> Request:
        self._check_chats()
        return super()._conversation(messages, config, options)

    def _verify(self, request: Request) -> None:
        """Check the schemas, and render the chat, because its template may refuse the messages."""
        config = request.config
        for tool in config.tools or ():
            if isinstance(tool, Tool):
                check_schema(tool.parameters, f"the parameters of tool {tool.name!r}")
        if self._constrained(config):
            check_answer(_answer_constraint(config), _tools(config), config.tool_choice, backend=self._name)
        if request.kind == "chat":
            request.prepared = self._render(request)

    def _render(self, request: Request) -> Prompt:
        assert self._template is not None
        config, shield = request.config, self._tokenizer.shield
        messages = with_schema(request.messages, config)
        tools, options = _tools(config), config.template_options or {}
        mark = shield.mark_for(messages, tools, options, check=partial(self._check_wanted, request))
        try:
            rendered = self._template.render(
                shield.messages(messages, mark) if mark else messages,
                tools=shield.tools(tools, mark) if mark else tools,
                reasoning=config.reasoning,
                options=shield.plain(options, mark) if mark else options,
                media_marker=self._media_marker,
                timeout=request.remaining(),
            )
        except ChatTemplateError:
            if request.remaining() == 0.0:
                raise request.timed_out() from None
            raise
        return Prompt(rendered, mark)

    def _tokens(self, request: Request) -> tuple[list[int], Mapping[int, Any]]:
        """Return the token ids of the prompt, and its images and sounds by the index of their first token."""
        if isinstance(request.prepared, Evaluation):
            return list(request.prepared.tokens), {}
        check = partial(self._check_wanted, request)
        if request.kind == "generate":
            self._check_fits(request.prompt)
            if isinstance(request.prepared, Infill):
                return infill_tokens(self._tokenizer, request.prepared, self._tokens_of_markup, check), {}
            return self._tokenizer.encode(request.prompt, special=True, check=check), {}
        prompt: Prompt = request.prepared
        self._check_fits(prompt.text)
        return self._tokenizer.encode_rendered(prompt.text, prompt.mark, check), {}

    def _check_fits(self, text: str) -> None:
        """Raise ContextLengthExceededError for a prompt that can't fit, before its tokenizing takes seconds."""
        if len(text) > max(SHORT_TEXT, FEWEST_FROM * self._context_length):
            fewest = self._tokenizer.fewest(text)
            if fewest > self._context_length:
                raise ContextLengthExceededError(fewest, self._context_length, at_least=True)

    def _check_wanted(self, request: Request) -> None:
        """Raise if the request was cancelled or has timed out, or if the model is closed."""
        self._check_open()
        if request.cancelled:
            raise GenerationError("cancelled")
        request.check_time()

    def _output(self, request: Request) -> Output:
        """Return the object that assembles the engine's tokens to text, reasoning and tool calls."""
        stops = tuple(request.config.stop or ())
        if request.kind == "generate":
            return TextAssembler(stops)
        rendered: RenderedPrompt = request.prepared.rendered
        tools = _tools(request.config)
        calls_forced = bool(tools) and self._constrained(request.config)
        # A grammar forces the notation of a model family, which a response template may not be able to read.
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
        check_token_ids(config, self.info.vocab_size)
        if self._constrained(config) and self._engine.vocabulary is None:
            raise UnsupportedError(f"tool_choice={config.tool_choice!r}", self._name)
        return config

    @staticmethod
    def _constrained(config: GenerateConfig) -> bool:
        """Return whether the options constrain the answer."""
        return bool(_answer_constraint(config)) or is_forced(config.tool_choice)

    def _constraint(self, request: Request) -> Grammar | None:
        config, vocabulary = request.config, self._engine.vocabulary
        if vocabulary is None or not self._constrained(config):
            return None
        chat: RenderedPrompt | None = request.prepared.rendered if request.kind == "chat" else None
        return answer_grammar(
            vocabulary,
            _answer_constraint(config),
            _tools(config),
            config.tool_choice,
            format=chat.format if chat else None,
            in_reasoning=chat is not None and chat.in_reasoning,
            may_reason=chat is not None and not chat.in_answer,
            backend=self._name,
        )

    def _steered(self, request: Request, config: GenerateConfig, grammar: Grammar | None) -> Constraint | None:
        """Return the grammar together with `logit_bias`, `min_tokens` and `reasoning_budget`. None: none is set."""
        constraint: Constraint | None = grammar
        if config.logit_bias or config.min_tokens:
            stops = frozenset(config.stop_tokens or ())
            constraint = Steering(config.logit_bias or {}, config.min_tokens or 0, self._ends, stops, grammar)
        if config.reasoning_budget is None or request.kind != "chat":
            return constraint
        chat: RenderedPrompt = request.prepared.rendered
        tags = ReasoningTags.of(chat.format)
        if tags is None or chat.in_answer:
            return constraint
        opening, closing = map(self._tokens_of_markup, (tags.opens, tags.closing))
        piece = partial(self._engine.piece, special=True)
        return ReasoningBudget(config.reasoning_budget, tags, opening, closing, piece, chat.in_reasoning, constraint)

    def _tokens_of_markup(self, text: str) -> list[int]:
        """Return the token ids of markup, without those that the model adds around a prompt."""
        tokens, around = self._tokenizer.encode_rendered(text), self._tokenizer.encode_rendered("")
        begin = common_length(tokens, around)
        end = len(around) - begin
        return tokens[begin : len(tokens) - end] if tokens[len(tokens) - end :] == around[begin:] else tokens[begin:]

    @property
    def _batch_width(self) -> int:
        return 2 * self.parallel  # so that a prompt is waiting whenever a slot becomes free

    def _end(self, request: Request) -> None:
        super()._end(request)
        self._stats.record(request.metrics, request.finish_reason)


def _answer_constraint(config: GenerateConfig) -> AnswerConstraint:
    """Return the constraint on the answer."""
    return AnswerConstraint(config.json_schema, config.regex, config.choices, config.grammar)


def _tools(config: GenerateConfig) -> tuple[Tool, ...]:
    """Return the tools that may be called."""
    if config.tool_choice == "none":
        return ()
    return tuple(tool for tool in config.tools or () if isinstance(tool, Tool))


def _raise_first(results: Iterable[BatchResult]) -> None:
    for result in results:
        if result.error is not None:
            raise result.error
