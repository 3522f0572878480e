# SPDX-License-Identifier: Apache-2.0
"""A LangChain chat model as a TextModel.

    from langchain_inference_bridge import LangChainTextModel

    with LangChainTextModel(init_chat_model("openai:gpt-5")) as model:
        print(model.chat([Message("user", "Why is the sky blue?")]).text())

The capabilities of the TextModel come from the chat model: its options from the fields of the class, tools and schemas
from the methods that the class overrides, and images from its profile.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, cast

from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, UsageMetadata
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config

from inference_bridge import (
    BridgeError,
    ContextLengthExceededError,
    FinishReason,
    GenerateConfig,
    GenerationError,
    Message,
    ModelInfo,
    Request,
    ServerError,
    TextModel,
    Token,
    Tool,
    ToolCallCutError,
    ToolCallDelta,
    UnsupportedError,
)
from inference_bridge.authoring import (
    AsyncMailbox,
    Mailbox,
    join_tool_calls,
    schema_validator,
    start_in_task,
    start_in_thread,
    why_not_forced,
    why_not_satisfied,
)

from .messages import from_messages

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "temperature": ("temperature",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "seed": ("seed",),
}
"""Options, and the names of the fields that LangChain chat models have for them."""

_PROFILE = {"image_inputs": "images", "audio_inputs": "audios", "video_inputs": "videos"}

_ADDABLE = frozenset({"applications", "audios", "images", "json_schema", "texts", "tools", "videos"})
"""Capabilities that a caller may add. This module does not support any others."""

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}


class LangChainTextModel(TextModel):
    """Wraps a LangChain chat model as a TextModel.

    A `Token` is one chunk of the stream, and may be several tokens of the model. For a JSON schema, the structured
    output of the chat model is used. The JSON arrives in one piece, and is then compared with the schema. `close` does
    not change the chat model.

    Chat models do not continue a raw prompt. So `generate` sends the prompt as a user message, and yields the text of
    the answer. Only `chat` yields reasoning.

    Args:
        chat_model: The chat model.
        capabilities: Capabilities that the model has beyond its profile, such as "images".
        parallel: Maximum number of operations of a batch that are sent at once.

    Raises:
        TypeError: `chat_model` is not a LangChain chat model.
        ValueError: `parallel` is less than 1, or a capability can't be added.
    """

    backend = "langchain"
    wrapped = True

    def __init__(self, chat_model: BaseChatModel, *, capabilities: Iterable[str] = (), parallel: int = 8) -> None:
        if not isinstance(chat_model, BaseChatModel):
            also = (
                ": pass the chat model itself, without bound tools or options"
                if isinstance(chat_model, Runnable)
                else ""
            )
            raise TypeError(f"LangChainTextModel takes a LangChain chat model, not {type(chat_model).__name__}{also}")
        if parallel < 1:
            raise ValueError(f"parallel must be at least 1, not {parallel!r}")
        added = frozenset(capabilities)
        if not added <= _ADDABLE:
            raise ValueError(f"capabilities may add {', '.join(sorted(_ADDABLE))}, not {min(added - _ADDABLE)!r}")
        kind, profile = type(chat_model), chat_model.profile or {}
        self.chat_model = chat_model
        self.parallel = parallel
        self._fields = {
            option: next(name for name in names if name in kind.model_fields)
            for option, names in _FIELDS.items()
            if any(name in kind.model_fields for name in names)
        }
        self.options = frozenset({*self._fields, "stop"})
        own = {name for key, name in _PROFILE.items() if profile.get(key)}
        if kind.bind_tools is not BaseChatModel.bind_tools:
            own |= {"chat", "tools", "json_schema"}
        elif kind.with_structured_output is not BaseChatModel.with_structured_output:
            own |= {"json_schema"}
        self.capabilities = frozenset({"chat", *own, *added})
        named = chat_model._get_ls_params()
        self.model_type = str(named.get("ls_model_name") or named.get("ls_provider") or chat_model._llm_type)
        context = profile.get("max_input_tokens")
        self.info = ModelInfo(architecture=self.model_type, context_length=context if isinstance(context, int) else 0)

    def close(self) -> None:
        """End running operations and refuse new ones. The chat model itself is not changed."""

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, by the chat model's own tokenizer.

        Args:
            text: The text.

        Raises:
            UnsupportedError: The chat model has no tokenizer of its own.
        """
        kind = type(self.chat_model)
        own = self.chat_model.custom_get_token_ids is not None or any(
            getattr(kind, name) is not getattr(BaseChatModel, name) for name in ("get_num_tokens", "get_token_ids")
        )
        if not own:
            return super().count_tokens(text)
        self._check_open()
        return self.chat_model.get_num_tokens(text)

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        if config.json_schema is not None:
            for name in ("tools", "stop"):
                if getattr(config, name):
                    raise UnsupportedError(f"{name} together with json_schema", self._name)
            if config.json_schema.get("type") != "object":
                raise UnsupportedError("a json_schema that is not of type object", self._name)
            schema_validator(config.json_schema)  # raises ValueError for an invalid schema
        return config

    # ------------------------------------------------ running

    def _run(self, request: Request) -> Iterator[Token]:
        # In a thread, so that a timeout and close() do not wait for the provider. LangChain keeps its config in the
        # context of this thread. It is passed on, so that the call becomes part of the same trace.
        config = ensure_config()
        box: Mailbox[Token] = Mailbox(request.deadline)
        request.on_cancel(box.close)
        start_in_thread(lambda request: self._tokens(request, config), request, box)
        return box.read(request.cancel)

    def _tokens(self, request: Request, config: RunnableConfig) -> Iterator[Token]:
        reader = _Reader(request)
        with _typed():
            if request.config.json_schema is not None:
                answer = reader.structured(self._structured(request).invoke(_messages(request), config))
                yield answer
                reader.check(answer)
            else:
                for chunk in self._streaming(request).stream(_messages(request), config, **_stop(request)):
                    yield from reader.tokens(chunk)
        reader.end()

    async def _arun(self, request: Request) -> AsyncIterator[Token]:
        box: AsyncMailbox[Token] = AsyncMailbox(request.deadline)
        task = start_in_task(self._atokens, request, box)  # so that close() and a timeout end the wait for the provider
        try:
            async for token in box:
                yield token
        except GeneratorExit:
            request.cancel()
            raise
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _atokens(self, request: Request) -> AsyncGenerator[Token, None]:
        reader = _Reader(request)
        with _typed():
            if request.config.json_schema is not None:
                answer = reader.structured(await self._structured(request).ainvoke(await _amessages(request)))
                yield answer
                reader.check(answer)
            else:
                chunks = self._streaming(request).astream(await _amessages(request), **_stop(request))
                async with aclosing(cast("AsyncGenerator[AIMessage, None]", chunks)):
                    async for chunk in chunks:
                        for token in reader.tokens(chunk):
                            yield token
        reader.end()

    def _configured(self, request: Request) -> BaseChatModel:
        """Return the chat model with the request's options in its fields. Other fields stay as they are."""
        asked = request.config.set_fields()
        if asked.get("max_tokens") == -1:
            del asked["max_tokens"]
        fields = {field: asked[option] for option, field in self._fields.items() if option in asked}
        if not fields:
            return self.chat_model
        copy = self.chat_model.model_copy(update=fields)
        copy.__dict__.pop("_serialized", None)  # LangChain's cache would use it as the key, with the original's options
        return copy

    def _streaming(self, request: Request) -> Runnable[Any, AIMessage]:
        model, config = self._configured(request), request.config
        if not config.tools or config.tool_choice == "none":
            return model
        choice = {"auto": None, "required": "any"}.get(config.tool_choice or "auto", config.tool_choice)
        tools = [cast(Tool, tool).to_dict() for tool in config.tools]
        return model.bind_tools(tools, tool_choice=choice) if choice is not None else model.bind_tools(tools)

    def _structured(self, request: Request) -> Runnable[Any, Any]:
        schema = dict(request.config.json_schema or {})
        # The title becomes the name of a function, which may have only these characters.
        schema["title"] = re.sub(r"[^a-zA-Z0-9_-]+", "_", str(schema.get("title") or "answer"))[:64]
        return self._configured(request).with_structured_output(schema, include_raw=True)


