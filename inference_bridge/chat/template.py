# SPDX-License-Identifier: Apache-2.0
"""From messages to a prompt, through the model's own chat template.

The template is Jinja out of the model's files, which nobody vetted: it renders in the
sandbox of `sandbox`, bounded in time and size. Importing this module imports jinja2.

Templates differ in what they know. When one is loaded it is tried on a few small
conversations, and what it turns out not to know is done for it:

- no system role: the system text goes before the first user message's
- no tools, or calls in a notation that `markup` can't read back: tools are listed in the
  system text, in the words of `generic_tool_prompt`
- no tool calls or results in the conversation so far: they are written in that prompt's form
- one tool call a message: several become a call, its result, a call, its result
- arguments of a call only as JSON text, content only as a list of parts: they get it so

Nothing else is guessed. A model without a template has no `ChatTemplate`, and its backend
says so: chat is unsupported until one is given as `chat_template`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..errors import ModelLoadError, PrintableError, UnsupportedError
from ..options import ReasoningEffort
from ..types import Attachment, Message, Tool, ToolCall, join_tool_calls
from .generic_tools import calls_as_text, generic_tool_prompt, text_before
from .markup import GENERIC_OPENERS, ChatFormat, chat_output, detect_format
from .sandbox import Budget, LimitError, RefusalError, TemplateEnvironment

_log = logging.getLogger(__name__)

_SECONDS = 10.0
_CHARACTERS = 1 << 24
_CHARACTERS_FOR_EACH = 32
_TRIALS_SECONDS = 5.0


class ChatTemplateError(PrintableError, ValueError):
    """The template refuses these messages (the message is the template's own), or fails on them."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt, and what is needed to read the answer.

    `text` begins with the BOS token where the template writes it: the tokenizer must read
    special tokens in it, and add none. `in_reasoning`: the answer begins inside reasoning;
    `in_answer`: behind it, for the template closed it (reasoning was switched off).
    """

    text: str
    format: ChatFormat
    in_reasoning: bool = False
    in_answer: bool = False


@lru_cache(maxsize=8)
def compiled(source: str) -> Callable[[Mapping[str, Any], Budget], str]:
    """The function that renders the template, remembered: it may be made while the model is yet to be read.

    Raises jinja2's TemplateError, or another Exception.
    """
    return TemplateEnvironment().compile_template(source)


class ChatTemplate:
    """A model's chat template. May be used from many threads.

    source         the Jinja source; `tool_source`, if the model has one, is used where tools are offered
    bos_token, eos_token   their texts, which templates refer to
    vocabulary     the texts of the model's tokens, where the template leaves its markup unsaid
    backend        who says in errors that something is not supported

    Raises ModelLoadError for a template that is no Jinja, or breaks its bounds on a trial.
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
    ) -> None:
        self.format = detect_format(source, vocabulary)
        self.supports_tool_calls = False
        self._no_content: str | None = ""
        self._no_tools: list[Any] | None = None
        self._one_call_each = False
        self._backend = backend
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._with_tools: ChatTemplate | None = None
        if tool_source is not None and tool_source != source:
            self._with_tools = ChatTemplate(
                tool_source, bos_token=bos_token, eos_token=eos_token, vocabulary=vocabulary, backend=backend
            )
        try:
            self._template = compiled(source)
            self._try_out()
        except Exception as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ModelLoadError(
                f"the model's chat template can't be used ({why}); give another one as chat_template"
            ) from error
        self._developer = "developer" in source
        self._short_ids = re.search(r"length\s*!=\s*9\b", source) is not None

    # ------------------------------------------------ what the template knows

    def _try_out(self) -> None:
        user: dict[str, Any] = {"role": "user", "content": "QUESTION"}
        parts: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "QUESTION"}]}
        schema = {
            "type": "object",
            "properties": {"KEY": {"type": "string", "description": "DESCRIPTION"}},
            "required": ["KEY"],
        }
        tool = Tool("TOOL", "DESCRIPTION", schema).to_dict()

        deadline = time.monotonic() + _TRIALS_SECONDS

        def shown(*messages: dict[str, Any], **variables: Any) -> str:
            try:
                return self._run({"messages": list(messages), **variables}, deadline - time.monotonic())
            except LimitError:
                raise
            except Exception:
                return ""

        if not (shown(user) or shown(parts)):
            # Those written for tools alone iterate over them.
            self._no_tools = []
        in_parts = shown(parts)
        self.supports_parts = "QUESTION" in in_parts and "'type'" not in in_parts
        self._only_parts = self.supports_parts and "QUESTION" not in shown(user)
        if self._only_parts:
            user = parts
        self.supports_system = "SYSTEM" in shown(self._system("SYSTEM"), user)
        self.supports_tools = "TOOL" in shown(user, tools=[tool])

        calls = [
            {
                "id": f"call0000{n}",
                "type": "function",
                "function": {"name": f"TOOL{n}", "arguments": {"KEY": f"VALUE{n}"}},
            }
            for n in (1, 2)
        ]
        results = [
            {"role": "tool", "tool_call_id": f"call0000{n}", "name": f"TOOL{n}", "content": f"RESULT{n}"}
            for n in (1, 2)
        ]

        def known(count: int) -> bool:
            message = {"role": "assistant", "content": self._no_content, "tool_calls": self._written(calls[:count])}
            text = shown(user, message, *results[:count], tools=[tool])
            return all(f"{word}{n}" in text for word in ("TOOL", "VALUE", "RESULT") for n in range(1, count + 1))

        def read_back() -> bool:
            """Whether a call that the template writes is one for the parser of this format."""
            message = {"role": "assistant", "content": self._no_content, "tool_calls": self._written(calls[:1])}
            before = shown(user, tools=[tool])
            answer = _beyond(before, shown(user, message, tools=[tool], add_generation_prompt=False))
            output = chat_output(self.format, tools=[Tool("TOOL1", "", schema)])
            tokens = [*output.push(answer.encode()), *output.finish()]
            found = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
            return [(call.name, call.arguments) for call in found] == [("TOOL1", {"KEY": "VALUE1"})]

        for self._arguments_as_text, self._no_content in ((False, ""), (False, None), (True, ""), (True, None)):
            if known(1):
                self.supports_tool_calls = True
                self._one_call_each = not known(2)
                readable = read_back()
                break
        else:
            self._arguments_as_text, self._no_content = False, ""
            readable = self.format.openers != GENERIC_OPENERS
        if self.supports_tools and not readable:
            _log.info("the chat template writes tool calls in a notation that is not known: the generic prompt is used")
            self.supports_tools = False

        on, off = (shown(user, **_reasoning_variables(value)) for value in (True, False))
        self.reasoning_toggle = on != off
        low, high = (shown(user, reasoning_effort=effort) for effort in ("low", "high"))
        self.reasoning_effort = low != high

    @property
    def reasons(self) -> bool:
        """Whether the model reasons before it answers, or can be asked to."""
        format = self.format
        return self.reasoning_toggle or self.reasoning_effort or format.thinking is not None or format.harmony

    def _check_reasoning(self, reasoning: bool | ReasoningEffort | None) -> None:
        why = ""
        if isinstance(reasoning, str) and not self.reasoning_effort:
            why = "its chat template knows no degrees of reasoning; use True, False or leave it"
        elif reasoning is True and not self.reasons:
            why = "its chat template knows no reasoning"
        elif reasoning is False and self.reasons and not self.reasoning_toggle:
            why = "its chat template can't switch reasoning off"
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
    ) -> RenderedPrompt:
        """The prompt for the assistant's next turn.

        `tools` are to be shown; leave them out where none may be called. `options` are
        variables for the template, over all others. `media_marker` stands in the text for
        each attachment; without it the template places them.

        Raises ChatTemplateError (a ValueError) if the template refuses the messages or fails
        on them, UnsupportedError for what it has no place for, TypeError for an option that
        is no plain value.
        """
        if not messages:
            raise ValueError("a chat needs at least one message")
        if tools and self._with_tools is not None:
            return self._with_tools.render(
                messages, tools=tools, reasoning=reasoning, options=options, media_marker=media_marker
            )
        self._check_reasoning(reasoning)
        format = self.format
        shown: list[dict[str, Any]] | None = [_plain(tool.to_dict(), f"tool {tool.name}") for tool in tools] or None
        turns = _with_ids(messages, self._short_id if self._short_ids else str)
        if not self.supports_tool_calls or (tools and not self.supports_tools):
            turns = calls_as_text(turns)
            format = replace(format, openers=tuple(dict.fromkeys((*format.openers, GENERIC_OPENERS[0]))))
        elif self._one_call_each:
            turns = _one_call_each(turns)
        if tools and not self.supports_tools:
            turns = text_before(turns, generic_tool_prompt(tools), "system")
            shown = None
            format = replace(format, openers=tuple(dict.fromkeys((*format.openers, *GENERIC_OPENERS))), bare=True)
        if not self.supports_system:
            turns = _without_system(turns)
        variables = {
            "messages": [self._turn(turn, media_marker) for turn in turns],
            "tools": shown,
            **_reasoning_variables(reasoning),
            **{name: _plain(value, f"template option {name}") for name, value in (options or {}).items()},
        }
        try:
            text = self._run(variables, _SECONDS)
        except RefusalError as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from None
        except LimitError as error:
            raise ChatTemplateError(f"the model's chat template was stopped: {error}") from None
        except Exception as error:
            raise ChatTemplateError(
                f"the model's chat template fails on these messages: {type(error).__name__}: {error}"
            ) from error
        if format.thinking is None:
            return RenderedPrompt(text, format)
        end = text.rstrip()
        return RenderedPrompt(
            text, format, end.endswith(format.thinking.opens), in_answer=end.endswith(format.thinking.closes)
        )

    def _run(self, variables: Mapping[str, Any], seconds: float) -> str:
        budget = Budget(seconds, _CHARACTERS)
        size = budget.size(variables["messages"]) + budget.size(variables.get("tools"))
        budget.limit = budget.left = _CHARACTERS + _CHARACTERS_FOR_EACH * size
        own = {"documents": None, "add_generation_prompt": True, **self._tokens}
        return self._template(own | dict(variables) | {"tools": variables.get("tools") or self._no_tools}, budget)

    # ------------------------------------------------ one message

    def _system(self, text: str) -> dict[str, Any]:
        return {"role": "system", "content": [{"type": "text", "text": text}] if self._only_parts else text}

    def _turn(self, message: Message, media_marker: str | None) -> dict[str, Any]:
        """A message as templates expect it."""
        content = self._content(message, media_marker)
        role = "system" if message.role == "developer" and not self._developer else message.role
        turn: dict[str, Any] = {"role": role, "content": content}
        reasoning = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = self._written(
                [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": _plain(call.arguments, f"call of {call.name}")},
                    }
                    for call in message.tool_calls
                ]
            )
            if not content:
                turn["content"] = self._no_content
            elif self.format.harmony and reasoning:
                # Harmony's template has room for one of the two beside a call, under the same header.
                reasoning, turn["content"] = f"{reasoning}\n\n{message.text}", self._no_content
        if reasoning:
            turn["reasoning_content"] = turn["thinking"] = reasoning
        for key in ("tool_call_id", "name"):
            if getattr(message, key) is not None:
                turn[key] = getattr(message, key)
        return turn

    def _content(self, message: Message, media_marker: str | None) -> str | list[dict[str, Any]]:
        if message.attachments and media_marker is None:
            if not self.supports_parts:
                raise UnsupportedError("attachments", self._backend, "its chat template has no place for them")
        elif self._only_parts:
            return [{"type": "text", "text": self._text(message, media_marker)}]
        else:
            return self._text(message, media_marker)
        return [
            {"type": "text", "text": part} if isinstance(part, str) else self._medium(part) for part in message.parts
        ]

    def _text(self, message: Message, media_marker: str | None) -> str:
        return "".join(part if isinstance(part, str) else media_marker or "" for part in message.parts)

    def _medium(self, attachment: Attachment) -> dict[str, Any]:
        kind = attachment.type.partition("/")[0]
        if kind not in ("image", "audio", "video"):
            raise UnsupportedError(f"attachments of type {attachment.type}", self._backend)
        return {"type": kind}

    def _written(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._arguments_as_text:
            return calls
        functions = [call["function"] for call in calls]
        return [
            call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
            for call, function in zip(calls, functions, strict=True)
        ]

    @staticmethod
    def _short_id(id: str) -> str:
        """Mistral's templates take nothing but nine letters and digits."""
        return id if re.fullmatch(r"[A-Za-z0-9]{9}", id) else hashlib.sha256(id.encode()).hexdigest()[:9]


def _reasoning_variables(reasoning: bool | ReasoningEffort | None) -> dict[str, Any]:
    if reasoning is None:
        return {}
    switched = reasoning is not False
    variables: dict[str, Any] = {"enable_thinking": switched, "thinking": switched}
    return variables | {"reasoning_effort": reasoning} if isinstance(reasoning, str) else variables


def _beyond(prompt: str, text: str) -> str:
    """What `text` has behind `prompt`, or behind the beginning they share, from the start of the tag it ends in."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    pairs = enumerate(zip(prompt, text, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(text)))
    tag = max(text.rfind("<", 0, shared), text.rfind("[", 0, shared))
    return text[shared if tag < 0 or ">" in text[tag:shared] or "]" in text[tag:shared] else tag :]


def _plain(value: Any, where: str) -> Any:
    """A copy out of plain values, so that a template gets hold of nothing with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, where) for item in value]
    raise TypeError(f"{where} holds a {type(value).__name__}: a chat template takes plain values only")


