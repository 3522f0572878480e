# SPDX-License-Identifier: Apache-2.0
"""Turns messages into a prompt with the model's own chat template.

The template comes from the model's files and is not trusted: `renderer` renders it in a
separate process, with limits. Nothing here imports Jinja2.

Templates differ in what they support. When a template is loaded, it is tried on small conversations
(`template_traits`). This module then changes conversations to a form that the template supports:

- If the template does not support the system role, the system text is put before the text of the first user message.
- If it refuses or omits a system message, such as a second one or one later in the conversation, the message becomes
  part of the first one, or of a user message (`system_messages`).
- If it does not support tools, or writes calls in a notation that no parser reads, the system text lists the
  tools, in the words of `generic_tool_prompt`.
- If it supports tools, but not earlier calls, calls are written as content, in the family's own notation.
- If it supports neither, calls and results are written in the form of the generic prompt.
- If it takes only one call in a message, or text and calls only in separate messages, messages are split.
- If it takes the arguments of a call only as JSON text, or content only as a list of parts, they are converted.

A template may still refuse a conversation, fail on it, or omit a tool
(Command R+ needs a description for every parameter). Then the next of these forms is tried.

For a model without a chat template no `ChatTemplate` is made, and its backend raises UnsupportedError
for a chat until the caller loads the model with `chat_template`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ...errors import GenerationError, ModelLoadError, PrintableError, UnsupportedError
from ...options import ReasoningEffort
from ...types import Attachment, Message, Tool
from ..formats.response_template import ResponseTemplateError, load_response_template
from ..generic_tools import calls_as_text, contents, generic_tool_prompt, joined, text_before
from ..harmony_text import marked, with_headers
from ..markup import GENERIC_OPENERS, ChatFormat, Thinking, detect_format
from ..past_calls import (
    IdForm,
    as_given,
    call_writer,
    calls_as_content,
    nine_characters,
    nine_or_more,
    one_call_each,
    text_apart,
    text_merged,
    with_ids,
    with_name,
)
from ..system_messages import are_usual, lost, usual
from .renderer import Budget, FailureError, LimitError, RefusalError, Renderer, RenderError
from .template_traits import REASONING_KEYS, find_traits, reasoning_variables, written_calls

_log = logging.getLogger(__name__)

# Maximum processor time of all trials together. Their maximum elapsed time is much longer: a machine may be busy.
_TRIALS_SECONDS = 4.0
_TRIALS_ELAPSED_SECONDS = 60.0
_MAX_CACHED_TOOLS = 64
_UNTRIED = object()

_IDS: Mapping[str, IdForm] = {
    "any": as_given,
    "nine_or_more": nine_or_more,
    "nine": nine_characters,
    "with_name": with_name,
}


class ChatTemplateError(PrintableError, ValueError):
    """The template refuses these messages, or fails on them. The text of a refusal is the template's own."""