def _messages(request: Request) -> list[Any]:
    return from_messages(request.messages if request.kind == "chat" else [Message("user", request.prompt)])


async def _amessages(request: Request) -> list[Any]:
    """Call `_messages`, in a thread if files must be read."""
    if any(one.path is not None for message in request.messages for one in message.attachments):
        return await asyncio.to_thread(_messages, request)
    return _messages(request)


def _stop(request: Request) -> dict[str, Any]:
    return {"stop": list(request.config.stop)} if request.config.stop else {}


@contextmanager
def _typed() -> Iterator[None]:
    """Return a context that raises errors of a provider's package as this library's, if their meaning is known."""
    try:
        yield
    except BridgeError:
        raise
    except ContextOverflowError as error:
        # "maximum context length is 8192 tokens … resulted in 9000 tokens", "9000 tokens > 8192 maximum"
        numbers = [int(number) for number in re.findall(r"(\d+) (?:tokens|maximum)", str(error).replace(",", ""))]
        if len(numbers) < 2:
            raise
        raise ContextLengthExceededError(max(numbers), min(numbers)) from error
    except Exception as error:
        status = getattr(error, "status_code", None)  # the packages of OpenAI, Anthropic and others have this attribute
        if not isinstance(status, int):
            raise
        raise ServerError(f"{type(error).__name__}: {error}", status=status) from error


