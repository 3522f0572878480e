# SPDX-License-Identifier: Apache-2.0
"""The contract: `TextModel`, and the optional interfaces of models.

The author of a backend writes `info`, `capabilities`, `close`, and one method that turns a checked request into tokens:
`_run`, or `_arun` if the engine is asynchronous. This class implements everything else with these. A backend may
override any method with a better implementation.
"""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from . import _telemetry
from ._calls.arguments import are_read_at_once, bounded_nesting, conversations_of, iterable, strings, turns_of
from ._calls.choices import Choices
from ._calls.classify import ClassifyCall, classified
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
from .types import BatchResult, ClassifyResult, GenerateMetrics, Message, ModelInfo, Token

if TYPE_CHECKING:
    from typing import Self

    from .decisions import Decision, Question
    from .decisions.deciding import Deciding, State

Conversation: TypeAlias = Sequence[Message | Mapping[str, Any]]
"""A conversation, as `chat` accepts it."""

SHORT_TEXT = 4096
"""Length in characters up to which a text is tokenized on the event loop: that takes less than 2 ms."""


class TextModel(RequestMaker):
    """A loaded language model. Every method may be called from any thread and event loop."""

    model_type: str = ""
    """Architecture id, such as "llama", "gemma3", "qwen3"."""

    parallel: int = 1
    """Number of operations that run at once. Further operations wait."""

    recommended: GenerateConfig = GenerateConfig()
    """The sampling options that the model's files recommend. The adapters use them as defaults. This contract does
    not: its default is greedy."""

    info: ModelInfo
    _life: Life

    if not TYPE_CHECKING:  # otherwise a type checker would accept any name

        def __getattr__(self, name):
            if name in OPTIONAL:
                raise AbsentOperationError(name, self._name, OPTIONAL[name])
            return object.__getattribute__(self, name)  # raises the original AttributeError

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Here, and not in __init__, so that a subclass need not call super().__init__().
        self = super().__new__(cls)
        if cls._run is TextModel._run and cls._arun is TextModel._arun:
            raise TypeError(f"{cls.__name__} must define _run or _arun")
        self._life = Life()
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrapped = closing(cls.close)  # it may come from a mixin that does not derive from this class
        if wrapped is not cls.close:
            setattr(cls, "close", wrapped)  # noqa: B010 - a method, replaced on purpose
        _telemetry.observe(cls)

    # ------------------------------------------------ what an author writes

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory, threads and processes. Idempotent. Running streams end with ModelClosedError.

        To the author: the base class calls your `close` only once. Before that, it refuses new operations and cancels
        the running ones, but each of them may still be in its current step.
        """

    def _run(self, request: Request) -> Iterator[Token]:
        """Generate: yield Tokens, return at the end. Called in the consumer's thread, or in a thread of this package.

        The caller stops iterating between two tokens if the request is cancelled or its time is over. If you wait for
        something that may take long, wait at most `request.remaining()` seconds, and stop waiting when the callback
        that you passed to `request.on_cancel` is called.
        """
        from ._concurrency.threads import run_in_thread_loop

        return run_in_thread_loop(self._arun, request)

    def _arun(self, request: Request) -> AsyncIterator[Token]:
        """The async variant of `_run`. Define one of the two: the other is implemented with it.

        An asynchronous generator need not check the request. If it is cancelled or its time is over, the expression
        that the generator awaits raises asyncio.CancelledError.
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
        """`_start`, called on an event loop. An asynchronous `_arun` runs on that loop."""
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
        """Continue a text as it is, without a chat template; nothing in the output is parsed.

        Args:
            prompt: The text to continue.
            config: How to generate. A field that is not set has the default of the contract: greedy, 256 tokens.
            options: The fields of `config`, by name. They replace those of `config`.

        Returns:
            A stream of tokens: iterate it, or call `text()` or `result()`. Generation starts with the first token.

        Raises:
            TypeError, ValueError: An argument is wrong.
            UnsupportedError: The backend or this model does not support an option.
            ModelClosedError: The model was closed.
            GenerationError: From the stream: generation failed. Its subclasses say why.
        """
        return TokenStream(self, self._verified(self._generation(prompt, config, options)))

    def agenerate(
        self, prompt: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTokenStream:
        """`generate` for `async for`. Slow checks, such as of a schema, run in a thread: their TypeError, ValueError or
        UnsupportedError is raised when the stream is first awaited."""
        return AsyncTokenStream(self, self._generation(prompt, config, options))

    @bounded_nesting()
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TokenStream:
        """Answer a conversation, rendered with the model's own chat template.

        Args:
            messages: `Message`s, or mappings with role and content.
            config: As in `generate`.
            options: The fields of `config`, by name.

        Returns:
            A stream of tokens: text, reasoning and tool calls, each of its `kind`. Raises as `generate`.
        """
        return TokenStream(self, self._verified(self._conversation(messages, config, options)))

    def achat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """`chat` for `async for`, with the same arguments. Raises as `agenerate`."""
        return AsyncTokenStream(self, self._deferred_conversation(messages, config, options))

    def classify(
        self,
        prompts: Sequence[str],
        config: GenerateConfig | None = None,
        *,
        labels: Sequence[str] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[ClassifyResult]:
        """Predict how each prompt continues, without generating: the most likely token, or the most likely label.

        Args:
            prompts: Texts, used as they are, without a chat template.
            config: `logprobs`, `timeout` (for each evaluation) and, with the capability "logits", `return_logits`.
            labels: Possible continuations. `scores` gives the probability of each.
            options: The fields of `config`, by name.

        Returns:
            One result for each prompt, in their order.

        Raises:
            UnsupportedError: The backend can't return the probabilities of these labels, or does not support an option.
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
        """`classify`, asynchronously. Arguments, result and errors are the same."""
        check_asyncio(self._name)
        if type(self).classify is not TextModel.classify:  # the subclass overrides it, and its method blocks
            return await in_thread(functools.partial(self.classify, prompts, config, labels=labels, **options))
        return await self._aclassify(ClassifyCall(prompts, config, labels, options))

    def batch_generate(
        self, prompts: Sequence[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> list[BatchResult]:
        """Continue every prompt, `parallel` of them at once.

        Args:
            prompts: The texts to continue.
            config: As in `generate`. With `n`, each prompt has n results, one after the other.
            options: The fields of `config`, by name.

        Returns:
            The results, in the order of the prompts. If a prompt fails, its result has `error` set; the others are not
            affected. A wrong option raises as in `generate`.
        """
        return self._batch(strings(prompts, "prompts"), config, options).results()

    async def abatch_generate(
        self, prompts: Sequence[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> list[BatchResult]:
        """`batch_generate`, asynchronously. Arguments, result and errors are the same."""
        return await self._abatch(strings(prompts, "prompts"), config, options).results()

    def chat_batch(
        self,
        conversations: Iterable[Conversation],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[BatchResult]:
        """Answer every conversation as `chat` does, `parallel` of them at once.

        Args:
            conversations: The conversations, each as in `chat`.
            config: As in `generate`. With `n`, each conversation has n results, one after the other.
            options: The fields of `config`, by name.

        Returns:
            The results, in the order of the conversations, with errors as in `batch_generate`.
        """
        return self._chats(conversations, config, options).results()

    async def achat_batch(
        self,
        conversations: Iterable[Conversation],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[BatchResult]:
        """`chat_batch`, asynchronously. Arguments, result and errors are the same."""
        return await self._achats(conversations, config, options).results()

    def stream_batch(
        self, prompts: Iterable[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> BatchStream[str]:
        """Continue prompts from any iterable, and stream the tokens of all.

        Args:
            prompts: The texts to continue. Each is read when a slot is free.
            config: As in `generate`. With `n`, each prompt has n indexes, one after the other.
            options: The fields of `config`, by name.

        Returns:
            A stream of pairs (index, token). Its `errors` maps the index of a failed prompt to its error.
        """
        return self._batch(prompts, config, options)

    def astream_batch(
        self,
        prompts: Iterable[str] | AsyncIterable[str],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncBatchStream[str]:
        """`stream_batch` for `async for`. The prompts may come from an asynchronous iterable."""
        return self._abatch(prompts, config, options)

    def decide(
        self,
        state: State,
        questions: Mapping[str, Question | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Decision:
        """Return the answers to typed questions about a text or other values, with the probability of every option.

        Each question has its own prompt: the state, then the question. The state is evaluated once for all questions.
        An answer depends neither on the other questions nor on their order and names. Nothing is generated.

        Args:
            state: A text; messages; or a mapping or sequence. Messages, mappings and sequences are shown as JSON.
            questions: `Noul`, `Choice` and `Score` by their names, or mappings of the same form.
            config: Only `timeout` (seconds, for the whole call) and `template_options` may be set.
            options: The fields of `config`, by name.

        Raises:
            TypeError, ValueError: The state, a question or an option is wrong.
            UnsupportedError: The probabilities of the model's answers are not known; or the model reasons before it
                answers, and its reasoning can't be switched off.
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
        """`decide`, asynchronously. Arguments, result and errors are the same."""
        check_asyncio(self._name)
        self._check_open()
        work = await off_loop(functools.partial(self._deciding, state, questions, config, options))
        decision = await self._adecide(work)
        self._life.metrics = decision.metrics
        return decision

    def infill(
        self, prefix: str, suffix: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> TokenStream:
        """Generate the text between two others. The model needs the capability "infill".

        Args:
            prefix: The text before.
            suffix: The text after.
            config: As in `generate`.
            options: The fields of `config`, by name.

        Returns:
            A stream of tokens. Raises as `generate`.
        """
        return TokenStream(self, self._verified(self._infilling(prefix, suffix, config, options)))

    def ainfill(
        self, prefix: str, suffix: str, config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTokenStream:
        """`infill` for `async for`, with the same arguments. Raises as `agenerate`."""
        return AsyncTokenStream(self, self._infilling(prefix, suffix, config, options))

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`, without those that the model adds around a prompt, such as BOS.

        Raises:
            UnsupportedError: The backend has no access to the tokenizer.
        """
        raise UnsupportedError("count_tokens", self._name)

    async def acount_tokens(self, text: str) -> int:
        """`count_tokens`, in a thread. Argument, result and errors are the same."""
        check_asyncio(self._name)
        return await in_thread(functools.partial(self.count_tokens, text))

    @property
    def metrics(self) -> GenerateMetrics:
        """The metrics of the operation that finished last, no matter who started it."""
        return self._life.metrics

    async def aclose(self) -> None:
        """`close`, in a thread."""
        check_asyncio(self._name)
        await in_thread(self.close)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
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
        """To the author: run the slow checks of a request, such as of its schema. Keep what they compute for `_run`.

        Called once for each request: by sync methods in the caller's thread, by their async variants in another thread.
        Raises TypeError, ValueError and UnsupportedError. A batch calls it once for all of its prompts, with a request
        that has no prompt.
        """

    def _ready(self, request: Request) -> None:
        """To the author: do the slow work that comes before the first token, such as tokenizing.

        Called only by asynchronous streams, in a thread, after `_verify`. `_run` and `_start` do this work themselves.
        """

    @bounded_nesting()
    def _make_ready(self, request: Request) -> None:
        """Do the work that comes before the first token of an asynchronous stream. May be called in any thread."""
        request.verifying = True
        if request.to_come is not None:
            request.become(request.to_come())
        self._verify(request)
        request.verifying = False
        if not request.cancelled:
            self._ready(request)

    @bounded_nesting()
    def _deferred_conversation(
        self, messages: Conversation, config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        """`_conversation`, but if reading the messages takes long, they are read later, in a thread."""
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
        """Return whether `_verify` and `_ready` may take more than 2 ms, too long for an event loop."""
        kind = type(self)
        return kind._verify is not TextModel._verify or kind._ready is not TextModel._ready

    # ------------------------------------------------ batches, classify and decisions

    def _classify(self, call: ClassifyCall) -> list[ClassifyResult]:
        """Do the work of `classify`. To the author: the default implementation generates one token for each prompt."""
        return classified(self.batch_generate(call.prompts, self._classify_config(call)))

    async def _aclassify(self, call: ClassifyCall) -> list[ClassifyResult]:
        return classified(await self.abatch_generate(call.prompts, self._classify_config(call)))

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
        """Answer the questions. To the author: the default implementation calls `classify` with plain text."""
        from .decisions.deciding import by_classify

        return by_classify(self, work)

    async def _adecide(self, work: Deciding) -> Decision:
        from .decisions.deciding import aby_classify

        return await aby_classify(self, work)

    @property
    def _batch_width(self) -> int:
        """Number of prompts of a batch that run at once."""
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
        """Return the batch of these prompts."""
        return BatchStream(self, make_request, prompts)

    def _check_chats(self) -> None:
        """To the author: raise UnsupportedError if the model does not support chat."""

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
            lambda one: self._deferred_conversation(one, choices.config(), {}),
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
        """Return the request that a batch verifies before its first prompt; None if this model verifies nothing."""
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
        """To the author: call this at the end of `embed`, which has no Request, with the metrics of the call."""
        self._life.metrics = metrics
        _telemetry.measured(metrics)


_telemetry.observe(TextModel)
