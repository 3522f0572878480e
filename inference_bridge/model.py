# SPDX-License-Identifier: Apache-2.0
"""The contract: `TextModel`, and what a model may offer beyond it.

The author of a backend writes `info`, `capabilities`, `close`, and one method that turns
a checked request into tokens: `_run`, or `_arun` where the engine is asynchronous. All
else a caller uses is here, made from those. An engine that can do better overrides.
"""

from __future__ import annotations

import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Unpack, runtime_checkable

from . import _telemetry
from ._arguments import as_message, check_tool_choice, conversations_of, decides_the_end, turns_of
from ._concurrency.background import in_thread, off_loop
from ._concurrency.loops import check_asyncio
from ._concurrency.mailbox import Sink
from ._life import Life, closing
from .batch import AsyncBatchStream, BatchStream
from .errors import ModelClosedError, UnsupportedError
from .options import DEFAULTS, GenerateConfig, GenerateOptions
from .request import Request
from .streams import AsyncTokenStream, TokenStream
from .types import BatchResult, ClassifyResult, GenerateMetrics, Message, ModelInfo, Token

if TYPE_CHECKING:
    from typing import Self

    from .deciding import Deciding, State
    from .decisions import Decision, Question
    from .stats import GenerateStats

_CAPABILITY_OF = {
    "json_schema": "json_schema",
    "tools": "tools",
    "tool_choice": "tools",
    "logprobs": "logprobs",
    "reasoning": "reasoning",
}
"""Options that a capability stands for; the others are named in `TextModel.options`."""

_ALWAYS = frozenset({"max_tokens", "timeout", "return_logits"})
"""Options the base class sees to itself."""

_OF_CHAT = ("tools", "tool_choice", "reasoning", "template_options")
"""Options that say how to render a conversation: a raw prompt has no use for them."""

_OFF: Mapping[str, Any] = {
    "logprobs": 0,
    "return_logits": False,
    "stop": (),
    "stop_tokens": (),
    "tools": (),
    "template_options": {},
    "logit_bias": {},
    "min_tokens": 0,
}
"""Values that ask for nothing: every model honours them."""


Conversation: TypeAlias = Sequence[Message | Mapping[str, Any]]
"""What `chat` answers."""

FEW_MESSAGES = 256
"""Messages that are read in less than a millisecond or two, and so on the event loop."""

SHORT_TEXT = 4096
"""Characters that are tokenized in less than a millisecond or two, and so on the event loop."""


