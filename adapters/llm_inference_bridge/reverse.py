# SPDX-License-Identifier: Apache-2.0
"""Wraps a model of any llm plugin as a TextModel.

    from llm_inference_bridge import LLMTextModel

    with LLMTextModel(llm.get_model("gpt-5.6-luna")) as model:
        print(model.chat([Message("user", "Why is the sky blue?")]).text())

The capabilities of the TextModel come from the llm model: from the fields of its Options class, its flags for tools and
schemas, and its attachment types.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import llm
from llm.parts import StreamEvent

from inference_bridge import (
    FinishReason,
    GenerateConfig,
    GenerationError,
    Message,
    ModelInfo,
    Request,
    TextModel,
    Token,
    Tool,
    ToolCallDelta,
    UnsupportedError,
)
from inference_bridge.authoring import (
    Mailbox,
    Sink,
    arun_in_thread,
    run_in_thread_loop,
    schema_validator,
    start_in_task,
    start_in_thread,
    start_in_thread_loop,
    why_not_satisfied,
)

from . import turns
from .models import Bridge

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "max_output_tokens", "max_completion_tokens", "num_predict", "max_new_tokens"),
    "temperature": ("temperature",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "stop": ("stop", "stop_sequences"),
    "stop_tokens": ("stop_tokens", "stop_token_ids"),
    "seed": ("seed", "random_seed"),
    "tool_choice": ("tool_choice",),
    "reasoning": ("reasoning", "reasoning_effort", "thinking", "thinking_effort", "think"),
    "template_options": ("template_options",),
}
"""Options, and the names of the fields that llm plugins have for them."""

_NOT_SENT: Mapping[str, tuple[Any, ...]] = {
    "max_tokens": (-1,),
    "stop": ((),),
    "stop_tokens": ((),),
    "template_options": ({},),
    "tool_choice": ("auto", "none"),
}
"""Values of options that are not sent, because they request nothing. For tool_choice "none", no tools are sent."""

_FINISH: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
}
"""The contract's finish reasons for those of services. Reasons that say only that the answer ended are not listed."""

_SERVICE_PARALLEL = 8
_LOCAL_CLOSE_SECONDS = 5.0
"""Maximum seconds for which `close` and the end of the program wait for operations of a model in this process."""


