# SPDX-License-Identifier: Apache-2.0
"""The contract: `TextModel`, and what a model may offer beyond it.

The author of a backend writes `info`, `capabilities`, `close`, and one method that turns
a checked request into tokens: `_run`, or `_arun` where the engine is asynchronous. All
else a caller uses is here, made from those. An engine that can do better overrides.
"""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Unpack, runtime_checkable

from . import _telemetry
from ._calls.arguments import are_read_at_once, bounded_nesting, conversations_of, iterable, strings, turns_of
from ._calls.choices import Choices
from ._calls.classify import ClassifyCall
from ._calls.life import Life, closing
from ._calls.optional import OPTIONAL, AbsentOperationError
from ._calls.requests import RequestMaker
from ._concurrency.background import in_thread, off_loop
from ._concurrency.loops import check_asyncio
from ._concurrency.mailbox import Sink
from .batch import AsyncBatchStream, BatchStream
from .errors import ModelClosedError, UnsupportedError
from .options import GenerateConfig, GenerateOptions
from .request import Request
from .streams import AsyncTokenStream, TokenStream
from .types import BatchResult, ClassifyResult, GenerateMetrics, Message, ModelInfo, Ranked, Token

if TYPE_CHECKING:
    from typing import Self

    from .decisions import Decision, Question
    from .decisions.deciding import Deciding, State
    from .stats import GenerateStats

Conversation: TypeAlias = Sequence[Message | Mapping[str, Any]]
"""What `chat` answers."""

SHORT_TEXT = 4096
"""Characters that are tokenized in less than a millisecond or two, and so on the event loop."""


