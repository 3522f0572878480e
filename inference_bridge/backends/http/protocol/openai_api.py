# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible API: /chat/completions and /completions, in the form that each server supports.

Sources: https://platform.openai.com/docs/api-reference/chat, and the documentation of each server for its additions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ....chat.attachments import content
from ....chat.markup import ChatFormat, Thinking, chat_output
from ....errors import ServerError, UnsupportedError
from ....grammar.number_bounds import with_bounded_numbers
from ....options import GenerateConfig, is_forced
from ....request import Request
from ....types import Attachment, FinishReason, Message, Token, Tool
from ..servers import SERVERS
from ..transport.errors import UnansweredError
from . import llama_api
from .fields import NO_LOGPROBS, as_base64
from .llama_api import logprobs_of, token_id
from .llama_schema import closed
from .text import Text, whole
from .tool_calls import ToolCalls, check_choice, cut_off

_NOT_OPENAI = ("top_k", "min_p", "repeat_penalty")

_COMMON = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")

_THINKING = Thinking("<think>", "</think>")
"""The tags of reasoning that servers leave in the text, if they are not configured to separate reasoning."""

_OVER_BUDGET = 16
"""Number of tokens of reasoning beyond the budget that servers may need to end it."""

MOST_STOPS = 4
"""Maximum number of stop strings that OpenAI, vLLM and TGI accept. All stop strings are also searched for here, so
further ones work too."""

_ENDLESS: Mapping[str, Any] = {"llama.cpp": -1, "mlx-lm": 1 << 30}
"""The value that is sent for max_tokens=-1, if omitting the field has another meaning."""

_TEXTS: Mapping[str, Mapping[str, Any]] = {"vllm": {"return_tokens_as_token_ids": False}}
"""vLLM started with --return-tokens-as-token-ids would write "token_id:5" for the text of each alternative."""

_MLX_WINDOWS = {
    "repeat_penalty": "repetition_context_size",
    "presence_penalty": "presence_context_size",
    "frequency_penalty": "frequency_context_size",
}
"""mlx-lm's default is to look 20 tokens back; the contract's is 64."""


# ---------------------------------------------------------------- requests


def chat(server: str, messages: Iterable[Message], config: GenerateConfig) -> dict[str, Any]:
    """Return the body of a request to /chat/completions."""
    out = _common(server, config)
    out["messages"] = [message_fields(message, server) for message in messages]
    if config.max_tokens == -1 and server not in _ENDLESS:
        out.pop("max_tokens")  # left out, it means "as many as fit"
    kind = SERVERS[server]
    tools = [tool.to_dict() for tool in config.tools or () if isinstance(tool, Tool)]
    if tools and not (config.tool_choice == "none" and not kind.forces):
        if server in ("vllm", "sglang") and is_forced(config.tool_choice):
            # Else vLLM forces the call alone, and its arguments may be any JSON.
            tools = [tool | {"function": _strict(server, tool["function"])} for tool in tools]
        out["tools"] = tools
        if config.tool_choice is not None and kind.forces:
            out["tool_choice"] = _tool_choice(config.tool_choice)
        if kind.named_choice == "required" and isinstance(out.get("tool_choice"), dict):
            out["tools"] = [tool for tool in tools if tool["function"]["name"] == config.tool_choice]
            out["tool_choice"] = "required"
    if config.json_schema is not None:
        out.update(_schema(server, config.json_schema))
    if server == "vllm":
        out["return_token_ids"] = True
    if config.logprobs is not None and config.logprobs > 0:
        out["logprobs"], out["top_logprobs"] = True, config.logprobs
        out.update(_TEXTS.get(server, {}))
    elif config.stop_tokens and server == "llama.cpp":
        out["logprobs"], out["top_logprobs"] = True, 1  # they bring the ids
    variables = dict(config.template_options or {})
    if config.reasoning is not None:
        if "template_options" in kind.options:
            variables = {**reasoning_variables(config.reasoning), **variables}
        elif server == "openrouter":
            effort = isinstance(config.reasoning, str)
            out["reasoning"] = {"effort" if effort else "enabled": config.reasoning}
        else:
            out["reasoning_effort"] = "none" if config.reasoning is False else config.reasoning
    if variables:
        out["chat_template_kwargs"] = variables
    if config.reasoning_budget is not None:
        out[kind.names["reasoning_budget"]] = config.reasoning_budget
    return out


