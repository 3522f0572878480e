# SPDX-License-Identifier: Apache-2.0
"""The types of the contract's values: messages, tools, tokens, results, metrics. Every backend uses the same types."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

TokenKind = Literal["text", "reasoning", "tool_call"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


# ---------------------------------------------------------------- messages


@dataclass(frozen=True, slots=True)
class Attachment:
    """An image, sound or other file inside a message.

    Attributes:
        type: A MIME type, such as "image/png".
        data: The content itself. Exactly one of `data`, `path` and `url` is set.
        path: A file on this machine: a regular file of at most 100 MiB, read when the message is sent.
        url: An address with a scheme, such as https or data. It never names a local file.
    """

    type: str
    data: bytes | None = field(default=None, repr=False)
    path: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or "/" not in self.type:
            raise ValueError(f"an attachment's type is a MIME type such as 'image/png', not {self.type!r}")
        if sum(part is not None for part in (self.data, self.path, self.url)) != 1:
            raise ValueError("an attachment has exactly one of data, path and url")
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        for name, kind in (("data", bytes), ("path", str), ("url", str)):
            _optional(f"an attachment's {name}", getattr(self, name), kind)
        if self.url is not None and (scheme := _scheme(self.url)) in ("", "file"):
            what = f"has the scheme {scheme!r}" if scheme else "has no scheme, such as https:"
            raise ValueError(f"an attachment's url {what}: a file on this machine is Attachment(type, path=…)")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form: the type, and the data in base64, the path or the URL."""
        source: dict[str, Any]
        if self.data is not None:
            source = {"data": base64.b64encode(self.data).decode("ascii")}
        else:
            source = {"path": self.path} if self.path is not None else {"url": self.url}
        return {"type": "attachment", "mime_type": self.type, **source}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, local_files: bool = False) -> Attachment:
        """Read what `to_dict` writes, or OpenAI's `image_url` and `input_audio` parts.

        Args:
            value: The content part. It may come from anywhere, so it can't name a file on this machine: it holds
                its data, or an http, https or data URL.
            local_files: Whether `value` may have a `path`. Set it only for what this program has written itself.

        Returns:
            The attachment.

        Raises:
            TypeError: `value`, or a field of it, has the wrong type.
            ValueError: `value` is not a known form, is not base64, or names a local file.
        """
        _mapping("an attachment", value)
        kind = value.get("type")
        if kind == "attachment":
            path, data = value.get("path"), value.get("data")
            if path is not None and not local_files:
                raise ValueError(
                    "a message given as a mapping can't name a local file (path): "
                    "give its data in base64, or make the part Attachment(type, path=…) yourself"
                )
            return cls(
                value.get("mime_type", ""),
                data=None if data is None else _decode_base64(data),
                path=path,
                url=_remote(value.get("url")),
            )
        if kind == "image_url":
            image = value.get("image_url")
            url = image.get("url") if isinstance(image, Mapping) else image
            if not isinstance(url, str):
                raise ValueError("an image_url part needs image_url.url")
            if _scheme(url) == "data":
                header, _, payload = url[len("data:") :].partition(",")
                return cls(header.split(";")[0] or "image/png", data=_decode_base64(payload))
            return cls("image/*", url=_remote(url))
        if kind == "input_audio" and isinstance(value.get("input_audio"), Mapping):
            audio = value["input_audio"]
            return cls(f"audio/{audio.get('format', 'wav')}", data=_decode_base64(audio.get("data", "")))
        known = "text, image_url, input_audio or attachment"
        raise ValueError(f"a content part of type {kind!r} is not known: use {known}")