class TextModel(RequestMaker):
    """A loaded language model. Every method may be called from any thread and event loop."""

    model_type: str = ""
    """Architecture id, such as "llama", "gemma3", "qwen3"."""

    parallel: int = 1
    """How many operations it runs at once; the others wait their turn."""

    recommended: GenerateConfig = GenerateConfig()
    """The sampling that the model's own files recommend. The adapters start from it; this contract,
    whose default is greedy, does not."""

    info: ModelInfo
    _life: Life

    if not TYPE_CHECKING:  # a type checker is not to believe in any name

        def __getattr__(self, name):
            if name in OPTIONAL:
                raise AbsentOperationError(name, self._name, OPTIONAL[name])
            return object.__getattribute__(self, name)  # raises what led here

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Here, and not in __init__, so that a subclass owes no call to super().
        self = super().__new__(cls)
        if cls._run is TextModel._run and cls._arun is TextModel._arun:
            raise TypeError(f"{cls.__name__} must define _run or _arun")
        self._life = Life()
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrapped = closing(cls.close)  # it may come from a mixin that knows nothing of this class
        if wrapped is not cls.close:
            setattr(cls, "close", wrapped)  # noqa: B010 - a method, replaced on purpose
        _telemetry.observe(cls)

    # ------------------------------------------------ what an author writes

    @abstractmethod
    def close(self) -> None:
        """Free what the model holds. Idempotent; running streams end with ModelClosedError.

        To the author: when your `close` is called, the base class already refuses new
        operations and has cancelled those that run, though each may still be in the step it
        was making. It calls you only once.
        """

    def _run(self, request: Request) -> Iterator[Token]:
        """Generate: yield Tokens, return at the end. Called in the consumer's thread, or in a thread of this package.

        A request that is cancelled, or whose time is over, is ended between two tokens. Where
        you wait for something that may take long, wait no longer than `request.remaining()`,
        and be woken by `request.on_cancel`.
        """
        from ._concurrency.threads import run_in_thread_loop

        return run_in_thread_loop(self._arun, request)

    def _arun(self, request: Request) -> AsyncIterator[Token]:
        """`_run`, asynchronously. Define one of the two; the other follows from it.

        An asynchronous generator need not look at the request: where it is cancelled, or its
        time is over, what it awaits raises asyncio.CancelledError.
        """
        from ._concurrency.threads import arun_in_thread

        return arun_in_thread(self._run, request)

    def _start(self, request: Request, sink: Sink[Token]) -> None:
        """Begin `request` and return at once: its tokens go into `sink`, which is closed at the end."""
        from ._concurrency.threads import start_in_thread, start_in_thread_loop

        if type(self)._run is TextModel._run:
            start_in_thread_loop(self._arun, request, sink)
        else:
            start_in_thread(self._run, request, sink)

    def _astart(self, request: Request, sink: Sink[Token]) -> None:
        """`_start` where an event loop runs: what is asynchronous already runs on it."""
        if type(self)._start is TextModel._start and type(self)._run is TextModel._run:
            from ._concurrency.threads import start_in_task

            start_in_task(self._arun, request, sink)
        else:
            self._start(request, sink)

    # ------------------------------------------------ what a caller uses

    @bounded_nesting()
    def generate(
        self, prompt: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> TokenStream:
        """Continue `prompt` as it is, without a chat template; nothing in the output is parsed.

        Raises TypeError, ValueError, UnsupportedError and ModelClosedError at once;
        GenerationError and its subclasses while iterating.
        """
        return TokenStream(self, self._verified(self._generation(prompt, config, options)))

    def agenerate(
        self, prompt: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTokenStream:
        """`generate` for `async for`. What takes long to check is checked off the event loop: its TypeError, ValueError
        or UnsupportedError is raised where the stream is first awaited."""
        return AsyncTokenStream(self, self._generation(prompt, config, options))

    @bounded_nesting()
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TokenStream:
        """Answer a conversation, rendered with the model's own chat template.

        `messages` are `Message`s or mappings with role and content. Raises as `generate`.
        """
        return TokenStream(self, self._verified(self._conversation(messages, config, options)))

    def achat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """`chat` for `async for`; errors as with `agenerate`."""
        return AsyncTokenStream(self, self._conversation_to_come(messages, config, options))

    def classify(
        self,
        prompts: Sequence[str],
        config: GenerateConfig | None = None,
        *,
        labels: Sequence[str] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[ClassifyResult]:
        """Predict what follows each prompt, without generating: the likeliest token, or the likeliest of `labels`.

        Args:
            prompts: Texts, used as they are, without a chat template.
            config: `logprobs`, `timeout` (for each evaluation) and, with the capability "logits", `return_logits`.
            labels: Possible continuations. `scores` gives the probability of each.
            options: The fields of `config`, by name.

        Returns:
            One result for each prompt, in their order.

        Raises:
            UnsupportedError: The backend can't tell the probabilities of these labels, or does not support an option.
        """
        return self._classify(ClassifyCall(prompts, config, labels, options))

    async def aclassify(
        self,
        prompts: Sequence[str],
        config: GenerateConfig | None = None,
        *,
        labels: Sequence[str] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[ClassifyResult]:
        check_asyncio(self._name)
        if type(self).classify is not TextModel.classify:  # the author's own, which blocks
            return await in_thread(functools.partial(self.classify, prompts, config, labels=labels, **options))
        return await self._aclassify(ClassifyCall(prompts, config, labels, options))

    def batch_generate(
        self, prompts: Sequence[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> list[BatchResult]:
        """Continue every prompt, `parallel` of them at once. Results are in the prompts' order.

        A prompt that fails has `error` set and fails no other. With `n` there are n results for each prompt, one
        after the other.
        """
        return self._batch(strings(prompts, "prompts"), config, options).results()

    async def abatch_generate(
        self, prompts: Sequence[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> list[BatchResult]:
        return await self._abatch(strings(prompts, "prompts"), config, options).results()

    def chat_batch(
        self,
        conversations: Iterable[Conversation],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[BatchResult]:
        """Answer every conversation, `parallel` of them at once, as `chat` answers one. Results are in their order.

        A conversation that fails has `error` set and fails no other. With `n` there are n results for each
        conversation, one after the other. Raises as `chat` for the options.
        """
        return self._chats(conversations, config, options).results()

    async def achat_batch(
        self,
        conversations: Iterable[Conversation],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[BatchResult]:
        return await self._achats(conversations, config, options).results()

    def stream_batch(
        self, prompts: Iterable[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> BatchStream[str]:
        """Continue prompts from any iterable, taken as slots come free; yields (index, token).

        The stream's `errors` maps the index of a prompt that failed to its error. With `n` there are n indexes for
        each prompt, one after the other.
        """
        return self._batch(prompts, config, options)

    def astream_batch(
        self,
        prompts: Iterable[str] | AsyncIterable[str],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncBatchStream[str]:
        return self._abatch(prompts, config, options)

    def decide(
        self,
        state: State,
        questions: Mapping[str, Question | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Decision:
        """Answer typed questions about a text, a conversation or other values, with the probability of every option.

        Each question is asked by itself, behind the state, which is evaluated once for all of them. So an answer
        depends neither on the other questions nor on their order and names. Nothing is generated.

        Args:
            state: A text; messages; or a mapping or sequence, which is shown as JSON. Messages are shown as JSON too.
            questions: `Noul`, `Choice` and `Score` by their names, or mappings of the same form.
            config: Only `timeout` (seconds, for the whole call) and `template_options` may be set.
            options: The same as keyword arguments.

        Raises:
            TypeError, ValueError: The state, a question or an option is wrong.
            UnsupportedError: The probabilities of the model's answers are not known; or the model reasons before it
                answers, and can't be kept from it.
            ContextLengthExceededError, GenerationTimeoutError, ServerError: As in `generate`.
        """
        decision = self._decide(self._deciding(state, questions, config, options))
        self._life.metrics = decision.metrics
        return decision

    async def adecide(
        self,
        state: State,
        questions: Mapping[str, Question | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Decision:
        check_asyncio(self._name)
        self._check_open()
        work = await off_loop(functools.partial(self._deciding, state, questions, config, options))
        decision = await self._adecide(work)
        self._life.metrics = decision.metrics
        return decision

    def infill(
        self, prefix: str, suffix: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> TokenStream:
        """Generate the text between `prefix` and `suffix`: capability "infill". Raises as `generate`."""
        return TokenStream(self, self._verified(self._infilling(prefix, suffix, config, options)))

    def ainfill(
        self, prefix: str, suffix: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTokenStream:
        """`infill` for `async for`; errors as with `agenerate`."""
        return AsyncTokenStream(self, self._infilling(prefix, suffix, config, options))

    def count_tokens(self, text: str) -> int:
        """How many tokens `text` is, without any that the model adds around a prompt."""
        raise UnsupportedError("count_tokens", self._name)

    async def acount_tokens(self, text: str) -> int:
        """`count_tokens`, off the event loop."""
        check_asyncio(self._name)
        return await in_thread(functools.partial(self.count_tokens, text))

    @property
    def metrics(self) -> GenerateMetrics:
        """Of the operation that finished last, whoever started it."""
        return self._life.metrics

    async def aclose(self) -> None:
        """`close`, off the event loop."""
        check_asyncio(self._name)
        await in_thread(self.close)

    @property
    def closed(self) -> bool:
        return self._life.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        name = self._life.name or getattr(self, "model_type", "")
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self._name}:{name}, {self.parallel} slots, {state}>"

    # ------------------------------------------------ requests, checked

    def _verify(self, request: Request) -> None:
        """To the author: check what takes long to check, such as a schema, and prepare what a check needs anyway.

        Called once for each request: at the call, or off the event loop where that was made on one. Raises TypeError,
        ValueError and UnsupportedError, as the call itself does. A batch has it called for all of its prompts at once,
        with a request that has no prompt.
        """

    def _ready(self, request: Request) -> None:
        """To the author: do what takes long before the first token, such as tokenizing, off the event loop.

        Called by asynchronous streams alone, after `_verify`; `_run` and `_start` see to it themselves.
        """

    @bounded_nesting()
    def _make_ready(self, request: Request) -> None:
        """All that comes before an asynchronous stream's first token. May be called in any thread."""
        request.verifying = True
        if request.to_come is not None:
            request.become(request.to_come())
        self._verify(request)
        request.verifying = False
        if not request.cancelled:
            self._ready(request)

    @bounded_nesting()
    def _conversation_to_come(
        self, messages: Conversation, config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        """`_conversation`, whose messages are read later, off the event loop, where that takes long."""
        turns = turns_of(messages)
        if are_read_at_once(turns):
            return self._conversation(turns, config, options)
        request = Request("chat", self._config(config, options))
        request.to_come = functools.partial(self._conversation, turns, config, options)
        return request

    async def _amake_ready(self, request: Request) -> None:
        if request.to_come is not None or self._takes_long(request):
            await off_loop(functools.partial(self._make_ready, request))
        else:
            self._make_ready(request)

    def _takes_long(self, request: Request) -> bool:
        """Whether `_verify` and `_ready` may hold an event loop for more than a millisecond or two."""
        kind = type(self)
        return kind._verify is not TextModel._verify or kind._ready is not TextModel._ready

    # ------------------------------------------------ batches, classify and decisions

    def _classify(self, call: ClassifyCall) -> list[ClassifyResult]:
        """Do what `classify` is called for. To the author: by default each prompt is continued by one token."""
        return _classified(self.batch_generate(call.prompts, self._classify_config(call)))

    async def _aclassify(self, call: ClassifyCall) -> list[ClassifyResult]:
        return _classified(await self.abatch_generate(call.prompts, self._classify_config(call)))

    def _deciding(
        self,
        state: State,
        questions: Mapping[str, Question | Mapping[str, Any]],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> Deciding:
        from .decisions.deciding import Deciding, checked

        return Deciding(state, questions, checked(self, config, options), self._name)

    def _decide(self, work: Deciding) -> Decision:
        """Answer the questions. To the author: by default they are asked of `classify`, in plain text."""
        from .decisions.deciding import by_classify

        return by_classify(self, work)

    async def _adecide(self, work: Deciding) -> Decision:
        from .decisions.deciding import aby_classify

        return await aby_classify(self, work)

    @property
    def _batch_width(self) -> int:
        """How many prompts of a batch are in flight at once."""
        return self.parallel

    def _batch(
        self, prompts: Iterable[str], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> BatchStream[str]:
        checked = self._raw_config(config, options)
        self._verify(Request("generate", checked))
        choices = Choices(checked)
        return self._batch_of(
            lambda prompt: self._generation(prompt, choices.config(), {}), choices.repeated(iterable(prompts))
        )

    def _batch_of(self, make_request: Callable[[str], Request], prompts: Iterable[str]) -> BatchStream[str]:
        """The batch of these prompts."""
        return BatchStream(self, make_request, prompts)

    def _check_chats(self) -> None:
        """To the author: raise UnsupportedError where the model has no chats."""

    def _chats(
        self, conversations: Iterable[Conversation], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> BatchStream[Conversation]:
        self._check_chats()
        checked = self._config(config, options)
        self._verify(Request("generate", checked))
        choices = Choices(checked)
        return BatchStream(
            self,
            bounded_nesting()(lambda one: self._verified(self._conversation(one, choices.config(), {}))),
            choices.repeated(conversations_of(conversations)),
        )

    def _achats(
        self, conversations: Iterable[Conversation], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> AsyncBatchStream[Conversation]:
        self._check_chats()
        checked = self._config(config, options)
        choices = Choices(checked)
        return AsyncBatchStream(
            self,
            lambda one: self._conversation_to_come(one, choices.config(), {}),
            choices.repeated(conversations_of(conversations)),
            self._template_request(checked),
        )

    def _abatch(
        self,
        prompts: Iterable[str] | AsyncIterable[str],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> AsyncBatchStream[str]:
        checked = self._raw_config(config, options)
        choices = Choices(checked)
        return self._abatch_of(
            lambda prompt: self._generation(prompt, choices.config(), {}),
            choices.repeated(iterable(prompts)),
            self._template_request(checked),
        )

    def _abatch_of(
        self,
        make_request: Callable[[str], Request],
        prompts: Iterable[str] | AsyncIterable[str],
        template: Request | None,
    ) -> AsyncBatchStream[str]:
        return AsyncBatchStream(self, make_request, prompts, template)

    def _template_request(self, config: GenerateConfig) -> Request | None:
        """What a batch verifies before its first prompt, if this model verifies anything."""
        return Request("generate", config) if type(self)._verify is not TextModel._verify else None

    # ------------------------------------------------ life

    def _check_open(self) -> None:
        if self._life.closed:
            raise ModelClosedError("the model is closed: load it again")
        if self._life.pid != os.getpid():
            raise ModelClosedError("the model belongs to the process this one was forked from: load it in this one")

    def _begin(self, request: Request) -> None:
        self._check_open()
        self._life.running.add(request)
        if self._life.closed:
            self._life.running.discard(request)
            self._check_open()

    def _end(self, request: Request) -> None:
        self._life.running.discard(request)
        self._life.metrics = request.metrics
        _telemetry.finished(self, request)

    def _measured(self, metrics: GenerateMetrics) -> None:
        """To the author: called at the end of `embed`, which has no Request, it says what the call has cost."""
        self._life.metrics = metrics
        _telemetry.measured(metrics)


_telemetry.observe(TextModel)


def _classified(results: list[BatchResult]) -> list[ClassifyResult]:
    for result in results:
        if result.error is not None:
            raise result.error
    return [ClassifyResult(result.tokens[0] if result.tokens else Token("")) for result in results]


# ---------------------------------------------------------------- optional interfaces


@runtime_checkable
class BatchModel(Protocol):
    """Streams many prompts at once. Every TextModel does."""

    def stream_batch(
        self, prompts: Iterable[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[tuple[int, Token]]: ...


@runtime_checkable
class StatsModel(Protocol):
    """Keeps statistics over its operations: capability "stats"."""

    def stats(self) -> GenerateStats: ...


@runtime_checkable
class EmbeddingModel(Protocol):
    """Turns texts into vectors: capability "embeddings"."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text, of length `info.hidden_size`."""
        ...

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]: ...


@runtime_checkable
class RankModel(Protocol):
    """Ranks documents by a query: capability "rerank"."""

    def rerank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """The documents' places and scores, the best first."""
        ...

    async def arerank(self, query: str, documents: Sequence[str]) -> list[Ranked]: ...
