# SPDX-License-Identifier: Apache-2.0
"""A model that a server runs, as a TextModel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from functools import partial
from typing import Any

from ..._calls.arguments import check_token_ids, decides_the_end
from ..._calls.classify import ClassifyCall
from ..._concurrency.mailbox import AsyncMailbox, Sink
from ..._concurrency.threads import start_in_task
from ...authoring.answer_checks import schema_validator
from ...batch import AsyncBatchStream, BatchStream
from ...chat.schema_prompt import with_schema
from ...decisions import Decision
from ...decisions.deciding import Deciding
from ...errors import ModelClosedError, ServerError, UnsupportedError
from ...model import TextModel
from ...options import GenerateConfig, is_forced
from ...request import Request
from ...stats import GenerateStats, StatsRecorder
from ...types import ClassifyResult, Message, ModelInfo, Token
from .facts import ServerFacts
from .jobs import Fetched, Rendered, Streamed, measure
from .prompt_lists import AsyncListedBatch, ListedBatch
from .protocol import infill, json_answer, llama_api, ollama_api, openai_api, rendered_chat
from .protocol.gbnf import check_choices, choices_grammar
from .protocol.llama_schema import check_schema
from .routing.pool import MeasuredRoute, Pool
from .routing.width import Width
from .scoring.classify import Classification
from .scoring.decisions import DecisionEndpoint, ServerDecision
from .servers import SERVERS
from .transport import transfer
from .transport.call import Call, Reader, body
from .transport.connection import Connection
from .transport.route import Route

_AS_IN_CHATS = ("vllm", "sglang", "tabbyapi")
"""Servers that support schemas and stop tokens in completions too."""

_OF_LISTS = frozenset({"prompt", "n", "best_of", "stream", "stream_options"})
"""Fields that change the number of answers to a list of prompts, or their form."""

_ANSWER = GenerateConfig()
"""The config of requests that generate no text."""


class HttpModel(TextModel):
    """A model on a llama-server or an OpenAI-compatible server.

    When the model is closed, it closes the last connection that `connect` returned.

    Args:
        backend: The backend's name, for messages.
        connect: The Pool of several servers of the model, or a function that returns the connection. The function is
            called before the first request of every operation, in the caller's thread.
        facts: The properties of the server.
        extra: Fields that are added unchanged to the body of every generation request.
        unset: The values that are sent for fields that neither the caller nor `defaults` sets.
        slots: Number of operations of a batch that run at once. 0: as many as the servers have slots, or adaptive.
        explain: Converts a connection error, before or during the answer, into the error that the caller should see.
            If it returns another error than its argument, that error is raised at once, without another attempt.
        blocks: Whether `connect` may block, for example start a process. Then coroutines call it in a thread.
    """

    def __init__(
        self,
        backend: str,
        connect: Callable[[], Connection] | Pool,
        *,
        facts: ServerFacts,
        extra: Mapping[str, Any] | None = None,
        unset: GenerateConfig = _ANSWER,
        slots: int = 0,
        explain: transfer.Explain = transfer.unexplained,
        blocks: bool = False,
    ) -> None:
        self.backend = backend
        self._pool = connect if isinstance(connect, Pool) else None
        self._get_connection = connect.first if isinstance(connect, Pool) else connect
        self._blocks = blocks
        self.facts = replace(facts, slots=slots, slots_known=True) if slots else facts
        self._width = None if self.facts.slots_known else Width(facts.slots)
        self._extra = dict(extra or {})
        self._unset = unset
        self._explain = explain
        self._stats = StatsRecorder()
        self._endpoint = DecisionEndpoint()
        self._held = _Held()
        self._release = weakref.finalize(self, self._held.close if self._pool is None else self._pool.close)
        # At exit the kernel closes the connections. A daemon thread that reads one would print an error otherwise.
        self._release.atexit = False

    # ------------------------------------------------ what the server is

    @property
    def info(self) -> ModelInfo:  # type: ignore[override]
        return self.facts.info

    @property
    def model_type(self) -> str:  # type: ignore[override]
        return self.facts.model_type

    @property
    def capabilities(self) -> frozenset[str]:  # type: ignore[override]
        return self.facts.capabilities

    @property
    def options(self) -> frozenset[str]:  # type: ignore[override]
        return self.facts.options

    @property
    def parallel(self) -> int:  # type: ignore[override]
        return self.facts.slots if self._width is None else self._width.limit

    def close(self) -> None:
        self._release()

    def stats(self) -> GenerateStats:
        """Return the statistics of all operations of this model, without those of other programs on the server."""
        return self._stats.stats()

    def _end(self, request: Request) -> None:
        super()._end(request)
        job = request.prepared
        if not (isinstance(job, Fetched) and job.call.path == "/tokenize"):  # not an operation of the caller
            self._stats.record(request.metrics, request.finish_reason)

    async def aclose(self) -> None:
        owned = self._held.last if self._pool is None else self._pool
        await super().aclose()
        if owned is not None:
            await owned.aclose()

    def count_tokens(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        self._check_open()
        facts = self.facts
        if facts.native:
            answer = self._fetch("/tokenize", {"content": text, "add_special": False, "parse_special": False}, text)
            return self._counted(answer, "tokens")
        if facts.server in ("vllm", "sglang"):
            answer = self._fetch("/tokenize", {"prompt": text, "add_special_tokens": False}, text)
            return self._counted(answer, "count")
        if facts.server == "llama-cpp-python":  # it also counts the tokens that it adds around a text
            with_text, around = (
                self._counted(self._fetch("/extras/tokenize/count", {"input": one}, text), "count")
                for one in (text, "")
            )
            return with_text - around
        if facts.server == "tabbyapi":
            fields = {"text": text, "add_bos_token": False, "encode_special_tokens": False}
            return self._counted(self._fetch(facts.api + "/token/encode", fields, text), "length")
        raise UnsupportedError("count_tokens", self._name, "the server has no endpoint for it")

    # ------------------------------------------------ classify

    def _classify(self, call: ClassifyCall) -> list[ClassifyResult]:
        """Predict one token for each prompt. `timeout` applies to each request.

        llama-server and vLLM return the probability of every label. On other servers a label must be one token, and
        one of the most likely tokens that the server lists; otherwise UnsupportedError is raised.
        """
        work = self._classification(call)
        for step in work.steps():
            _raise_first(BatchStream(self, self._classify_request(work), step).results())
        return work.results()

    async def _aclassify(self, call: ClassifyCall) -> list[ClassifyResult]:
        work = self._classification(call)
        for step in work.steps():
            _raise_first(await AsyncBatchStream(self, self._classify_request(work), step).results())
        return work.results()

    def _classification(self, call: ClassifyCall) -> Classification:
        checked = self._config(call.config, call.options, logits=True)
        if checked.return_logits:
            raise UnsupportedError("return_logits", self._name, "servers send probabilities, not logits")
        call.check_options(self._name)
        texts, labels = call.texts(), call.label_texts()
        return Classification(
            self.facts,
            texts,
            labels and [labels] * len(texts),
            top=checked.logprobs or 0,
            timeout=checked.timeout,
            backend=self._name,
        )

    def _classify_request(self, work: Classification | ServerDecision) -> Callable[[Any], Request]:
        def request(task: Any) -> Request:
            made = Request("generate", GenerateConfig(timeout=work.timeout), spent=work.spent)
            path, fields, private, take = task
            made.prepared = Fetched(self._call(path, fields, private), take)
            return made

        return request

    # ------------------------------------------------ decide

    def _decide(self, work: Deciding) -> Decision:
        decision = ServerDecision(self.facts, work, self._endpoint)
        for step in decision.steps():
            batch = BatchStream(self, self._classify_request(decision), step)
            decision.take(batch.results())
        return decision.result()

    async def _adecide(self, work: Deciding) -> Decision:
        decision = ServerDecision(self.facts, work, self._endpoint)
        for step in decision.steps():
            batch = AsyncBatchStream(self, self._classify_request(decision), step)
            decision.take(await batch.results())
        return decision.result()

    # ------------------------------------------------ requests

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        check_token_ids(config, self.facts.info.vocab_size)
        if config.json_schema is not None:
            schema_validator(config.json_schema)  # raises ValueError for an invalid schema
        if self.facts.server == "vllm" and any(abs(bias) > 100 for bias in (config.logit_bias or {}).values()):
            raise UnsupportedError("logit_bias beyond -100 and 100", self._name, "vLLM would take it for -100 or 100")
        if self.facts.server == "koboldcpp" and config.max_tokens == -1:
            raise UnsupportedError("max_tokens=-1", self._name, "KoboldCpp has a limit of its own where none is sent")
        if self.facts.server == "llama.cpp":
            if config.json_schema is not None:
                check_schema(config.json_schema, "json_schema", self._name)
            if is_forced(config.tool_choice):
                for tool in rendered_chat.callable_tools(config):
                    check_schema(tool.parameters, f"the parameters of {tool.name}", self._name)
            if config.choices is not None:
                check_choices(config.choices, self._name)
        return config.over(self._unset)

    def _why_not(self, option: str) -> str:
        kind = SERVERS[self.facts.server]
        if option == "reasoning_budget":
            told = "the model does not reason" if option in kind.options else f"{kind.title} has no such option"
            return f"{told}: leave it out, or bound the whole answer with max_tokens"
        if option == "infill" and "infill" not in kind.reported:
            return f"{kind.title} has no endpoint for it that is known: use a llama-server, Ollama or llama_cpp"
        if option in ("regex", "grammar") and self.facts.server == "llama.cpp":
            return f"a llama-server may ignore {option} without an error: use choices, or llama_server or llama_cpp"
        return ""

    def _as_sent(self, config: GenerateConfig) -> GenerateConfig:
        schema = config.json_schema
        if schema is not None:
            return replace(config, json_schema=self._sent_schema(schema))
        if self.facts.server == "llama.cpp" and (grammar := self._sent_grammar(config)) is not None:
            return replace(config, regex=None, choices=None, grammar=grammar)
        return config

    def _sent_grammar(self, config: GenerateConfig) -> str | None:
        """Return the grammar to send to a llama-server for `choices`. None: they are not set."""
        return None if config.choices is None else choices_grammar(config.choices)

    def _sent_schema(self, schema: Mapping[str, Any], *, calls: bool = False) -> Mapping[str, Any]:
        """Return the schema to send in place of `schema`. `calls`: it is the schema of tool calls.

        A subclass may change the schema for its server.
        """
        return schema

    def _checking(self, reader: Callable[[Request], Reader]) -> Callable[[Request], Reader]:
        """Return a maker of readers that compare the answer with json_schema. A subclass may compare it elsewhere."""
        return json_answer.checked(reader)

    def _generation(self, prompt: str, config: GenerateConfig | None, options: Mapping[str, Any]) -> Request:
        request = super()._generation(prompt, config, options)
        facts, asked = self.facts, self._as_sent(request.config)
        reader: Callable[[Request], Reader]
        if facts.native:
            path, fields = "/completion", llama_api.completion(prompt, asked)
            reader = llama_api.CompletionReader
        elif facts.server == "ollama":
            path, fields, reader = "/api/generate", ollama_api.completion(prompt, asked), ollama_api.Reader
        else:
            for name in ("json_schema", "stop_tokens"):
                if getattr(asked, name) not in (None, ()) and facts.server not in _AS_IN_CHATS:
                    raise UnsupportedError(
                        f"{name} in generate()", self._name, f"{facts.server or 'the server'} has it for chats only"
                    )
            path, fields = facts.api + "/completions", openai_api.completion(facts.server, prompt, asked)
            reader = openai_api.CompletionReader
        fields = self._with_extra(fields)
        shared = fields if len(asked.stop or ()) <= openai_api.MOST_STOPS else None  # else it is ended from here
        request.prepared = Streamed(self._call(path, fields, (prompt,)), self._checking(reader), shared)
        return request

    # ------------------------------------------------ batches

    @property
    def _takes_lists(self) -> bool:
        """Whether the prompts of a batch are sent as lists. With several servers, each prompt is sent by itself."""
        return SERVERS[self.facts.server].lists and self._pool is None and not self._extra.keys() & _OF_LISTS

    def _batch_of(self, make_request: Callable[[str], Request], prompts: Iterable[str]) -> BatchStream[str]:
        return (ListedBatch if self._takes_lists else BatchStream[str])(self, make_request, prompts)

    def _abatch_of(
        self,
        make_request: Callable[[str], Request],
        prompts: Iterable[str] | AsyncIterable[str],
        template: Request | None,
    ) -> AsyncBatchStream[str]:
        kind = AsyncListedBatch if self._takes_lists else AsyncBatchStream[str]
        return kind(self, make_request, prompts, template)

    def list_call(self, fields: Mapping[str, Any], prompts: Sequence[str]) -> Call:
        """Return the call that sends these prompts in one request. `fields`: the other fields, the same for each."""
        usage = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}  # for each prompt
        return self._call(self.facts.api + "/completions", {**fields, "prompt": list(prompts), **usage}, prompts)

    def _conversation(
        self, messages: Sequence[Message | Mapping[str, Any]], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        request = super()._conversation(messages, config, options)
        facts, asked = self.facts, self._as_sent(request.config)
        kind = SERVERS[facts.server]
        if is_forced(asked.tool_choice) and not kind.forces:
            raise UnsupportedError(f"tool_choice={asked.tool_choice!r}", self._name, f"{kind.title} can't force a call")
        if (isinstance(asked.reasoning, str) and not facts.reasons_by_degree) or (
            asked.reasoning is False and not facts.reasons_if_asked
        ):
            why = "the model's chat template does not support it"
            raise UnsupportedError(f"reasoning={asked.reasoning!r}", self._name, why)
        if asked.reasoning is True and not kind.switches:
            raise UnsupportedError("reasoning=True", self._name, "the API has degrees of it: 'low', 'medium', 'high'")
        if asked.reasoning_budget == 0 and facts.server == "llama.cpp":  # it would write only half of a tag
            raise UnsupportedError("reasoning_budget=0", self._name, "set reasoning=False, or a budget of at least 1")
        private = tuple(part for turn in request.messages for part in (turn.text, turn.reasoning) if part)
        # Unknown servers are often hosted models, which show the schema themselves.
        turns = with_schema(request.messages, request.config, shown=bool(facts.server))
        if facts.server == "ollama":
            fields = self._with_extra(ollama_api.chat(turns, asked))
            request.prepared = Streamed(self._call("/api/chat", fields, private), self._checking(ollama_api.Reader))
            return request
        rendered = rendered_chat.RenderedChat.of(facts, turns, asked, partial(self._sent_schema, calls=True))
        if asked.grammar is not None and (why := rendered_chat.why_no_constraint(facts, asked, rendered)):
            raise UnsupportedError(f"{decides_the_end(request.config)} in this chat", self._name, why)
        if rendered is None:
            if facts.renders and not facts.knows_tools and rendered_chat.callable_tools(asked):
                # llama-server would leave the tools out without an error.
                no_tools = "the model's template does not render tools"
                if any(turn.attachments for turn in request.messages):
                    why = f"{no_tools}: send images as data, not by URL, to a recent llama-server"
                    raise UnsupportedError("tools with attachments", self._name, why)
                why = f"{no_tools}, and a grammar can't contain different definitions of the same name"
                raise UnsupportedError("forcing one of these tools", self._name, why)
            fields = self._with_extra(openai_api.chat(facts.server, turns, asked))
            call = self._call(facts.api + "/chat/completions", fields, private)
            request.prepared = Streamed(call, self._checking(openai_api.ChatReader))
            return request

        def answer(prompt: str) -> Streamed:
            fields = self._with_extra(rendered.completion_fields(prompt))
            return Streamed(self._call("/completion", fields, (prompt, *private)), self._checking(rendered.reader))

        answer("")  # raises an error at the call for what can't be sent
        template = self._call("/apply-template", rendered.template_fields(), private)
        request.prepared = Rendered(template, lambda answered: answer(_prompt(answered)))
        return request

    def _infilling(
        self, prefix: str, suffix: str, config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        facts = self.facts
        if "infill" not in facts.capabilities or not isinstance(prefix, str) or not isinstance(suffix, str):
            return super()._infilling(prefix, suffix, config, options)
        request = super()._generation(prefix, config, options)
        asked, texts = self._as_sent(request.config), (prefix, suffix)
        if facts.server == "ollama":
            if not suffix:
                why = "Ollama would answer the prefix as a message: use generate()"
                raise UnsupportedError("infill without a suffix", self._name, why)
            fields = self._with_extra(ollama_api.infill(prefix, suffix, asked))
            request.prepared = Streamed(self._call("/api/generate", fields, texts), ollama_api.Reader)
            return request
        assert facts.fill is not None

        def answer(answered: Any) -> Streamed:
            fields = self._with_extra(llama_api.completion(infill.prompt_of(answered), asked))
            return Streamed(self._call("/completion", fields, texts), llama_api.CompletionReader)

        request.prepared = Rendered(self._call("/tokenize", infill.tokenize_fields(facts.fill, *texts), texts), answer)
        return request

    def _call(self, path: str, fields: Mapping[str, Any], private: Sequence[str]) -> Call:
        model = self.facts.model
        length, asked = self.facts.info.context_length, fields.get("max_tokens")
        if length and isinstance(asked, int) and asked > length and self.facts.server in ("vllm", "sglang"):
            fields = {**fields, "max_tokens": length}  # the server refuses more, and can't generate more
        content = body({**fields, "model": model} if model is not None else fields)
        return Call(path, content, private=tuple(private), lines=self.facts.server == "ollama", context=length)

    def _with_extra(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return `fields` with those of the load option `extra`. If both have a mapping, the mappings are merged."""
        out = dict(fields)
        for name, value in self._extra.items():
            inside = out.get(name)
            out[name] = {**inside, **value} if isinstance(inside, dict) and isinstance(value, Mapping) else value
        return out

    def _run(self, request: Request) -> Iterator[Token]:
        job = request.prepared
        route = self._route(request)
        if isinstance(job, Streamed):
            return transfer.stream(route, request, job.call, job.reader, self._explain)
        call = job.template if isinstance(job, Rendered) else job.call
        answer = transfer.fetch(route, request, call, self._explain)
        if request.cancelled:
            return iter(())
        if isinstance(job, Rendered):
            streamed = job.answer(answer)
            return transfer.stream(route, request, streamed.call, streamed.reader, self._explain)
        job.received(request, answer)
        return iter(())

    def _arun(self, request: Request) -> InTask:
        return InTask(self._tokens, request)

    def _astart(self, request: Request, sink: Sink[Token]) -> None:
        start_in_task(self._tokens, request, sink)

    async def _tokens(self, request: Request) -> AsyncGenerator[Token]:
        job = request.prepared
        route = await asyncio.to_thread(self._route, request) if self._blocks else self._route(request)
        if not isinstance(job, Streamed):
            call = job.template if isinstance(job, Rendered) else job.call
            answer = await transfer.afetch(route, request, call, self._explain)
            if not isinstance(job, Rendered):
                job.received(request, answer)
                return
            job = job.answer(answer)
        tokens = transfer.astream(route, request, job.call, job.reader, self._explain)
        async with contextlib.aclosing(tokens):
            async for token in tokens:
                yield token

    # ------------------------------------------------ connections

    def connection(self) -> Connection:
        """Return the connection for the next request, which `connect` returns."""
        return self._held.keep(self._get_connection())

    def _route(self, request: Request) -> Route:
        """Return the route of an operation to its server."""
        if self._pool is not None:
            return self._pool.route(request, self._width)
        connection = self.connection()
        if self._width is None:
            return Route(connection)
        job = request.prepared
        return MeasuredRoute(connection, self._width, *((job.running,) if isinstance(job, Streamed) else ()))

    def _fetch(self, path: str, fields: Mapping[str, Any], *private: str, counts: bool = False) -> Any:
        """Make a request that is not a stream, and return its answer. `counts`: the statistics include it."""
        request = self._fetching()
        try:
            call = self._call(path, fields, private)
            answer = transfer.fetch(self._route(request), request, call, self._explain)
            answer = self._unless_closed(request, answer)
            if counts:
                self._account(request, answer)
            return answer
        except Exception as error:
            raise request.failure(error) from error.__cause__
        finally:
            self._life.running.discard(request)

    async def _afetch(self, path: str, fields: Mapping[str, Any], *private: str) -> Any:
        """The async variant of `_fetch`. The statistics include the request.

        The request runs in its own task, which is cancelled when the operation ends. The caller's task must not be
        cancelled: by then it may have left this call.
        """
        request = self._fetching()
        answers: list[Any] = []
        request.prepared = Fetched(self._call(path, fields, private), answers.append)
        try:
            async with contextlib.aclosing(InTask(self._tokens, request)) as running:
                async for _ in running:
                    pass
            if not answers:
                raise request.error or ModelClosedError("the model was closed while it was asked")
            answer = answers[0]
            self._account(request, answer)
            return answer
        except Exception as error:
            raise request.failure(error) from error.__cause__
        finally:
            self._life.running.discard(request)

    def _fetching(self) -> Request:
        request = Request("generate", _ANSWER)
        request.begin()
        self._begin(request)
        return request

    def _account(self, request: Request, answer: Any) -> None:
        """Record the metrics of an operation that generates nothing."""
        measure(request, answer)
        request.end()
        self._end(request)

    @staticmethod
    def _unless_closed(request: Request, answer: Any) -> Any:
        if request.error is not None:
            raise request.error
        return answer

    def _counted(self, answer: Any, key: str) -> int:
        value = answer.get(key) if isinstance(answer, Mapping) else None
        if isinstance(value, list):
            return len(value)
        if not isinstance(value, int):
            raise ServerError(f"the server's answer to a request to count tokens has no {key!r}")
        return value