# ---------------------------------------------------------------- what templates don't know


def _with_ids(messages: Sequence[Message], form: Callable[[str], str]) -> list[Message]:
    """Every call with an id, every result with its call's id and name, where they can be told by their order."""
    turns = []
    waiting: list[ToolCall] = []
    count = 0
    for message in messages:
        if message.tool_calls:
            waiting = []
            for call in message.tool_calls:
                count += 1
                waiting.append(replace(call, id=form(call.id or f"call{count:05d}")))
            message = replace(message, tool_calls=tuple(waiting))
        elif message.role == "tool":
            id = form(message.tool_call_id) if message.tool_call_id else None
            call_ = next((call for call in waiting if call.id == id or id is None), None)
            if call_ is not None:
                waiting = [call for call in waiting if call is not call_]
                message = replace(message, tool_call_id=call_.id, name=message.name or call_.name)
            else:
                message = replace(message, tool_call_id=id)
        turns.append(message)
    return turns


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Several calls in one message become a message each, with its result behind it."""
    turns: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.tool_calls) < 2:
            turns.append(message)
            continue
        results = []
        while rest and rest[0].role == "tool":
            results.append(rest.pop(0))
        for number, call in enumerate(message.tool_calls):
            first = number == 0
            turns.append(
                replace(
                    message,
                    content=message.content if first else "",
                    reasoning=message.reasoning if first else None,
                    tool_calls=(call,),
                )
            )
            turns += [result for result in results if result.tool_call_id == call.id]
            results = [result for result in results if result.tool_call_id != call.id]
        turns += results
    return turns


def _without_system(messages: Sequence[Message]) -> list[Message]:
    system = [message.text for message in messages if message.role in ("system", "developer")]
    rest = [message for message in messages if message.role not in ("system", "developer")]
    return text_before(rest, "\n\n".join(system), "user") if system else rest