def completion(server: str, prompt: str, config: GenerateConfig) -> dict[str, Any]:
    """Return the body of a request to /completions."""
    out = _common(server, config)
    out["prompt"] = prompt
    if config.max_tokens == -1 and server not in _ENDLESS:
        out["max_tokens"] = None
    if server == "vllm":
        out["return_token_ids"] = True
    if config.logprobs is not None and config.logprobs > 0:
        out["logprobs"] = config.logprobs
        out.update(_TEXTS.get(server, {}))
    if config.json_schema is not None:
        out.update(_schema(server, config.json_schema))
    return out


def _common(server: str, config: GenerateConfig) -> dict[str, Any]:
    if server == "llama.cpp":
        out = llama_api.sampling(config)
        out.pop("json_schema", None)
        if "n_predict" in out:
            out["max_tokens"] = out.pop("n_predict")
    else:
        out = {name: getattr(config, name) for name in _COMMON if getattr(config, name) is not None}
        for field in _NOT_OPENAI:
            if getattr(config, field) is not None:
                out[SERVERS[server].names.get(field, field)] = getattr(config, field)
        _switch_off(server, config, out)
        if config.seed is not None:
            out["seed"] = config.seed % llama_api.SEEDS
        if config.max_tokens is not None:
            out["max_tokens"] = config.max_tokens
        if config.stop and server != "mlx-lm":  # which takes them out of the text, and goes on
            out["stop"] = list(config.stop)[:MOST_STOPS]
        if config.stop_tokens and server == "tabbyapi":
            out["stop"] = [*(config.stop or ()), *config.stop_tokens]
        elif config.stop_tokens:
            out["stop_token_ids"] = list(config.stop_tokens)
        if config.regex is not None and server == "tabbyapi":
            out["regex_pattern"] = config.regex
        elif config.regex is not None:
            out["structured_outputs"] = {"regex": config.regex}
        if config.choices is not None:
            out["structured_outputs"] = {"choice": list(config.choices)}
        if config.logit_bias:
            out["logit_bias"] = {str(token): bias for token, bias in config.logit_bias.items()}
        if config.min_tokens:
            out["min_tokens"] = config.min_tokens
        if server == "mlx-lm":
            out.update({name: 64 for field, name in _MLX_WINDOWS.items() if getattr(config, field)})
    if config.max_tokens == -1 and server in _ENDLESS:
        out["max_tokens"] = _ENDLESS[server]
    out["stream"] = True
    out["stream_options"] = {"include_usage": True}
    return out


def _switch_off(server: str, config: GenerateConfig, out: dict[str, Any]) -> None:
    """Replace the contract's zeros, which mean "off", by the values that mean "off" on the server."""
    if config.top_p == 0:
        out["top_p"] = 1.0
    if server == "tgi" and out.get("top_p") == 1.0:
        del out["top_p"]  # it refuses 1
    if config.repeat_penalty == 0:
        out[SERVERS[server].names.get("repeat_penalty", "repeat_penalty")] = 1.0
    if config.top_k == 0 and server in ("vllm", "sglang"):
        out["top_k"] = -1


