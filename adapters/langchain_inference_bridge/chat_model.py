# SPDX-License-Identifier: Apache-2.0
"""A TextModel as LangChain's BaseChatModel.

from langchain_inference_bridge import ChatInferenceBridge

chat = ChatInferenceBridge(model="llama_cpp:SmolLM2-135M-Instruct.Q4_1", temperature=0)
chat.invoke("What is the capital of France?")
"""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list

from inference_bridge import (
    ContextLengthExceededError,
    GenerateConfig,
    Message,
    ServerError,
    TextModel,
    Token,
    UnsupportedError,
)
from inference_bridge.authoring import settled
from inference_bridge.streams import AsyncTokenStream, TokenStream

from . import answers, shared
from .fields import Fields
from .messages import to_messages
from .one_call import AsyncOneCall, OneCall
from .structured import parsed, text_parser, tool_parser
from .tools import ToolLike, chosen, generate_options, openai_tool, response_format, takes_one_call, tool_names

Method = Literal["json_schema", "function_calling", "json_mode"]
_Stream: TypeAlias = TokenStream | OneCall
_AsyncStream: TypeAlias = AsyncTokenStream | AsyncOneCall


class PromptTooLongError(ContextLengthExceededError, ContextOverflowError):
    """A ContextLengthExceededError that LangChain's middleware recognises as a ContextOverflowError."""