class _OmittedError(ChatTemplateError):
    """The template leaves out an attachment, or shows it twice."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt, and how to read the output that the model writes after it.

    Attributes:
        text: The prompt. The tokenizer must parse the special tokens in it and add none: the
            template has written the BOS token if the model needs it.
        format: How the model marks reasoning and tool calls.
        in_reasoning: The prompt ends inside reasoning, so the output begins there.
        in_answer: The prompt ends after closed reasoning, because reasoning was switched off:
            the output begins with the answer.
    """

    text: str
    format: ChatFormat
    in_reasoning: bool = False
    in_answer: bool = False


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to show a conversation.

    Attributes:
        turns: The messages.
        tools: The tools that the template shows.
        format: How to read the answer.
        mark: The mark before each text beside a call, for Harmony (see `harmony_text`).
        checked: Whether the prompt must contain the system messages. The template may omit one.
    """

    turns: Sequence[Message]
    tools: Sequence[Tool]
    format: ChatFormat
    mark: str = ""
    checked: bool = False


class ChatTemplate:
    """A model's chat template. Thread-safe.

    Args:
        source: The Jinja source.
        tool_source: The model's second template, which is used if tools are offered; None if it has none.
        bos_token: The text of the BOS token, to which templates refer.
        eos_token: The text of the EOS token.
        vocabulary: The texts of the model's tokens. They identify the markup if the template doesn't name it.
        backend: The name of the backend, for errors.
        renderer: A renderer of `source`, if one has been made already.
        response_template: The `response_template` of the model's files, which says how to read outputs. It is
            not used if it is not valid, or if it does not read back a call that `source` writes.

    Raises:
        ModelLoadError: The template is not valid Jinja, or exceeds a limit in a trial; or Jinja2 is not installed.
    """

    def __init__(
        self,
        source: str,
        *,
        tool_source: str | None = None,
        bos_token: str = "",
        eos_token: str = "",
        vocabulary: Container[str] = (),
        backend: str = "this model",
        renderer: Renderer | None = None,
        response_template: Mapping[str, Any] | None = None,
    ) -> None:
        self.format = _with_response(detect_format(source, vocabulary), response_template)
        self._backend = backend
        self._vocabulary = vocabulary
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._developer = "developer" in source
        # For tools (as JSON): the first name of a tool or parameter that the template omits; None if it shows all.
        self._shown: dict[str, str | object | None] = {}
        self._with_tools: ChatTemplate | None = None
        if tool_source is not None and tool_source != source:
            self._with_tools = ChatTemplate(
                tool_source,
                bos_token=bos_token,
                eos_token=eos_token,
                vocabulary=vocabulary,
                backend=backend,
                response_template=response_template,
            )
        try:
            self._renderer = renderer or Renderer(source)
            self._undeclared = self._renderer.undeclared()
            budget = Budget(_TRIALS_SECONDS)
            deadline = time.monotonic() + _TRIALS_ELAPSED_SECONDS
            self._traits = find_traits(
                lambda variables, no_tools: self._run(variables, no_tools, deadline - time.monotonic(), budget),
                self.format,
            )
        except (RenderError, ModuleNotFoundError) as error:
            raise ModelLoadError(
                f"the model's chat template can't be used ({error}); give another one as chat_template"
            ) from error
        self.format = self._traits.format
        self.supports_system = self._traits.system
        self.supports_parts = self._traits.parts
        self.supports_tools = self._traits.tools
        self.supports_tool_calls = self._traits.tool_calls
        self.reasoning_toggle = self._traits.reasoning_toggle
        self.reasoning_effort = self._traits.reasoning_effort

    def close(self) -> None:
        """Stop the renderer's process if no other template needs it. May be called twice."""
        self._renderer.close()
        if self._with_tools is not None:
            self._with_tools.close()

    @property
    def reasons(self) -> bool:
        """Whether the model reasons before it answers, or can do so on request."""
        format = self.format
        return self.reasoning_toggle or self.reasoning_effort or format.thinking is not None or format.harmony

    def _check_reasoning(self, reasoning: bool | ReasoningEffort | None) -> None:
        why = ""
        if isinstance(reasoning, str) and not self.reasoning_effort:
            why = "the model's chat template has no levels of reasoning; use True or False, or leave it unset"
        elif reasoning is True and not self.reasons:
            why = "the model's chat template has no reasoning"
        elif reasoning is False and self.reasons and not self.reasoning_toggle:
            why = "the model's chat template can't switch reasoning off"
        if why:
            raise UnsupportedError(f"reasoning={reasoning!r}", self._backend, why)

    # ------------------------------------------------ rendering

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        reasoning: bool | ReasoningEffort | None = None,
        options: Mapping[str, Any] | None = None,
        media_marker: str | None = None,
        timeout: float | None = None,
    ) -> RenderedPrompt:
        """Render the prompt for the assistant's next turn.

        Args:
            messages: The conversation, at least one message.
            tools: The tools that the model may call.
            reasoning: Whether the model reasons, or how much; None: the template's default.
            options: Variables for the template. They replace variables of the same name.
            media_marker: The text to write in place of each attachment. Without it the template
                places attachments.
            timeout: The maximum elapsed time in seconds. The renderer's own limits apply if they are shorter.

        Returns:
            The prompt, and how to read the output after it.

        Raises:
            ChatTemplateError: The template refuses the messages, fails on them, or exceeds a limit (a ValueError).
            UnsupportedError: The template does not support attachments of this kind or in these places, or `reasoning`.
            TypeError: An option is not a plain value, such as a str, a number or a list.
            ValueError: `messages` is empty.
        """
        if not messages:
            raise ValueError("a chat needs at least one message")
        if tools and self._with_tools is not None:
            return self._with_tools.render(
                messages,
                tools=tools,
                reasoning=reasoning,
                options=options,
                media_marker=media_marker,
                timeout=timeout,
            )
        self._check_reasoning(reasoning)
        common = reasoning_variables(reasoning) | {
            name: _plain(value, f"template option {name}") for name, value in (options or {}).items()
        }
        deadline = None if timeout is None else time.monotonic() + timeout
        attached = sum(len(message.attachments) for message in messages)
        if attached and media_marker is not None:
            messages = [_with_markers(message, media_marker) for message in messages]
        first: ChatTemplateError | None = None
        for form in self._ways(messages, tools):
            try:
                text = self._rendered(form, common, deadline)
                if attached and media_marker is not None and (places := text.count(media_marker)) != attached:
                    raise _OmittedError(f"the chat template shows {places} of {attached} attachments")
                if form.checked and lost(form.turns, text):
                    raise ChatTemplateError("the model's chat template omits a system message")
            except ChatTemplateError as error:
                if isinstance(error.__cause__, LimitError):
                    raise
                first = first or error
                continue
            if first is not None:
                _log.info("the messages or the tools are shown in another form: %s", first)
            return self._prompt(text, form.format)
        assert first is not None
        if isinstance(first, _OmittedError):
            why = f"{first}: put attachments into messages of the user"
            raise UnsupportedError("these attachments", self._backend, why)
        raise first

    def _ways(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[_Form]:
        """Yield the forms of this conversation.

        If its system messages are in unusual places, only the first form keeps them there; the other forms have them
        where every template shows them (`system_messages`).
        """
        if are_usual(messages):
            yield from self._forms(messages, tools)
            return
        yield replace(next(self._forms(messages, tools)), checked=True)
        yield from self._forms(usual(messages), tools)

    def _forms(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[_Form]:
        """Yield the forms in which this conversation can be shown, the template's own first."""
        traits = self._traits
        turns = with_ids(messages, _IDS[traits.ids])
        has_calls = any(message.tool_calls or message.role == "tool" for message in turns)
        write = call_writer(self.format, turns, self._vocabulary) if has_calls else None
        if traits.tools or not tools:
            if traits.tool_calls or not has_calls:
                if traits.text_marked and any(turn.tool_calls and turn.attachments for turn in turns):
                    why = "the chat template can't show them: put them into messages of the user"
                    raise UnsupportedError("attachments beside a tool call", self._backend, why)
                shown, mark = marked(turns) if traits.text_marked else (turns, "")
                for split in self._splits():
                    native: Sequence[Message] = split(shown)
                    yield _Form(one_call_each(native) if traits.one_call_each else native, tools, self.format, mark)
            if write is not None and traits.tool_role:
                yield _Form(calls_as_content(turns, write), tools, self.format)
        if not has_calls and not tools:
            return
        openers = (*self.format.openers, *(GENERIC_OPENERS if tools else GENERIC_OPENERS[:1]))
        format = replace(self.format, openers=tuple(dict.fromkeys(openers)), bare=self.format.bare or bool(tools))
        if tools:
            format = replace(format, response=None)  # a response template reads only the model's own notation
        generic: Sequence[Message] = calls_as_text(turns)
        if tools:
            generic = text_before(generic, generic_tool_prompt(tools), "system")
        yield _Form(generic, (), format)

    def _splits(self) -> tuple[Callable[[Sequence[Message]], Sequence[Message]], ...]:
        """Return the ways to separate text from calls, the best one first."""
        if not self._traits.text_apart:
            return (list,)
        return (partial(text_apart, reasoning_with_calls=self._traits.reasoning_with_calls), text_merged)

    def _rendered(self, form: _Form, common: Mapping[str, Any], deadline: float | None) -> str:
        turns = form.turns if self.supports_system else _without_system(form.turns)
        tools = [_plain(tool.to_dict(), f"tool {tool.name}") for tool in form.tools] or None
        variables = {"messages": [self._turn(turn) for turn in turns], "tools": tools, **common}
        try:
            left = None if deadline is None else deadline - time.monotonic()
            if tools:
                self._check_shown(tools, left)
            text = self._run(variables, self._traits.no_tools, left)
        except RefusalError as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error
        except FailureError as error:
            raise ChatTemplateError(f"the model's chat template fails on these messages: {error}") from error
        except LimitError as error:
            raise ChatTemplateError(f"the model's chat template was stopped: {error}") from error
        if not form.mark:
            return text
        if form.mark not in text:
            raise ChatTemplateError("the model's chat template omits the text beside a tool call")
        return with_headers(text, form.mark)

    def _check_shown(self, tools: list[dict[str, Any]], seconds: float | None) -> None:
        """Raise ChatTemplateError unless the template shows all tools, and all parameters if it shows parameters.

        Try it on a conversation of one question: in the caller's conversation, messages may contain the names too.
        """
        key = json.dumps(tools)
        # Only one look-up: between two, another thread may clear the cache.
        missing = self._shown.get(key, _UNTRIED)
        if missing is _UNTRIED:
            question = self._turn(Message("user", "QUESTION"))
            text = self._run({"messages": [question], "tools": tools}, self._traits.no_tools, seconds)
            if len(self._shown) >= _MAX_CACHED_TOOLS:
                self._shown.clear()
            missing = next((name for name in self._names(tools) if not _is_in(name, text)), None)
            self._shown[key] = missing
        if missing is not None:
            raise ChatTemplateError(f"the model's chat template does not show {missing!r} of the tools")

    def _names(self, tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        for tool in tools:
            yield tool["function"]["name"]
            properties = tool["function"]["parameters"].get("properties") if self._traits.parameters else None
            yield from properties if isinstance(properties, Mapping) else ()

    def _prompt(self, text: str, format: ChatFormat) -> RenderedPrompt:
        if format.response is not None:
            try:
                format = replace(format, beginning=format.response.beginning(text))
            except GenerationError as error:
                raise ChatTemplateError(str(error)) from error
        if format.thinking is None:
            return RenderedPrompt(text, format)
        end = text.rstrip()
        thinking = format.thinking.begun_in(end)
        closed = tuple(closes for _, closes in thinking.pairs)
        return RenderedPrompt(
            text, replace(format, thinking=thinking), end.endswith(thinking.opens), in_answer=end.endswith(closed)
        )

    def _run(
        self,
        variables: Mapping[str, Any],
        no_tools: list[Any] | None,
        seconds: float | None,
        budget: Budget | None = None,
    ) -> str:
        tools = variables.get("tools") or no_tools
        own: dict[str, Any] = {"documents": None, "add_generation_prompt": True, **self._tokens}
        # Names that Firefunction's template uses; llama.cpp sets them too.
        if "functions" in self._undeclared:
            own["functions"] = json.dumps(tools, indent=2, ensure_ascii=False) if tools else ""
        if "datetime" in self._undeclared:
            own["datetime"] = datetime.now(UTC).strftime("%b %d %Y %H:%M:%S GMT")
        return self._renderer.render(own | dict(variables) | {"tools": tools}, seconds, budget)

    # ------------------------------------------------ one message

    def _turn(self, message: Message) -> dict[str, Any]:
        """Return a message in the form that templates expect."""
        content: str | list[dict[str, Any]] | None = self._content(message)
        role = "system" if message.role == "developer" and not self._developer else message.role
        turn: dict[str, Any] = {"role": role, "content": content}
        reasoning = message.reasoning
        if message.tool_calls:
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _plain(call.arguments, f"call of {call.name}")},
                }
                for call in message.tool_calls
            ]
            turn["tool_calls"] = written_calls(calls, self._traits.arguments_as_text)
            if not message.content:
                turn["content"] = self._traits.no_content
        if reasoning and self._traits.thinking_parts:
            parts = [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []
            turn["content"] = [{"type": "thinking", "thinking": reasoning}, *parts]
        elif reasoning:
            turn |= dict.fromkeys(REASONING_KEYS, reasoning)
            if message.tool_calls:
                turn["tool_plan"] = reasoning  # Cohere's name for reasoning before a call
        for key in ("tool_call_id", "name"):
            if getattr(message, key) is not None:
                turn[key] = getattr(message, key)
        return turn

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        if not message.attachments:
            return [{"type": "text", "text": message.text}] if self._traits.only_parts else message.text
        if not self.supports_parts:
            raise UnsupportedError("attachments", self._backend, "the model's chat template does not support them")
        return [
            {"type": "text", "text": part} if isinstance(part, str) else self._medium(part) for part in message.parts
        ]

    def _medium(self, attachment: Attachment) -> dict[str, Any]:
        kind = attachment.type.partition("/")[0]
        if kind not in ("image", "audio", "video"):
            raise UnsupportedError(f"attachments of type {attachment.type}", self._backend)
        return {"type": kind}


def _with_response(format: ChatFormat, given: Mapping[str, Any] | None) -> ChatFormat:
    """Return the format with the model's response template, if it has one that can be used."""
    if given is None:
        return format
    try:
        response = load_response_template(given)
    except ResponseTemplateError as error:
        _log.warning("the model's response_template is not used (%s). The built-in parsers read the answers", error)
        return format
    thinking = format.thinking
    if thinking is None and response.thinking is not None and not format.harmony and not format.output:
        thinking = Thinking(*response.thinking)
    return replace(format, response=response, thinking=thinking)


def _with_markers(message: Message, marker: str) -> Message:
    """Return the message with the marker as text in place of each attachment, so that every form keeps its place."""
    text = "".join(part if isinstance(part, str) else marker for part in message.parts)
    return replace(message, content=text) if message.attachments else message


def _is_in(name: str, text: str) -> bool:
    """Return whether a prompt contains a name, as it is or as JSON writes it."""
    return any(
        form in text for form in (name, *(json.dumps(name, ensure_ascii=ascii)[1:-1] for ascii in (False, True)))
    )


def _plain(value: Any, where: str) -> Any:
    """Return a copy that consists only of JSON's types. Raises TypeError if that is not possible."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(_plain(key, where)): _plain(item, where) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, where) for item in value]
    raise TypeError(
        f"{where} contains a {type(value).__name__}; a chat template takes only str, number, bool, None, list and dict"
    )


def _without_system(messages: Sequence[Message]) -> list[Message]:
    system = [message for message in messages if message.role in ("system", "developer")]
    rest = [message for message in messages if message.role not in ("system", "developer")]
    return text_before(rest, joined(contents(system)), "user") if system else rest