def _strict(server: str, function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool whose parameters the server must enforce."""
    out = dict(function) | {"strict": True}
    if SERVERS[server].endless_integers and "parameters" in out:
        out["parameters"] = with_bounded_numbers(out["parameters"], any_type=False, integers_only=True)
    return out


def _schema(server: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if server == "llama.cpp":
        schema = closed(schema)
    if SERVERS[server].endless_integers:
        schema = with_bounded_numbers(schema, any_type=False, integers_only=True)
    wrapped = {"name": "answer", "schema": schema, "strict": True}
    if server == "tgi":
        return {"response_format": {"type": "json_schema", "value": wrapped}}
    if server == "tabbyapi":
        return {"json_schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def _tool_choice(choice: str) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def reasoning_variables(reasoning: bool | str) -> dict[str, Any]:
    """Return the variables of chat templates that set the reasoning. They are the same as for a model in process."""
    switched = reasoning is not False
    out: dict[str, Any] = {"enable_thinking": switched, "thinking": switched}
    return out | {"reasoning_effort": reasoning} if isinstance(reasoning, str) else out


def message_fields(message: Message, server: str) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role}
    if not message.attachments:
        out["content"] = message.text  # a template may know no parts
    else:
        out["content"] = [
            {"type": "text", "text": part} if isinstance(part, str) else _attachment(part, server)
            for part in _joined(message.parts)
        ]
    if message.tool_calls:
        out["tool_calls"] = [call.to_dict() for call in message.tool_calls]
        if not message.content:
            out["content"] = None if server != "mlx-lm" else ""
    for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            out[name] = value
    if message.reasoning is not None:
        out.update(dict.fromkeys(_REASONING.get(server, ("reasoning_content",)), message.reasoning))
    return out


_REASONING: Mapping[str, Sequence[str]] = {
    "vllm": ("reasoning", "reasoning_content"),  # the second is what versions before 0.12 read
    "openrouter": ("reasoning",),
}
"""The fields in which servers read the reasoning of earlier turns, if the field is not "reasoning_content"."""


def _joined(parts: Iterable[str | Attachment]) -> Iterator[str | Attachment]:
    """Join adjacent texts, because servers put a newline between two texts."""
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        if is_text:
            yield "".join(map(str, group))
        else:
            yield from group


def _attachment(attachment: Attachment, server: str) -> dict[str, Any]:
    """Return an image as a data URL, because the server can't read this machine's files; or sound as base64."""
    kind, _, subtype = attachment.type.partition("/")
    data = content(attachment)
    if kind == "image":
        url = attachment.url
        if url is None and data is not None:
            url = f"data:{attachment.type};base64,{as_base64(data)}"
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "audio" and data is not None:
        names = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
        names["*"] = "wav" if data.startswith(b"RIFF") else "mp3"
        sound = {"data": as_base64(data), "format": names.get(subtype, subtype)}
        return {"type": "input_audio", "input_audio": sound}
    raise UnsupportedError(f"{attachment.type} attachments", server or "http", "the protocol carries images and sound")


# ---------------------------------------------------------------- answers


class _Reader(ABC):
    """The common part of the readers of both endpoints."""

    def __init__(self, request: Request) -> None:
        self.done = False
        self._request = request
        self._text = Text(tuple(request.config.stop or ()))
        self._top = request.config.logprobs or 0
        self._reason: FinishReason | None = None
        self._calls = ToolCalls()
        self._index: int | None = None
        self._refused = False
        self._has_logprobs = self._lacks_logprobs = False  # whether there was text with log probabilities, and without

    def read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        choices = event.get("choices") or ()
        tokens: Sequence[Token] = ()
        if choices:
            choice = choices[0]
            if len(choices) > 1 or choice.get("index") != self._index:
                self._check_indices(choices)
            if self._reason is None or self._continues(choice):
                tokens = self._choice(choice)
            if choice.get("finish_reason"):
                self._reason = _finish_reason(choice["finish_reason"])
            if self._text.stopped:
                self.done = True
                self._reason = "stop"
        measure(self._request, event.get("usage"))
        if self._text.stopped or self._reason is not None:
            llama_api.measure(self._request, event.get("timings"))
        return tokens

    def _check_indices(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Raise ServerError if there are several answers: their texts could not be separated."""
        for choice in choices:
            index = choice.get("index")
            if self._index is None and type(index) is int:
                self._index = index
            if len(choices) > 1 or (type(index) is int and index != self._index):
                raise ServerError("the server gives several answers at once: leave n out of extra, or use chat_batch()")

    def _continues(self, choice: Mapping[str, Any]) -> bool:
        """Return whether an event after the finish reason belongs to the answer."""
        return False

    def finish(self) -> Sequence[Token]:
        if self._reason is None:
            raise UnansweredError("the answer broke off before its end")
        if self._top and self._lacks_logprobs and not self._has_logprobs:
            raise ServerError(NO_LOGPROBS)
        if self._refused:
            raise ServerError("the model refused to answer: its words are the text of `partial`")
        choice = self._request.config.tool_choice
        if self._reason == "length":  # the last call may be cut off
            if is_forced(choice) and not self._calls.any_whole:
                raise cut_off()
        else:
            self._calls.check()
            check_choice(choice, self._calls.names)
            if not self._calls and self._reason == "tool_calls":
                raise ServerError("the answer should have a tool call, and has none that can be read")
        self._request.finish_reason = "tool_calls" if self._calls and self._reason == "stop" else self._reason
        return self._text.finish()

    @abstractmethod
    def _choice(self, choice: Mapping[str, Any]) -> Sequence[Token]: ...

    def _pieces(self, text: str, ids: Sequence[int]) -> Sequence[Token]:
        """Return one Token for each of `ids`, of which the last has the text. Without ids, return one Token."""
        self._lacks_logprobs = self._lacks_logprobs or bool(text)
        if not ids:
            return self._text.push(text) if text else ()
        out: list[Token] = []
        for id in ids[:-1]:
            out += self._text.push("", id)
        return [*out, *self._text.push(text, ids[-1])]

    def _entries(self, text: str, entries: Sequence[Mapping[str, Any]], ids: Sequence[int] = ()) -> Sequence[Token]:
        """Return the Tokens of `text`, one for each of `entries`, with its log probability."""
        self._has_logprobs = True
        if ids and len(ids) < len(entries):
            entries = entries[: len(ids)]  # the last entry is that of the end token
        if len(entries) == 1:
            pieces = [text]
        else:
            pieces = [str(entry.get("token", "")) for entry in entries]
            if "".join(pieces) != text:
                pieces = [""] * (len(entries) - 1) + [text]
        out: list[Token] = []
        for place, (piece, entry) in enumerate(zip(pieces, entries, strict=True)):
            logprob, top = logprobs_of(entry)
            shown = self._top > 0
            id = ids[place] if place < len(ids) else token_id(entry.get("id", entry.get("token_id")))
            out += self._text.push(piece, id, logprob if shown else None, top[: self._top])
        return out


class CompletionReader(_Reader):
    """Makes Tokens from the events of /completions."""

    def _choice(self, choice: Mapping[str, Any]) -> Sequence[Token]:
        text, ids = choice.get("text") or "", _ids(choice)
        if ids is not None and not ids and not text:
            return ()  # the end token alone
        if self._top and (entries := old_logprobs(choice.get("logprobs"))):
            return self._entries(text, entries, ids or ())
        return self._pieces(text, ids or ())


class ChatReader(_Reader):
    """Makes Tokens from the events of /chat/completions."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._stop_tokens = frozenset(request.config.stop_tokens or ())
        self._budget = request.config.reasoning_budget
        self._begun = False

    def read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        tokens = super().read(event)
        if self._budget is not None:
            self._check_budget(tokens)
        return tokens

    def _begin(self, text: str) -> None:
        """Check the first text. A server that does not separate reasoning sends it in the text, between tags."""
        self._begun = True
        if text and _THINKING.opens.startswith(text.lstrip()[: len(_THINKING.opens)]):
            stops = tuple(self._request.config.stop or ())
            self._text = Text(stops, chat_output(ChatFormat(_THINKING), stops=stops))

    def _continues(self, choice: Mapping[str, Any]) -> bool:
        return bool(_delta(choice).get("tool_calls"))  # some servers end each of several calls with the reason

    def _choice(self, choice: Mapping[str, Any]) -> Sequence[Token]:
        delta = _delta(choice)
        text, ids = delta.get("content") or "", _ids(choice)
        parts = None if isinstance(text, str) else text
        if parts is not None:
            text = _text_of(parts)
        if delta.get("refusal"):
            self._refused = True
            text += delta["refusal"]
        probabilities = choice.get("logprobs")
        entries = (probabilities.get("content") or ()) if probabilities else ()
        if ids is not None and not ids and not text:
            entries = ()  # those of the end token
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking")
        if parts is not None:
            reasoning = reasoning or _thought_of(parts)
        if not self._begun and (text or reasoning):
            self._begin("" if reasoning else text)
        calls = delta.get("tool_calls")
        if not calls and delta.get("function_call"):  # as OpenAI had it before there were several
            calls = [{"function": delta["function_call"]}]
        if not entries and not reasoning and not calls:
            return self._pieces(text, ids or ())
        if self._stop_tokens and any(entry.get("id") in self._stop_tokens for entry in entries):
            self.done = True
            self._reason = "stop"
            return ()
        out: list[Token] = []
        if reasoning or calls:
            out += self._text.finish()  # a stop string crosses nothing but text
        if reasoning:
            logprob, top = logprobs_of(entries[0]) if entries and self._top else (None, ())
            out += [Token("", one, kind="reasoning") for one in (ids or ())[:-1]]
            id = ids[-1] if ids else token_id(entries[0].get("id")) if entries else None
            out.append(Token(whole(reasoning), id, logprob, top[: self._top], "reasoning"))
            entries, ids = (), None
        if text or (entries and not calls):
            out += self._entries(text, entries, ids or ()) if entries else self._pieces(text, ids or ())
            entries, ids = (), None
        if calls and ids:
            out += [Token("", one) for one in ids[:-1]]
        for place, call in enumerate(calls or ()):
            logprob, top = logprobs_of(entries[0]) if entries and self._top and not place else (None, ())
            id = ids[-1] if ids and not place else None
            out.append(Token("", id, logprob, top[: self._top], "tool_call", self._calls.delta(call)))
        return out

    def _check_budget(self, tokens: Sequence[Token]) -> None:
        """Count Tokens of reasoning, each of which is at least one token. Raises ServerError if there are too many."""
        assert self._budget is not None
        self._budget -= sum(token.kind == "reasoning" for token in tokens)
        if self._budget < -_OVER_BUDGET:
            raise ServerError("the server ignored reasoning_budget, as older versions do: update it, or leave it out")


def _ids(choice: Mapping[str, Any]) -> Sequence[int] | None:
    """Return the token ids of an event, without that of an end or stop token. None if the server does not return ids.

    vLLM returns them if `return_token_ids` is set. If `stop_reason` is a number, it is the stop token. If it is absent,
    the text ended with the model's end token.
    """
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(type(id) is int for id in ids):
        return None
    ends = choice.get("finish_reason") == "stop" and not isinstance(choice.get("stop_reason"), str)
    return ids[:-1] if ends else ids


def _delta(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of the answer in an event. It is the whole answer if the server does not stream."""
    delta = choice.get("delta")
    return (choice.get("message") if delta is None else delta) or {}


def _text_of(parts: Any) -> str:
    """Return the text of content that has parts, as in Mistral's API."""
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in parts)


