# SPDX-License-Identifier: Apache-2.0
"""Answers one llm prompt with a TextModel.

A model is loaded here, at its first prompt. So the imports that are not needed to list models are in this module.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import sys
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

import click
import llm
from llm.parts import StreamEvent

from inference_bridge import (
    BridgeError,
    ContextLengthExceededError,
    GenerateConfig,
    TextModel,
    Token,
    Tool,
    ToolCallDelta,
)
from inference_bridge.authoring import cut_off, join_tool_calls, settled
from inference_bridge.cli.progress import waiting
from inference_bridge.streams import AsyncTokenStream, TokenStream

from . import loaded
from .checked_prompt import CheckedPrompt
from .command import is_command
from .errors import ShownError, shown
from .interrupts import ending, is_chat
from .options import LOAD_OPTIONS

if TYPE_CHECKING:
    from .models import Bridge


def answer(
    user: Bridge, prompt: llm.Prompt, response: llm.Response, conversation: llm.Conversation | None, key: str | None
) -> Iterator[str | StreamEvent]:
    """Answer a prompt.

    Args:
        user: The llm model. Its TextModel stays loaded while this object exists.
        prompt: The prompt.
        response: Receives the tool calls, the usage and the finish reason.
        conversation: The conversation that the prompt belongs to.
        key: The API key of the model's server.

    Yields:
        The answer in pieces.

    Raises:
        ShownError: The prompt, an option or the schema is invalid, or loading or generating failed.
        SystemExit: This is a command, and the reader of its output has closed the pipe.
    """
    with shown(), waiting(user.offer.shown_name, is_command()) as progress:
        checked = CheckedPrompt(prompt, conversation, user.offer.kind.chat)
        model = loaded.load(user.offer, key, user, _load_options(prompt))
        progress.loaded()
        config = _config(model, prompt, checked)
        output = _Output(response, config)
        while True:
            try:
                with checked.stream(model, config) as tokens, ending(tokens) as interruption:
                    for token in tokens:
                        progress.end()
                        _end_if_unread()
                        yield from output.events(token)
                    if interruption.received:
                        output.interrupted(tokens)
                    else:
                        output.end(tokens)
                return
            except ContextLengthExceededError as error:
                _drop_oldest(checked, prompt, error)


async def aanswer(
    user: Bridge,
    prompt: llm.Prompt,
    response: llm.AsyncResponse,
    conversation: llm.AsyncConversation | None,
    key: str | None,
) -> AsyncGenerator[str | StreamEvent, None]:
    """`answer`, without blocking the event loop."""
    with shown(), waiting(user.offer.shown_name, is_command()) as progress:
        checked = CheckedPrompt(prompt, conversation, user.offer.kind.chat)
        model = await loaded.aload(user.offer, key, user, _load_options(prompt))
        progress.loaded()
        config = _config(model, prompt, checked)
        output = _Output(response, config)
        while True:
            try:
                async with checked.astream(model, config) as tokens:
                    async for token in tokens:
                        progress.end()
                        _end_if_unread()
                        for event in output.events(token):
                            yield event
                    output.end(tokens)
                return
            except ContextLengthExceededError as error:
                _drop_oldest(checked, prompt, error)


def _end_if_unread() -> None:
    """End the command if the reader of its output has closed the pipe, as `head` does. Otherwise llm shows an error."""
    if not is_command() or not hasattr(select, "poll"):
        return
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # 0: report errors only
        unread = any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # stdout is not a file
        return
    if unread:
        raise SystemExit(1)


def _load_options(prompt: llm.Prompt) -> dict[str, Any]:
    return prompt.options.model_dump(exclude_none=True, include=set(LOAD_OPTIONS))


def _config(model: TextModel, prompt: llm.Prompt, checked: CheckedPrompt) -> GenerateConfig:
    """Return the options of a call. The prompt's own come first, then the configuration file's, then the defaults."""
    options = prompt.options.model_dump(exclude_none=True, exclude={*LOAD_OPTIONS, "drop_oldest"})
    if options.get("reasoning") is False and "reasoning" not in model.capabilities:
        del options["reasoning"]  # a model that never reasons fulfils this request without the option
    config = GenerateConfig(
        json_schema=checked.schema,
        tools=[Tool(tool.name, tool.description or "", tool.input_schema) for tool in prompt.tools] or None,
        **options,
    )
    choice = config.tool_choice or model.defaults.tool_choice
    if choice not in (None, "auto", "none") and prompt.messages[-1].role == "tool":
        # llm sends the options of a chain with each turn, so a forced call would be forced again in every turn.
        config = config.with_options({"tool_choice": "auto"})
    return settled(config, model)


def _drop_oldest(checked: CheckedPrompt, prompt: llm.Prompt, error: ContextLengthExceededError) -> None:
    """Drop the oldest turn of a conversation that exceeds the context window.

    Raises:
        ContextLengthExceededError: `error`: the option drop_oldest is not set, or no older turn is left.
        ShownError: The same in a command that continues a conversation, if the option drop_oldest is not set. The
            message gives the command to continue with.
    """
    if not getattr(prompt.options, "drop_oldest", None):
        if any(message.role == "assistant" for message in checked.messages) and is_command():
            command = "llm chat -c" if is_chat() else "llm -c"
            raise ShownError(
                f"{error}. To continue without the oldest turns: {command} -o drop_oldest true; "
                f"with a larger context: {command} -o context_length {2 * error.context_length}"
            ) from error
        raise error
    if not checked.drop_oldest():
        raise error
    if is_command():
        click.echo("Warning: the conversation fills the context window: its oldest turn was left out", err=True)


class _Output:
    """Passes the results of one operation to llm: tokens as events, then the tool calls, the usage and warnings."""

    def __init__(self, response: llm.Response | llm.AsyncResponse, config: GenerateConfig) -> None:
        self._response = response
        self._config = config
        self._text: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}
        self._ids: dict[int, str] = {}

    def events(self, token: Token) -> Iterator[StreamEvent]:
        delta = token.tool_call
        if delta is None:
            if token.text:
                if token.kind == "text":
                    self._text.append(token.text)
                yield StreamEvent("reasoning" if token.kind == "reasoning" else "text", token.text)
            return
        # llm would take events without an id for another call than the one that add_tool_call reports.
        id = self._ids.setdefault(delta.index, delta.id or f"call_{secrets.token_hex(8)}")
        self._calls.setdefault(delta.index, []).append(delta)
        if delta.name:
            yield StreamEvent("tool_call_name", delta.name, tool_call_id=id)
        if delta.arguments:
            yield StreamEvent("tool_call_args", delta.arguments, tool_call_id=id)

    def interrupted(self, stream: TokenStream) -> None:
        """Record that Ctrl-C ended the answer. llm logs the part that was generated, and the chat continues."""
        self._calls.clear()
        click.echo("\n(interrupted)", err=True)
        self._response.response_json = {"finish_reason": "cancelled", "metrics": stream.metrics.to_dict()}

    def end(self, stream: TokenStream | AsyncTokenStream) -> None:
        """Record the tool calls, the usage and the finish reason. Raises BridgeError if a tool call is incomplete."""
        for index, deltas in sorted(self._calls.items()):
            calls = join_tool_calls(deltas)
            if not calls:
                raise BridgeError(
                    f"the call of tool {deltas[0].name!r} is incomplete (finish reason {stream.finish_reason!r}): "
                    "allow more max_tokens, or load the model with a larger context_length"
                )
            self._response.add_tool_call(llm.ToolCall(calls[0].name, calls[0].arguments, self._ids[index]))
        metrics = stream.metrics
        if (why := self._limit_reached(stream)) and is_command():
            line = "\n" if _outputs_share_terminal() else ""
            click.echo(f"{line}Warning: {why}", err=True)
        self._response.set_usage(
            input=metrics.prompt_tokens,
            output=metrics.generated_tokens,
            details={"cached_tokens": metrics.cached_tokens} if metrics.cached_tokens else None,
        )
        self._response.response_json = {"finish_reason": stream.finish_reason, "metrics": metrics.to_dict()}

    def _limit_reached(self, stream: TokenStream | AsyncTokenStream) -> str:
        """Return a sentence about the limit that ended or shortened the answer; "" if no limit did."""
        if stream.finish_reason == "length":
            broken = self._config.json_schema is not None and not _is_json("".join(self._text))
            why = cut_off(self._config, stream.metrics.generated_tokens)
            return f"{why} (the JSON is incomplete)" if broken else why
        if stream.shortened:
            return "the answer was shortened to stay within max_tokens or the context window: set a higher max_tokens"
        return ""


def _outputs_share_terminal() -> bool:
    """Return whether stdout and stderr are one terminal or file. Text on stderr then follows the answer's last line."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # stdout or stderr is not a file
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