class _Reader:
    """Reads Tokens from chunks, and stores their finish reason and usage in the request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._usage: UsageMetadata | None = None
        self._calls: dict[object, int] = {}
        self._made: list[ToolCallDelta] = []

    def tokens(self, message: AIMessage) -> Iterator[Token]:
        self._note(message)
        chat = self._request.kind == "chat"  # `generate` yields only text
        for block in message.content_blocks:
            if block["type"] == "text" and block["text"]:
                yield Token(block["text"])
            elif block["type"] == "reasoning" and block.get("reasoning") and chat:
                yield Token(block["reasoning"], kind="reasoning")
        if chat:
            for delta in self._deltas(message):
                self._made.append(delta)
                yield Token("", kind="tool_call", tool_call=delta)

    def structured(self, answer: Mapping[str, Any]) -> Token:
        """Return the one token of a structured answer.

        Raises:
            GenerationError: The chat model could not parse the answer, and the answer was not cut off.
        """
        raw: AIMessage = answer["raw"]
        self._note(raw)
        if answer["parsed"] is not None:
            self._request.finish_reason = "stop"  # a chat model that uses a tool call for JSON reports "tool_calls"
            return Token(json.dumps(answer["parsed"], ensure_ascii=False))
        written = raw.text or "".join(call["args"] or "" for call in raw.invalid_tool_calls)
        if self._request.finish_reason == "length":
            return Token(written)
        why = answer["parsing_error"] or "it contains no JSON"
        raise GenerationError(f"the answer is not JSON that satisfies json_schema: {why} (the model wrote {written!r})")

    def check(self, answer: Token) -> None:
        """Raise GenerationError if a structured answer does not satisfy the schema, and was not cut off."""
        schema = self._request.config.json_schema
        if schema is not None and self._request.finish_reason != "length":
            why = why_not_satisfied(answer.text, schema)
            if why:
                raise GenerationError(f"the provider did not enforce json_schema: the answer (on `partial`) {why}")

    def end(self) -> None:
        """Store the usage. Raises GenerationError if the answer lacks the call that `tool_choice` forces."""
        usage = self._usage
        if usage is not None:
            cached = usage.get("input_token_details", {}).get("cache_read", 0)
            self._request.measure(
                prompt_tokens=usage["input_tokens"], generated_tokens=usage["output_tokens"], cached_tokens=cached
            )
        if self._request.kind == "chat":
            self._check_choice(self._request.config.tool_choice)

    def _check_choice(self, choice: str | None) -> None:
        names = {call.name for call in join_tool_calls(self._made)}
        why = why_not_forced(choice, names)
        if why and not names and self._request.finish_reason == "length":
            raise ToolCallCutError("the tool call is not complete: raise max_tokens")
        if why:
            raise GenerationError(
                f"the provider did not enforce tool_choice={choice!r}: the answer (on `partial`) {why}"
            )

    def _note(self, message: AIMessage) -> None:
        if message.usage_metadata is not None:
            self._usage = add_usage(self._usage, message.usage_metadata)
        metadata = message.response_metadata
        reason = metadata.get("finish_reason") or metadata.get("stop_reason") or metadata.get("done_reason")
        if isinstance(reason, str) and reason.lower() in _FINISH and not self._request.cancelled:
            self._request.finish_reason = _FINISH[reason.lower()]

    def _deltas(self, message: AIMessage) -> Iterator[ToolCallDelta]:
        if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
            for chunk in message.tool_call_chunks:
                # Without an index, each name begins a call.
                key = chunk["index"] if chunk["index"] is not None else len(self._calls) - (not chunk["name"])
                index = self._calls.setdefault(key, len(self._calls))
                yield ToolCallDelta(index, chunk["id"], chunk["name"], chunk["args"] or "")
            return
        for call in message.tool_calls:
            yield self._whole(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False))
        for broken in message.invalid_tool_calls:
            yield self._whole(broken["id"], broken["name"], broken["args"] or "")

    def _whole(self, id: str | None, name: str | None, arguments: str) -> ToolCallDelta:
        return ToolCallDelta(self._calls.setdefault(object(), len(self._calls)), id, name, arguments)