def _thought_of(parts: Any) -> str:
    """Return the reasoning of content that has parts. In a part it is a text, or has parts itself."""
    thoughts = (part.get("thinking") or "" for part in parts if isinstance(part, Mapping))
    return "".join(thought if isinstance(thought, str) else _text_of(thought) for thought in thoughts)


_FINISHED: Mapping[str, FinishReason] = {
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens", "max_new_tokens"), "length"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
}
"""Finish reasons of servers, in lower case. Any other that is not an error means "stop": "eos_token", "end_turn"."""

_GIVEN_UP = ("error", "abort", "aborted", "cancelled", "insufficient_system_resource")

_FILTERED = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii")


def _finish_reason(said: Any) -> FinishReason:
    """Return the contract's name of a server's finish reason. Raises ServerError if the answer is not complete."""
    reason = str(said).lower()
    if reason in _GIVEN_UP:
        raise ServerError("the server gave the answer up")
    if reason in _FILTERED:
        raise ServerError(f"a content filter of the server ended the answer ({reason})")
    return _FINISHED.get(reason, "stop")


def measure(request: Request, usage: Any) -> None:
    """Take metrics from the `usage` of an answer, if it has one."""
    if not isinstance(usage, Mapping):
        return
    counts = {"prompt_tokens": usage.get("prompt_tokens"), "generated_tokens": usage.get("completion_tokens")}
    details = usage.get("prompt_tokens_details")
    if isinstance(details, Mapping):
        counts["cached_tokens"] = details.get("cached_tokens")
    request.measure(**{name: value for name, value in counts.items() if isinstance(value, int)})


def old_logprobs(value: Any) -> list[dict[str, Any]]:
    """Return the log probabilities of /completions in the form of chats. Some servers already use that form."""
    if not isinstance(value, Mapping):
        return []
    if value.get("content"):
        return list(value["content"])
    tops = value.get("top_logprobs") or []
    out = []
    for place, (token, logprob) in enumerate(
        zip(value.get("tokens") or (), value.get("token_logprobs") or (), strict=False)
    ):
        top = tops[place] if place < len(tops) and tops[place] else {}
        likeliest = sorted(top.items(), key=lambda pair: -pair[1])
        out.append(
            {
                "token": token,
                "logprob": logprob,
                "top_logprobs": [{"token": text, "logprob": value} for text, value in likeliest],
            }
        )
    return out