class TextModel(ABC):
    """A loaded language model. Every method may be called from any thread and event loop."""

    model_type: str = ""
    """Architecture id, such as "llama", "gemma3", "qwen3"."""

    backend: str = ""
    """The backend's name, for messages."""

    options: frozenset[str] = frozenset()
    """The `GenerateConfig` fields this model honours, beside max_tokens, timeout and what
    its capabilities stand for. Setting another raises UnsupportedError."""

    wrapped: bool = False
    """True: a model of another library, which is sent the options that were set and no defaults. Some such models
    refuse a temperature."""

    parallel: int = 1
    """How many operations it runs at once; the others wait their turn."""

    defaults: GenerateConfig = GenerateConfig()
    """Options that hold where the caller sets none: those of the configured name it was loaded by."""

    recommended: GenerateConfig = GenerateConfig()
    """The sampling that the model's own files recommend. The adapters start from it; this contract,
    whose default is greedy, does not."""

    info: ModelInfo
    capabilities: frozenset[str]
    """What this loaded model can do: "chat", "tools", "json_schema", "images", "reasoning", "logits",
    "logprobs", "token_ids", "embeddings", "stats"."""

    _life: Life

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
        """Generate: yield Tokens, return at the end. Called in the consumer's thread, or one of ours.

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
        turns = turns_of(messages)
        if len(turns) <= FEW_MESSAGES:
            return AsyncTokenStream(self, self._conversation(turns, config, options))
        request = Request("chat", self._config(config, options))
        request.to_come = functools.partial(self._conversation, turns, config, options)
        return AsyncTokenStream(self, request)

    def classify(
        self,
        prompts: Sequence[str],
        config: GenerateConfig | None = None,
        *,
        labels: Sequence[str] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[ClassifyResult]:
        """Predict what follows each prompt: the likeliest token, or the likeliest of `labels`."""
        return _classified(self.batch_generate(prompts, self._classify_config(config, labels, options)))

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
        return _classified(await self.abatch_generate(prompts, self._classify_config(config, labels, options)))

    def batch_generate(
        self, prompts: Sequence[str], config: GenerateConfig | None = None, **options: Unpack[GenerateOptions]
    ) -> list[BatchResult]:
        """Continue every prompt, `parallel` of them at once. Results are in the prompts' order.

        A prompt that fails has `error` set and fails no other.
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

        A conversation that fails has `error` set and fails no other. Raises as `chat` for the options.
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

        The stream's `errors` maps the index of a prompt that failed to its error.
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
        decision = await self._adecide(self._deciding(state, questions, config, options))
        self._life.metrics = decision.metrics
        return decision

    def count_tokens(self, text: str) -> int:
        """How many tokens `text` is, without any that the model adds around a prompt."""
        raise UnsupportedError("count_tokens", self._name)

    async def acount_tokens(self, text: str) -> int:
        """`count_tokens`, off the event loop."""
        check_asyncio(self._name)
        return await in_thread(functools.partial(self.count_tokens, text))

    def _check_text(self, text: Any) -> None:
        """To the author: what `count_tokens` checks first. Raises TypeError or ModelClosedError."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        self._check_open()

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

    def _verify(self, request: Request) -> None:  # noqa: B027
        """To the author: check what takes long to check, such as a schema, and prepare what a check needs anyway.

        Called once for each request: at the call, or off the event loop where that was made on one. Raises TypeError,
        ValueError and UnsupportedError, as the call itself does. A batch has it called for all of its prompts at once,
        with a request that has no prompt.
        """

    def _ready(self, request: Request) -> None:  # noqa: B027
        """To the author: do what takes long before the first token, such as tokenizing, off the event loop.

        Called by asynchronous streams alone, after `_verify`; `_run` and `_start` see to it themselves.
        """

    def _verified(self, request: Request) -> Request:
        begun = time.monotonic()
        self._verify(request)
        request.spent = time.monotonic() - begun
        return request

    def _make_ready(self, request: Request) -> None:
        """All that comes before an asynchronous stream's first token. May be called in any thread."""
        request.verifying = True
        if request.to_come is not None:
            request.become(request.to_come())
        self._verify(request)
        request.verifying = False
        if not request.cancelled:
            self._ready(request)

    async def _amake_ready(self, request: Request) -> None:
        if request.to_come is not None or self._takes_long(request):
            await off_loop(functools.partial(self._make_ready, request))
        else:
            self._make_ready(request)

    def _takes_long(self, request: Request) -> bool:
        """Whether `_verify` and `_ready` may hold an event loop for more than a millisecond or two."""
        kind = type(self)
        return kind._verify is not TextModel._verify or kind._ready is not TextModel._ready

    # ------------------------------------------------ requests, made

    def _generation(self, prompt: str, config: GenerateConfig | None, options: Mapping[str, Any]) -> Request:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a str, not {type(prompt).__name__}")
        return Request("generate", self._raw_config(config, options), prompt=prompt)

    def _conversation(
        self, messages: Sequence[Message | Mapping[str, Any]], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        turns = tuple(as_message(message) for message in turns_of(messages))
        if not turns:
            raise ValueError("messages is empty: chat() answers at least one message")
        checked = self._config(config, options)
        check_tool_choice(checked)
        for turn in turns:
            for attachment in turn.attachments:
                kind = attachment.type.split("/")[0] + "s"
                if kind not in self.capabilities:
                    raise UnsupportedError(f"{attachment.type} attachments", self._name)
        return Request("chat", checked, messages=turns)

    def _raw_config(self, config: GenerateConfig | None, options: Mapping[str, Any]) -> GenerateConfig:
        """`_config` of an operation on raw prompts. Of the model's defaults, chats' own don't concern it."""
        defaults = replace(self.defaults, **dict.fromkeys(_OF_CHAT))
        checked = self._config(config, options, defaults=defaults)
        for name in _OF_CHAT:
            value = getattr(checked, name)
            if value is not None and value != _OFF.get(name):
                raise ValueError(f"{name} is an option of chat(): generate() takes the prompt as it is")
        return checked

    def _config(
        self,
        config: GenerateConfig | None,
        options: Mapping[str, Any],
        *,
        defaults: GenerateConfig | None = None,
        logits: bool = False,
    ) -> GenerateConfig:
        """The caller's config with the options over it, every set field of which is honoured."""
        if config is not None and not isinstance(config, GenerateConfig):
            raise TypeError(f"config must be a GenerateConfig, not {type(config).__name__}")
        self._check_open()
        asked = (config or GenerateConfig()).with_options(options)
        merged = asked.over(defaults or self.defaults)
        if grammar := decides_the_end(merged):
            if asked.stop or asked.stop_tokens:
                stop = "stop" if asked.stop else "stop_tokens"
                why = "it could cut the answer short: leave it out"
                raise UnsupportedError(f"{stop} with {grammar}", self._name, why)
            merged = replace(merged, stop=None, stop_tokens=None)
        for name, value in merged.set_fields().items():
            if name in _OFF and value == _OFF[name]:
                continue
            capability = _CAPABILITY_OF.get(name)
            honoured = capability in self.capabilities if capability else name in self.options or name in _ALWAYS
            if not honoured:
                raise UnsupportedError(name, self._name)
        if merged.min_tokens and not self.wrapped:
            merged.over(DEFAULTS)  # raises ValueError where the default max_tokens is less
        if merged.return_logits and not (logits and "logits" in self.capabilities):
            raise UnsupportedError("return_logits", self._name, "logits come from classify(), where a model has them")
        return self._checked(merged)

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        """A backend's own part of it: `config`, or what it makes of that. Raises UnsupportedError."""
        return config

    def _classify_config(
        self, config: GenerateConfig | None, labels: Sequence[str] | None, options: Mapping[str, Any]
    ) -> GenerateConfig:
        """One token, the likeliest."""
        if labels is not None:
            raise UnsupportedError("labels in classify", self._name)
        config = self._raw_config(config, options)
        greedy = 0.0 if "temperature" in self.options else None  # what can't be set is not sent
        return GenerateConfig(max_tokens=1, temperature=greedy).over(config)

    def _deciding(
        self,
        state: State,
        questions: Mapping[str, Question | Mapping[str, Any]],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> Deciding:
        from .deciding import Deciding, checked

        return Deciding(state, questions, checked(self, config, options), self._name)

    def _decide(self, work: Deciding) -> Decision:
        """Answer the questions. To the author: by default they are asked of `classify`, in plain text."""
        from .deciding import by_classify

        return by_classify(self, work)

    async def _adecide(self, work: Deciding) -> Decision:
        from .deciding import aby_classify

        return await aby_classify(self, work)

    @property
    def _batch_width(self) -> int:
        """How many prompts of a batch are in flight at once."""
        return self.parallel

    @property
    def _name(self) -> str:
        return self.backend or type(self).__name__

    def _batch(
        self, prompts: Iterable[str], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> BatchStream[str]:
        checked = self._raw_config(config, options)
        self._verify(Request("generate", checked))
        return BatchStream(self, lambda prompt: self._generation(prompt, checked, {}), _iterable(prompts))

    def _check_chats(self) -> None:  # noqa: B027 - most models have chats
        """To the author: raise UnsupportedError where the model has no chats."""

    def _chats(
        self, conversations: Iterable[Conversation], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> BatchStream[Conversation]:
        self._check_chats()
        checked = self._config(config, options)
        self._verify(Request("generate", checked))
        return BatchStream(
            self, lambda one: self._verified(self._conversation(one, checked, {})), conversations_of(conversations)
        )

    def _achats(
        self, conversations: Iterable[Conversation], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> AsyncBatchStream[Conversation]:
        self._check_chats()
        checked = self._config(config, options)
        return AsyncBatchStream(
            self,
            lambda one: self._conversation(one, checked, {}),
            conversations_of(conversations),
            self._template_request(checked),
        )

    def _abatch(
        self,
        prompts: Iterable[str] | AsyncIterable[str],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> AsyncBatchStream[str]:
        checked = self._raw_config(config, options)
        return AsyncBatchStream(
            self,
            lambda prompt: self._generation(prompt, checked, {}),
            _iterable(prompts),
            self._template_request(checked),
        )

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
        with self._life.lock:
            self._check_open()
            self._life.running.add(request)

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


def strings(value: Sequence[str], name: str) -> list[str]:
    """`value` as a list of str; TypeError naming the place of one that is none."""
    items = list(_iterable(value, name))
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"{name}[{index}] must be a str, not {type(item).__name__}")
    return items


def _iterable(prompts: Any, name: str = "prompts") -> Any:
    if isinstance(prompts, str) or not isinstance(prompts, Iterable | AsyncIterable):
        raise TypeError(f"{name} must be an iterable of str, not {type(prompts).__name__}")
    return prompts


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