class InTask(AsyncIterator[Token]):
    """The tokens of `make(request)`, which runs in its own task.

    At its end, asyncio.run() cancels the tasks, and closes all remaining asynchronous generators at once. That fails
    for the generators of httpx2, each of which awaits another one. In a task, they are closed one after the other.
    """

    def __init__(self, make: Callable[[Request], AsyncGenerator[Token]], request: Request) -> None:
        self._make = make
        self._request = request
        self._box: AsyncMailbox[Token] | None = None

    async def __anext__(self) -> Token:
        if self._box is None:
            self._box = AsyncMailbox(self._request.deadline)
            start_in_task(self._make, self._request, self._box)
        return await anext(self._box)

    async def aclose(self) -> None:
        """End the operation, and wait until its resources are freed."""
        box, self._box = self._box, None
        if box is None or box.ended:
            return
        self._request.cancel()
        with contextlib.suppress(Exception):
            async for _ in box:
                pass


class _Held:
    """The connection in use. It has no reference to the model, so that a dropped model can be freed."""

    def __init__(self) -> None:
        self.last: Connection | None = None
        self._lock = threading.RLock()

    def keep(self, connection: Connection) -> Connection:
        with self._lock:
            before, self.last = self.last, connection
        if before is not None and before is not connection:
            before.close()
        return connection

    def close(self) -> None:
        with self._lock:
            last, self.last = self.last, None
        if last is not None:
            last.close()


def _prompt(answer: Any) -> str:
    prompt = answer.get("prompt") if isinstance(answer, Mapping) else None
    if not isinstance(prompt, str):
        raise ServerError("the server's answer to /apply-template has no prompt in it")
    return prompt


def _raise_first(results: Sequence[Any]) -> None:
    for result in results:
        if result.error is not None:
            raise result.error