class LLMTextModel(TextModel):
    """Wraps an llm model as a TextModel.

    llm models do not continue a raw prompt. So `generate` sends the prompt as a user message, and yields the text of
    the answer. A `Token` is one chunk of the stream, and may be several tokens of the model. If the model has no option
    for `max_tokens`, that option limits the number of chunks. JSON is compared with its schema at the end, because the
    llm model may not enforce the schema. `close` does not change the llm model.

    Args:
        model: A synchronous or asynchronous llm model. Use it in one LLMTextModel only, because each limits only its
            own operations.
        async_model: The asynchronous variant of a synchronous model, for `achat` and other coroutines. Without it they
            run the synchronous model in a thread.
        key: An API key, or the name of a key that `llm keys` stores. Without it, llm looks for the model's key.
        parallel: Maximum number of operations that run at once. Default: 8 for a model that takes a key or is
            asynchronous, because it is a remote service; 1 for any other model, because an engine in this process may
            not be thread-safe.

    Raises:
        TypeError: `model` is not an llm model, or `async_model` is not an asynchronous one.
        ValueError: `parallel` is less than 1, or a model belongs to this library, so that `load_model` loads it.
    """

    backend = "llm"
    wrapped = True

    def __init__(
        self, model: Any, *, async_model: Any = None, key: str | None = None, parallel: int | None = None
    ) -> None:
        for one, kind in ((model, turns.SyncModel | turns.AsyncModel), (async_model, turns.AsyncModel | None)):
            if not isinstance(one, kind):
                raise TypeError(
                    f"LLMTextModel needs a model from llm.get_model() or llm.get_async_model(), not {one!r}"
                )
            if isinstance(one, Bridge):
                raise ValueError(f"{one.model_id} is a TextModel already: load_model({one.model_id!r}) loads it")
        if parallel is not None and parallel < 1:
            raise ValueError(f"parallel must be at least 1, not {parallel!r}")
        self.llm_model = None if isinstance(model, turns.AsyncModel) else model
        self.async_llm_model = model if self.llm_model is None else async_model
        self._wrapped_model = model
        self._key = key
        service = model.needs_key is not None or not isinstance(model, llm.Model)
        self.parallel = parallel or (_SERVICE_PARALLEL if service else 1)
        self._gate = _Gate(self.parallel)
        self._close_seconds = 0.0 if service else _LOCAL_CLOSE_SECONDS

        known = model.Options.model_fields
        self._fields = {
            option: [name for name in names if name in known]
            for option, names in _FIELDS.items()
            if any(name in known for name in names)
        }
        self.options = frozenset({*self._fields})
        own = {kind.split("/")[0] + "s" for kind in model.attachment_types}
        flags = {"tools": model.supports_tools, "json_schema": model.supports_schema}
        own |= {name for name, value in (flags | {"reasoning": "reasoning" in self._fields}).items() if value}
        self.capabilities = frozenset({"chat", *own})
        self.model_type = model.model_id
        self.info = ModelInfo(architecture=model.model_id)
        _open.add(self)

    def close(self) -> None:
        """End running operations and refuse new ones. The llm model itself is not changed."""
        self._gate.wait(self._close_seconds)

    # ------------------------------------------------ checking

    def _generation(self, prompt: str, config: GenerateConfig | None, options: Mapping[str, Any]) -> Request:
        return self._prepare(super()._generation(prompt, config, options))

    def _conversation(
        self, messages: Sequence[Message | Mapping[str, Any]], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        request = super()._conversation(messages, config, options)
        for message in request.messages:
            if message.name is not None and message.role != "tool":
                raise UnsupportedError("the name of a message", self._name, "llm messages do not have names")
            if message.role in ("assistant", "tool") and not getattr(
                self._wrapped_model, "supports_conversation", True
            ):
                raise UnsupportedError("conversations", self._name, f"{self.model_type} answers only single messages")
            for attachment in message.attachments:
                if not attachment.type.endswith("/*") and attachment.type not in self._wrapped_model.attachment_types:
                    known = ", ".join(sorted(self._wrapped_model.attachment_types))
                    raise UnsupportedError(f"{attachment.type} attachments", self._name, f"it takes {known}")
        return self._prepare(request)

    def _prepare(self, request: Request) -> Request:
        """Put the values for the model's Options into `request.prepared`.

        Raises:
            UnsupportedError: The model has no field for an option, or does not accept its value.
            ValueError: The JSON Schema is not valid.
        """
        if request.config.json_schema is not None:
            schema_validator(request.config.json_schema)  # raises ValueError for an invalid schema
        given: dict[str, Any] = {}
        for option, value in request.config.set_fields().items():
            if option not in _FIELDS or value in _NOT_SENT.get(option, ()):
                continue
            fields = self._fields.get(option)
            if fields:
                given |= self._fitting(option, value, fields)
            elif option != "max_tokens" or not self._wrapped_model.can_stream:
                raise UnsupportedError(option, self._name, f"{self.model_type} has no such option")
        if len(given) > 1:
            self._check(given, " with ".join(given))
        request.prepared = given
        return request

    def _fitting(self, option: str, value: Any, fields: Sequence[str]) -> dict[str, Any]:
        """Return the first of `fields` that accepts `value`, with the value in the form that the field accepts.

        Raises:
            UnsupportedError: None of them accepts it.
        """
        refused: UnsupportedError | None = None
        for field in fields:
            for form in _forms(option, value):
                try:
                    self._check({field: form}, f"{option}={value!r}")
                    return {field: form}
                except UnsupportedError as error:
                    refused = refused or error
        assert refused is not None
        raise refused

    def _check(self, given: Mapping[str, Any], what: str) -> None:
        try:
            self._wrapped_model.Options(**given)
        except ValueError as error:
            listed = getattr(error, "errors", None)
            why = "; ".join(str(one["msg"]) for one in listed()) if listed else str(error)
            raise UnsupportedError(what, self._name, f"{self.model_type} says: {why}") from None

    # ------------------------------------------------ running

    def _run(self, request: Request) -> Iterator[Token]:
        if self.llm_model is None:
            return run_in_thread_loop(self._arun, request)
        # In a thread, so that a timeout, close() and other callers do not wait for the model.
        box: Mailbox[Token] = Mailbox(request.deadline)
        request.on_cancel(box.close)
        self._start(request, box)
        return box.read(request.cancel)

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        if self.async_llm_model is None:
            async for token in arun_in_thread(self._in_turn(), request):
                yield token
            return
        reader = _Reader(request)
        if any(one.path is not None for message in request.messages for one in message.attachments):
            response = await asyncio.to_thread(self._ask, self.async_llm_model, request)  # it reads the files
        else:
            response = self._ask(self.async_llm_model, request)
        try:
            async with aclosing(response.astream_events()) as events:
                async for event in events:
                    for token in reader.tokens(event):
                        yield token
            for token in reader.rest(await response.tool_calls()):
                yield token
        except llm.ModelError as error:
            raise GenerationError(str(error)) from error
        reader.end(await response.usage(), await response.json())

    def _start(self, request: Request, sink: Sink[Token]) -> None:
        if self.llm_model is None:
            start_in_thread_loop(self._arun, request, sink)
        else:
            start_in_thread(self._in_turn(), request, sink)

    def _astart(self, request: Request, sink: Sink[Token]) -> None:
        if self.async_llm_model is None:
            self._start(request, sink)
        else:
            start_in_task(self._arun, request, sink)

    def _in_turn(self) -> Callable[[Request], Iterator[Token]]:
        """Return a function that waits for its turn and then runs a request. Turns have the order of these calls."""
        turn = self._gate.queue()

        def tokens(request: Request) -> Iterator[Token]:
            turn.wait()
            try:
                if not request.cancelled:
                    yield from self._tokens(request)
            finally:
                self._gate.leave()

        return tokens

    def _tokens(self, request: Request) -> Iterator[Token]:
        reader = _Reader(request)
        response = self._ask(self.llm_model, request)
        try:
            for event in response.stream_events():
                yield from reader.tokens(event)
            yield from reader.rest(response.tool_calls())
        except llm.ModelError as error:
            raise GenerationError(str(error)) from error
        reader.end(response.usage(), response.json())

    def _ask(self, model: Any, request: Request) -> Any:
        config = request.config
        messages = request.messages if request.kind == "chat" else [Message("user", request.prompt)]
        tools = cast("Sequence[Tool]", config.tools or ()) if config.tool_choice != "none" else ()
        return turns.ask(
            model,
            messages,
            key=self._key,
            options=model.Options(**request.prepared),
            schema=None if config.json_schema is None else dict(config.json_schema),
            tools=[llm.Tool(tool.name, tool.description or None, dict(tool.parameters)) for tool in tools],
        )

    def _end_with_program(self) -> None:
        """Cancel the running operations, and wait for them: a thread in a native library would crash the process."""
        if self._life.pid == os.getpid():
            for request in list(self._life.running):
                request.cancel()
            self._gate.wait(self._close_seconds)


def _forms(option: str, value: Any) -> list[Any]:
    """Return the forms in which models may accept a value."""
    if option == "stop":
        return [list(value), *(value if len(value) == 1 else ())]
    if option == "stop_tokens":
        return [list(value)]
    if option == "reasoning" and value is False:
        return [False, "none"]
    return [value]


class _Gate:
    """Limits how many operations run at once; the others wait in order."""

    def __init__(self, places: int) -> None:
        self._changed = threading.Condition()
        self._places = self._free = places
        self._waiting: deque[threading.Event] = deque()

    def queue(self) -> threading.Event:
        """Return an event that is set when the caller may run an operation. The caller must end it with `leave`."""
        turn = threading.Event()
        with self._changed:
            if self._free:
                self._free -= 1
                turn.set()
            else:
                self._waiting.append(turn)
        return turn

    def leave(self) -> None:
        with self._changed:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
                self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until no operation runs, for at most this number of seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._free == self._places, seconds)