def _scheme(url: str) -> str:
    """Return the scheme of `url` in lower case. "" if it has none, or does not begin with a letter."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)
    return "" if found is None else found[1].lower()


def _remote(url: Any) -> Any:
    """Return `url` if its scheme is allowed: a mapping must not name a file on this machine."""
    if isinstance(url, str) and _scheme(url) not in ("http", "https", "data"):
        raise ValueError(f"the url of an attachment given as a mapping is http, https or data, not {url[:40]!r}")
    return url


def _decode_base64(text: object) -> bytes:
    try:
        if isinstance(text, str) and len(text) > _BASE64_AT_ONCE:
            return b"".join(_decoded_pieces(text))
        return base64.b64decode(cast(str, text), validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attachment data is not base64: {error}") from None


_BASE64_AT_ONCE = 1 << 20
"""Number of characters, a multiple of 4, that are decoded in one call. A call holds the interpreter's lock; this many
take about 1 ms."""


def _decoded_pieces(text: str) -> Iterator[bytes]:
    for begin in range(0, len(text), _BASE64_AT_ONCE):
        piece, end = text[begin : begin + _BASE64_AT_ONCE], begin + _BASE64_AT_ONCE
        if end < len(text) and piece.endswith("="):
            raise ValueError("padding is allowed only at the end")
        yield base64.b64decode(piece, validate=True)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return OpenAI's form, in which the arguments are JSON text."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ToolCall:
        """Read a tool call.

        Args:
            value: OpenAI's form, or a mapping with id, name and arguments.

        Returns:
            The call. Its id is "" if `value` has none.

        Raises:
            TypeError: `value` is not a mapping.
            ValueError: It has no name, or its arguments are not a JSON object.
        """
        body = _mapping("a tool call", _mapping("a tool call", value).get("function", value))
        arguments = body.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = _read_json(arguments or "{}")
            except ValueError as error:
                raise ValueError(f"the arguments of tool call {body.get('name')!r} are not JSON: {error}") from None
        if not isinstance(body.get("name"), str) or not isinstance(arguments, Mapping):
            raise ValueError("a tool call needs a name, and arguments that are a JSON object")
        return cls(str(value.get("id") or ""), body["name"], dict(arguments))


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `content` is text, or a sequence of texts and attachments. The result of a tool call has the role "tool", and
    `tool_call_id` is the id of the call.
    """

    role: str
    content: str | Sequence[str | Attachment] = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not self.role:
            raise ValueError("a message needs a role, such as 'user'")
        if not isinstance(self.content, str):
            if not isinstance(self.content, Sequence) or not all(
                isinstance(part, str | Attachment) for part in self.content
            ):
                raise TypeError("a message's content is a str, or a sequence of str and Attachment")
            object.__setattr__(self, "content", tuple(self.content))
        if not isinstance(self.tool_calls, Sequence) or not all(isinstance(call, ToolCall) for call in self.tool_calls):
            raise TypeError("a message's tool_calls are a sequence of ToolCall")
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        for name in ("tool_call_id", "name", "reasoning"):
            _optional(f"a message's {name}", getattr(self, name), str)

    @property
    def parts(self) -> tuple[str | Attachment, ...]:
        """The content as a sequence, even if `content` is a str."""
        return (self.content,) if isinstance(self.content, str) else tuple(self.content)

    @property
    def text(self) -> str:
        """The text of the content, without attachments."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The attachments of the content, in their order."""
        return tuple(part for part in self.parts if isinstance(part, Attachment))

    def to_dict(self) -> dict[str, Any]:
        """Return `role`, `content`, and those of the other fields that are set."""
        out: dict[str, Any] = {"role": self.role}
        if isinstance(self.content, str):
            out["content"] = self.content
        else:
            out["content"] = [
                {"type": "text", "text": part} if isinstance(part, str) else part.to_dict() for part in self.content
            ]
        if self.tool_calls:
            out["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        for key in ("tool_call_id", "name", "reasoning"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        return out

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, local_files: bool = False) -> Message:
        """Read what `to_dict` writes, or an OpenAI chat message.

        Args:
            value: The message. Its attachments hold data or URLs (see `Attachment.from_dict`).
            local_files: Whether attachments may have a `path`. Set it only for what this program has written itself.

        Returns:
            The message.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field has a wrong value, or there is a value under an unknown key.
        """
        _mapping("a message", value)
        known = {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning", "reasoning_content"}
        unknown = [key for key in value if key not in known and value[key] not in (None, [], {}, "")]
        if unknown:
            raise ValueError(f"a message has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        content = value.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = tuple(_part_from_dict(part, local_files) for part in content)
        calls = value.get("tool_calls") or ()
        if isinstance(calls, str) or not isinstance(calls, Sequence):
            raise TypeError(f"a message's tool_calls are a sequence, not {type(calls).__name__}")
        reasoning = value.get("reasoning")
        return cls(
            value.get("role", ""),
            "" if content is None else content,
            tuple(ToolCall.from_dict(call) for call in calls),
            value.get("tool_call_id"),
            value.get("name"),
            value.get("reasoning_content") if reasoning is None else reasoning,
        )


def _part_from_dict(part: object, local_files: bool) -> str | Attachment:
    if isinstance(part, str | Attachment):
        return part
    if not isinstance(part, Mapping):
        raise TypeError(f"a content part is a str, an Attachment or a mapping, not {type(part).__name__}")
    if part.get("type") == "text":
        if not isinstance(part.get("text"), str):
            raise TypeError(f"a text part has its text as a str, not {type(part.get('text')).__name__}")
        return cast(str, part["text"])
    return Attachment.from_dict(part, local_files=local_files)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is a JSON Schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError("a tool needs a name")
        if not isinstance(self.parameters, Mapping):
            raise TypeError(f"the parameters of tool {self.name!r} are a JSON Schema (a mapping)")

    def to_dict(self) -> dict[str, Any]:
        """Return OpenAI's form, which chat templates expect too."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Tool:
        """Read a tool.

        Args:
            value: OpenAI's form, or a mapping with name, description and parameters.

        Returns:
            The tool.

        Raises:
            TypeError: `value`, or its parameters, are not a mapping.
            ValueError: It has no name.
        """
        body = _mapping("a tool", _mapping("a tool", value).get("function", value))
        parameters = body.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        return cls(body.get("name", ""), body.get("description") or "", parameters)


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is a mapping, not {type(value).__name__}")
    return value


def _optional(what: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{what} is {kind.__name__}, not {type(value).__name__}")


def _read_json(text: str) -> Any:
    """Parse JSON. Raises ValueError for any text that Python's parser can't read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


# ---------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a streamed tool call. `arguments` is a fragment of JSON text.

    The first piece of the call at `index` has its id and name. Later pieces have only arguments.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the most likely tokens at a position. `logprob` is a natural logarithm."""

    text: str
    id: int | None
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` is empty if the token is only part of a character or of markup.

    `logprob` is the natural logarithm of the token's probability under the model, before
    any sampling option changed it.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = ()
    kind: TokenKind = "text"
    tool_call: ToolCallDelta | None = None


@dataclass(frozen=True, slots=True)
class GenerateMetrics:
    """The numbers of tokens, the times and the memory of one operation. Times are seconds of wall-clock time.

    `prompt_tokens` includes `cached_tokens`, which were reused from the prefix cache and not evaluated again.
    Memory is that of the whole process, or of the device on which the model is. It therefore includes concurrent
    operations. `drafted_tokens` were guessed in speculative decoding, if the engine counts them. `accepted_tokens` is
    the number of correct guesses.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    total_seconds: float = 0.0
    time_to_first_token: float = 0.0
    peak_memory_bytes: int = 0
    active_memory_bytes: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens that were evaluated, per second of prefill."""
        evaluated = self.prompt_tokens - self.cached_tokens
        return evaluated / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first (which prefill yields), per second of decoding."""
        return max(self.generated_tokens - 1, 0) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the two speeds, by name."""
        return asdict(self) | {
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The complete output of an operation."""

    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    metrics: GenerateMetrics = field(default_factory=GenerateMetrics)
    shortened: bool = field(default=False, kw_only=True)
    """Whether max_tokens made a constrained answer shorter than the model would have made it."""

    @property
    def text(self) -> str:
        """The answer: tokens of kind "text", joined."""
        return "".join(token.text for token in self.tokens if token.kind == "text")

    @property
    def reasoning(self) -> str:
        """The text of the tokens of kind "reasoning"."""
        return "".join(token.text for token in self.tokens if token.kind == "reasoning")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls whose arguments are complete JSON objects. A call that max_tokens cut off is left out."""
        return join_tool_calls(token.tool_call for token in self.tokens if token.tool_call is not None)


def join_tool_calls(deltas: Any) -> tuple[ToolCall, ...]:
    """Join the pieces of streamed tool calls. A call whose arguments are not a complete JSON object is left out.

    Args:
        deltas: An iterable of `ToolCallDelta`.

    Returns:
        The complete calls, in the order of their indexes.
    """
    parts: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        parts.setdefault(delta.index, []).append(delta)
    calls = []
    for _, pieces in sorted(parts.items()):
        name = next((piece.name for piece in pieces if piece.name), None)
        try:
            arguments = _read_json("".join(piece.arguments for piece in pieces) or "{}")
        except ValueError:
            continue
        if name is not None and isinstance(arguments, dict):
            calls.append(ToolCall(next((piece.id for piece in pieces if piece.id), ""), name, arguments))
    return tuple(calls)


@dataclass(frozen=True, slots=True)
class BatchResult(GenerateResult):
    """The result of one prompt of a batch. If it failed, `error` is set, and `tokens` has the output until then."""

    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """The prediction for one prompt.

    Attributes:
        token: The most likely next token.
        logits: If requested, the logits of the next token: a sequence of vocab_size floats.
        label: The most likely label, if labels were given.
        scores: The probability of each label; they sum to 1. If a label is the beginning of a longer label, the score
            of the shorter label is the probability that it follows and the longer label does not.
        mass: The probability that any of the labels follows: the sum of the scores before they were normalised to 1.
            None if it is not known.
    """

    token: Token
    logits: Sequence[float] | None = None
    label: str | None = None
    scores: Mapping[str, float] | None = None
    mass: float | None = None


# ---------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of a ranking.

    Attributes:
        index: The document's index in the list that was ranked.
        score: How well it fits the query: higher is better. Only scores of the same model and query can be compared.
    """

    index: int
    score: float


def ranked(scores: Iterable[float]) -> list[Ranked]:
    """Order documents by their scores, the best first. Documents with equal scores keep their order.

    Args:
        scores: The score of each document.

    Returns:
        The index and the score of each document.
    """
    return sorted((Ranked(index, float(score)) for index, score in enumerate(scores)), key=lambda one: -one.score)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The properties of a model. An unknown number is 0.

    Attributes:
        architecture: The architecture id, such as "llama".
        vocab_size: Number of tokens in the vocabulary.
        num_layers: Number of layers.
        hidden_size: Length of the hidden vectors.
        quant_bits: Number of bits of a weight in most of the tensors. 0, 16 or 32 if they are not quantised.
        quant_group: Number of weights that share a scale.
        context_length: Number of tokens that one operation of the loaded model may use.
        weights_bytes: Memory of the weights, if the model runs on this machine.
        context_bytes: Maximum memory of the contexts of all slots, when they are full. A context that grows takes less
            at first.
        kv_cache_type: The type of the numbers in the KV cache.
    """

    architecture: str = ""
    vocab_size: int = 0
    num_layers: int = 0
    hidden_size: int = 0
    quant_bits: int = 0
    quant_group: int = 0
    context_length: int = 0
    weights_bytes: int = 0
    context_bytes: int = 0
    kv_cache_type: str = ""