class ChatInferenceBridge(Fields):
    """A chat model on any backend of inference-bridge.

    Create it with `model`, the source of a model, and any field of LoadConfig and GenerateConfig; or with `text_model`,
    a loaded TextModel. The model is loaded at its first use, or by `load`. All chat models of a process with the same
    source and load options share one TextModel. It stays loaded until each of them is closed or dropped. Errors are
    those of inference_bridge.
    """

    def _known(self, model: TextModel, override: str | None) -> TextModel:
        if self.profile is None and override is None:
            self.profile = profile_of(model)
        return model

    # ------------------------------------------------ generating

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with _translated():
            call = self._call(messages, stop, kwargs)
            model = self._load(call.override)
            config = settled(call.options, model)
            tokens, _ = self._begin(lambda: call.stream(model, config))
            with tokens:
                return _result(answers.message(tokens.result(), call.model_name, config))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with _translated():
            call = self._call(messages, stop, kwargs)
            model = await self._aload(call.override)
            config = settled(call.options, model)
            tokens, _ = await self._abegin(lambda: call.astream(model, config))
            async with tokens:
                return _result(answers.message(await tokens.result(), call.model_name, config))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with _translated():
            call = self._call(messages, stop, kwargs)
            model = self._load(call.override)
            config = settled(call.options, model)
            tokens, token = self._begin(lambda: call.stream(model, config))
            with tokens:
                chunks = answers.Chunks(call.model_name, config, blocks=self._in_blocks(run_manager))
                while token is not None:
                    message = chunks.of(token)
                    if message is not None:
                        chunk = ChatGenerationChunk(message=message)
                        if run_manager is not None:
                            run_manager.on_llm_new_token(token.text, chunk=chunk)
                        yield chunk
                    token = next(tokens, None)
                for message in chunks.end(tokens.finish_reason, tokens.metrics, tokens.shortened):
                    yield ChatGenerationChunk(message=message)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with _translated():
            call = self._call(messages, stop, kwargs)
            model = await self._aload(call.override)
            config = settled(call.options, model)
            tokens, token = await self._abegin(lambda: call.astream(model, config))
            async with tokens:
                chunks = answers.Chunks(call.model_name, config, blocks=self._in_blocks(run_manager))
                while token is not None:
                    message = chunks.of(token)
                    if message is not None:
                        chunk = ChatGenerationChunk(message=message)
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(token.text, chunk=chunk)
                        yield chunk
                    token = await anext(tokens, None)
                for message in chunks.end(tokens.finish_reason, tokens.metrics, tokens.shortened):
                    yield ChatGenerationChunk(message=message)

    def _in_blocks(self, run_manager: object) -> bool:
        """Return whether chunks contain standard content blocks.

        Only LangChain's newest streaming protocol passes a run manager. This protocol converts every chunk to blocks,
        and distinguishes blocks by their numbers.
        """
        return self.output_version == "v1" or run_manager is not None

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> _Call:
        """Return the call with its messages and options, which are checked as far as possible without the model."""
        given = {name: value for name, value in kwargs.items() if name != "stream"}  # LangChain itself reads that
        override = given.pop("model", None)
        one_call = takes_one_call(given.pop("parallel_tool_calls", None))
        if stop is not None:
            given["stop"] = stop
        options = self.generate_config().with_options(generate_options(given))
        return _Call(to_messages(messages), options, override, self._name(override), one_call)

    def _begin(self, start: Callable[[], _Stream]) -> tuple[_Stream, Token | None]:
        """Return a stream and its first token. After a temporary failure of a server, start again (`max_retries`)."""
        attempt = 0
        while True:
            tokens = start()
            try:
                return tokens, next(tokens, None)
            except ServerError as error:
                time.sleep(self._pause(error, attempt))
            attempt += 1

    async def _abegin(self, start: Callable[[], _AsyncStream]) -> tuple[_AsyncStream, Token | None]:
        attempt = 0
        while True:
            tokens = start()
            try:
                return tokens, await anext(tokens, None)
            except ServerError as error:
                await asyncio.sleep(self._pause(error, attempt))
            attempt += 1

    # ------------------------------------------------ batches

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer every input, as many at once as fill the slots of the model.

        Args:
            inputs: Prompts or conversations, in any form that `invoke` accepts.
            config: A config for all inputs, or one for each. Its `max_concurrency` limits the number of inputs that run
                at once. If it is not set, a few more inputs are started than the model has slots.
            return_exceptions: Return the exception of an input that fails in place of its answer. False: raise it.
            kwargs: Options of each call, such as `max_tokens`.

        Returns:
            The answers, in the order of the inputs.

        Raises:
            ContextLengthExceededError, GenerationError: An input failed, and `return_exceptions` is False.
        """
        configs = self._filling_slots(config, len(inputs), kwargs.get("model"))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(  # type: ignore[override]
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, AIMessage | Exception]]:
        """Answer every input as `batch` does, and yield each answer when it is complete.

        Args:
            inputs: As in `batch`.
            config: As in `batch`.
            return_exceptions: As in `batch`.
            kwargs: As in `batch`.

        Yields:
            The index of an input, and its answer or its exception.
        """
        configs = self._filling_slots(config, len(inputs), kwargs.get("model"))
        return super().batch_as_completed(inputs, configs, return_exceptions=return_exceptions, **kwargs)  # type: ignore[call-overload, no-any-return]

    def _filling_slots(
        self, config: RunnableConfig | Sequence[RunnableConfig] | None, length: int, override: str | None
    ) -> list[RunnableConfig]:
        configs = get_config_list(config, length)
        if length > 1 and configs[0].get("max_concurrency") is None:
            with suppress(Exception):  # each invocation raises this error too
                slots = self._load(override).parallel
                # a few more than slots, so that a free slot is taken at once
                configs[0] = {**configs[0], "max_concurrency": min(length, slots + min(slots, 8))}
        return configs

    # ------------------------------------------------ tools and structured output

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that it may call.

        Args:
            tools: The tools, in any form that LangChain accepts.
            tool_choice: "auto" (or None, False), "none", "any" (or "required", True), a tool's name, or one of those
                in a provider's dict.
            strict: Has no effect, because a forced call always satisfies the tool's schema.
            kwargs: Options of each call, such as parallel_tool_calls=False.

        Raises:
            ValueError: `tool_choice` names a tool that is not among `tools`, or a tool is not a function.
        """
        bound = [openai_tool(tool, strict=strict) for tool in tools]
        choice = chosen(tool_choice, tool_names(bound))
        if choice is not None:
            kwargs["tool_choice"] = choice
        return self.bind(tools=bound, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return this model with answers that are objects of a schema.

        An answer that max_tokens cuts off raises OutputParserException.

        Args:
            schema: A pydantic or TypedDict class, a JSON Schema, OpenAI's {"name": …, "schema": …}, or a tool.
            method: With "json_schema", the answer is JSON that satisfies the schema. With "function_calling", the model
                must call a tool that has the schema. "json_mode" is the same as "json_schema", or allows any JSON
                object if `schema` is None.
            include_raw: Return a dict with "raw", "parsed" and "parsing_error".
            strict: Has no effect, because schemas are enforced without it.
            kwargs: Options of each call.

        Raises:
            ValueError: `method` is not known, or needs a schema.
        """
        if method not in get_args(Method):
            raise ValueError(f"method is one of {', '.join(get_args(Method))}, not {method!r}")
        if schema is None and method != "json_mode":
            raise ValueError(f"method {method!r} needs a schema")
        traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        if method == "function_calling":
            tool = openai_tool(cast(ToolLike, schema), strict=strict)
            (name,) = tool_names([tool])
            calling = self.bind_tools([tool], tool_choice=name, ls_structured_output_format=traced, **kwargs)
            return parsed(calling, tool_parser(schema, name), include_raw=include_raw)
        format = {"type": "json_object"} if schema is None else response_format(schema)
        answering = self.bind(response_format=format, ls_structured_output_format=traced, **kwargs)
        return parsed(answering, text_parser(schema), include_raw=include_raw)

    # ------------------------------------------------ other methods that LangChain calls

    @property
    def _llm_type(self) -> str:
        return answers.PROVIDER

    def _name(self, override: str | None = None) -> str:
        if override or self.model:
            return cast(str, override or self.model)
        model = cast(TextModel, self.text_model)
        return f"{model.backend or type(model).__name__}:{model.model_type}"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        own = [self.stop] if isinstance(self.stop, str) else self.stop
        params = super()._get_ls_params(stop=own if stop is None else stop, **kwargs)
        params["ls_provider"] = answers.PROVIDER
        params["ls_model_name"] = self._name(kwargs.get("model"))
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        model = self.text_model or shared.loaded(cast(str, self.model), self.load_config())
        return None if model is None else profile_of(model)

    def get_num_tokens(self, text: str) -> int:
        """Return the number of tokens of a text. The model is loaded if it is not loaded yet.

        Args:
            text: The text.

        Raises:
            UnsupportedError: The backend has no access to the model's tokenizer.
        """
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return self.load().count_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, by `custom_get_token_ids`.

        Args:
            text: The text.

        Raises:
            UnsupportedError: `custom_get_token_ids` is not set.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        raise UnsupportedError("get_token_ids", self._name(), "get_num_tokens counts with the model's own tokenizer")

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key for LangChain's cache. It has a random id for a `text_model`, which can't be serialised."""
        key = super()._get_llm_string(stop=stop, **kwargs)
        if self.text_model is None:
            return key
        identity = _identities.setdefault(self.text_model, uuid.uuid4().hex)
        return f"{key}---{sorted(self._identifying_params.items())}---{identity}"


_identities: weakref.WeakKeyDictionary[TextModel, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Call:
    """One call.

    Attributes:
        messages: The conversation.
        options: The options that the chat model or the call sets.
        override: The source of the model to use for this call. None: the chat model's own.
        model_name: The name of the model for the metadata.
        one_call: Whether the answer has at most one tool call.
    """

    messages: list[Message]
    options: GenerateConfig
    override: str | None
    model_name: str
    one_call: bool

    def stream(self, model: TextModel, config: GenerateConfig) -> _Stream:
        tokens = model.chat(self.messages, config)
        return OneCall(tokens) if self.one_call else tokens

    def astream(self, model: TextModel, config: GenerateConfig) -> _AsyncStream:
        tokens = model.achat(self.messages, config)
        return AsyncOneCall(tokens) if self.one_call else tokens


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


@contextmanager
def _translated() -> Iterator[None]:
    """Return a context that raises a ContextLengthExceededError as a PromptTooLongError."""
    try:
        yield
    except ContextLengthExceededError as error:
        raise PromptTooLongError(error.prompt_tokens, error.context_length) from error


def profile_of(model: TextModel) -> ModelProfile:
    """Return the model's capabilities as a LangChain ModelProfile."""
    can = model.capabilities
    profile = {
        "name": model.model_type,
        "max_input_tokens": model.info.context_length,
        "text_inputs": True,
        "image_inputs": "images" in can,
        "audio_inputs": "audios" in can,
        "video_inputs": "videos" in can,
        "text_outputs": True,
        "reasoning_output": "reasoning" in can,
        "tool_calling": "tools" in can,
        "tool_choice": "tools" in can,
        "tool_call_streaming": "tools" in can,
        "structured_output": "json_schema" in can,
        "temperature": "temperature" in model.options,
    }
    known = ModelProfile.__annotations__  # older versions of LangChain have fewer fields
    return cast(ModelProfile, {name: value for name, value in profile.items() if name in known})