class _Reader:
    """Reads Tokens from the events of an llm model, and stores its usage and finish reason in the request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._indices: dict[int | None, int] = {}
        self._streamed: list[tuple[str | None, str]] = []
        self._text: list[str] = []
        self._has_calls = False

    def tokens(self, event: StreamEvent) -> Iterator[Token]:
        if event.type == "text" and event.chunk:
            self._text.append(event.chunk)
            yield Token(event.chunk)
        elif self._request.kind == "generate":  # `generate` yields only text
            return
        elif event.type == "reasoning" and event.chunk:
            yield Token(event.chunk, kind="reasoning")
        elif (
            event.type in ("tool_call_name", "tool_call_args") and not event.server_executed
        ):  # the caller runs the tool
            yield Token("", kind="tool_call", tool_call=self._delta(event))

    def rest(self, calls: Sequence[llm.ToolCall]) -> Iterator[Token]:
        """Yield the tool calls that were not streamed. Some plugins report each call in both ways."""
        index = len(self._indices)
        for call in calls if self._request.kind == "chat" else ():
            same = (one for one in self._streamed if one[0] == call.tool_call_id or one == (None, call.name))
            streamed = next(same, None)
            if streamed is not None:
                self._streamed.remove(streamed)
                continue
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            delta = ToolCallDelta(index, call.tool_call_id or _new_id(), call.name, arguments)
            self._has_calls = True
            yield Token("", kind="tool_call", tool_call=delta)
            index += 1

    def end(self, usage: llm.Usage, response: Mapping[str, Any] | None) -> None:
        """Store the usage and the finish reason. Raises GenerationError if the answer does not satisfy its schema."""
        counts = {"prompt_tokens": usage.input, "generated_tokens": usage.output, "cached_tokens": _cached(usage)}
        self._request.measure(**{name: count for name, count in counts.items() if count is not None})
        reason = _FINISH.get(_end_reason(response or {}))
        if reason is not None and not self._request.cancelled:
            self._request.finish_reason = reason
        self._check()

    def _check(self) -> None:
        schema = self._request.config.json_schema
        cut = self._request.cancelled or self._request.finish_reason == "length"
        if schema is not None and not cut and not self._has_calls:
            why = why_not_satisfied("".join(self._text), schema)
            if why:
                raise GenerationError(f"the llm model did not enforce json_schema: the answer (on `partial`) {why}")

    def _delta(self, event: StreamEvent) -> ToolCallDelta:
        name, arguments = (event.chunk, "") if event.type == "tool_call_name" else (None, event.chunk)
        index = self._indices.get(event.part_index)
        if index is not None:
            return ToolCallDelta(index, None, name, arguments)
        self._has_calls = True
        index = self._indices[event.part_index] = len(self._indices)
        self._streamed.append((event.tool_call_id, name or ""))
        return ToolCallDelta(index, event.tool_call_id or _new_id(), name, arguments)


def _new_id() -> str:
    return f"call_{secrets.token_hex(8)}"


def _cached(usage: llm.Usage) -> int | None:
    """Return the number of cached tokens of the prompt, from the fields of OpenAI, Anthropic or this library.

    None: the usage does not state it.
    """
    details = usage.details or {}
    for place in (details, *(value for value in details.values() if isinstance(value, dict))):
        for name in ("cached_tokens", "cache_read_input_tokens"):
            if isinstance(place.get(name), int):
                return cast(int, place[name])
    return None


def _end_reason(response: Mapping[str, Any]) -> str:
    """Return the finish reason, from any of the places in which services state it; "" if there is none."""
    choices = response.get("choices")
    places = [
        response,
        response.get("incomplete_details"),
        choices[0] if isinstance(choices, list) and choices else None,
    ]
    for place in places:
        for name in ("finish_reason", "stop_reason", "done_reason", "reason"):
            if isinstance(place, dict) and isinstance(place.get(name), str):
                return cast(str, place[name])
    return ""


_open: weakref.WeakSet[LLMTextModel] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for model in list(_open):
        model._end_with_program()
