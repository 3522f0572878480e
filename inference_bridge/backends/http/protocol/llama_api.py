# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's own completion endpoint: /completion.

It returns more than the OpenAI-compatible endpoint: token ids, probabilities before sampling, and the number of cached
tokens. See tools/server/README.md in llama.cpp's repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....chat.assembler import TextAssembler
from ....errors import ServerError
from ....options import GenerateConfig, is_forced
from ....request import Request
from ....types import FinishReason, Token, ToolCallDelta, TopLogprob, join_tool_calls
from ..transport.errors import UnansweredError
from .llama_schema import closed
from .text import Text, whole
from .tool_calls import check_choice, cut_off

_NAMES = {
    "max_tokens": "n_predict",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "json_schema": "json_schema",
    "grammar": "grammar",
}

SEEDS = 2**32 - 1
"""llama.cpp accepts seeds of 32 bits. The largest one means a different seed each time."""

_MAX_MISSING = 1 << 16
"""Maximum number of tokens without an id in one event, such as the parts of a character or of a stop string."""


def sampling(config: GenerateConfig) -> dict[str, Any]:
    """Return the fields that are set, under the names that llama-server has for them in all of its endpoints.

    `grammar` must be in the server's notation: the caller's constraint has been converted before.
    """
    out: dict[str, Any] = {}
    for field, name in _NAMES.items():
        value = getattr(config, field)
        if value is not None:
            out[name] = value
    for field in ("top_p", "repeat_penalty"):
        if out.get(field) == 0:
            out[field] = 1.0  # off
    if config.json_schema is not None:
        out["json_schema"] = closed(config.json_schema)
    if config.seed is not None:
        out["seed"] = config.seed % SEEDS
    if config.logit_bias:
        out["logit_bias"] = [[token, bias] for token, bias in config.logit_bias.items()]
    if config.stop:
        # Stop strings are looked for here, and end the stream: llama-server forgets what it held
        # back for one that then did not come. What it cost is in every event, for the last one is not waited for.
        out["timings_per_token"] = True
    return out


def completion(
    prompt: str | Sequence[int] | Mapping[str, Any], config: GenerateConfig, *, stream: bool = True
) -> dict[str, Any]:
    """Return the body of a request to /completion. A prompt that is a mapping contains images (see rendered_chat)."""
    out = {"prompt": prompt, "stream": stream, "cache_prompt": True, "return_tokens": True, **sampling(config)}
    if config.logprobs is not None:
        out["n_probs"] = config.logprobs
    return out


def measure(request: Request, timings: Any) -> None:
    """Take metrics from `timings`, which llama-server adds to the last event."""
    if not isinstance(timings, Mapping):
        return
    evaluated, cached = timings.get("prompt_n"), timings.get("cache_n", 0)
    if isinstance(evaluated, int) and isinstance(cached, int):
        request.measure(prompt_tokens=evaluated + cached, cached_tokens=cached)
    if isinstance(timings.get("predicted_n"), int):
        request.measure(generated_tokens=timings["predicted_n"])
    for name, key in (("drafted_tokens", "draft_n"), ("accepted_tokens", "draft_n_accepted")):
        if isinstance(timings.get(key), int):
            request.measure(**{name: timings[key]})
    for name, key in (("prefill_seconds", "prompt_ms"), ("decode_seconds", "predicted_ms")):
        if isinstance(timings.get(key), int | float):
            request.measure(**{name: timings[key] / 1000})


def logprobs_of(entry: Mapping[str, Any]) -> tuple[float | None, tuple[TopLogprob, ...]]:
    """Return the log probability of a token, and the most likely tokens, from an entry of llama-server or OpenAI."""
    top = tuple(
        TopLogprob(piece(one), token_id(one.get("id")), float(one["logprob"]))
        for one in entry.get("top_logprobs") or ()
    )
    own = entry.get("logprob")
    return (None if own is None else float(own)), top


def token_id(value: Any) -> int | None:
    """Return a token's id. None if the server returned none."""
    return value if type(value) is int else None


def piece(entry: Mapping[str, Any]) -> str:
    data = entry.get("bytes")
    if data and isinstance(data, list):  # bytes(n) of a number would be n zeros
        return bytes(data).decode("utf-8", "replace")
    return whole(entry.get("token", ""))


class CompletionReader:
    """Makes Tokens from the events of /completion."""

    def __init__(self, request: Request, output: TextAssembler | None = None) -> None:
        """`output`: what reads the calls in the text."""
        config = request.config
        self.done = False
        self._request = request
        self._text = Text(tuple(config.stop or ()), output)
        self._reads_calls = output is not None
        self._stop_tokens = frozenset(config.stop_tokens or ())
        self._top = config.logprobs or 0
        self._ended = False
        self._seen = 0
        self._choices = config.choices
        self._texts: list[str] = []
        self._is_call_forced = output is not None and is_forced(config.tool_choice)
        self._calls: list[ToolCallDelta] = []

    def read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        tokens = self._read(event)
        if self._choices is not None:
            self._texts += [token.text for token in tokens]
        if self._is_call_forced:
            self._calls += [token.tool_call for token in tokens if token.tool_call is not None]
        return tokens

    def _read(self, event: Mapping[str, Any]) -> Sequence[Token]:
        text: str = event["content"]
        ids: Sequence[int] = event.get("tokens") or ()
        predicted = event.get("tokens_predicted", 0)
        if event.get("stop"):
            self._end(event)
            missing = predicted - self._seen if event.get("stop_type") == "limit" else 0
            # What is missing at the end began a character that does not come any more.
            return self._several(text or "\ufffd" * (missing > 0), (), (), missing - 1 if not text else missing)
        probabilities = event.get("completion_probabilities") or ()
        if len(ids) == 1 and predicted == self._seen + 1 and not probabilities and not self._stop_tokens:
            self._seen = predicted
            tokens = self._text.push(text, token_id(ids[0]))
        else:
            tokens = self._several(text, ids, probabilities, predicted - self._seen - len(ids))
        if self._text.stopped:
            self.done = self._ended = True
            self._request.finish_reason = "stop"
            measure(self._request, event.get("timings"))
        return tokens

    def _several(
        self, text: str, ids: Sequence[int], probabilities: Sequence[Mapping[str, Any]], missing: int
    ) -> Sequence[Token]:
        """Return the Tokens of an event that has any number of tokens. The text belongs to the last one.

        `missing` tokens come first: of the tokens that make up one character, the server gives the id of the last only.
        """
        if missing > _MAX_MISSING:
            raise ValueError(f"{missing} tokens that are not there")
        out: list[Token] = []
        for _ in range(missing):
            self._seen += 1
            out += self._text.push("")
        for place, id in enumerate(ids):
            self._seen += 1
            if id in self._stop_tokens:
                self.done = self._ended = True
                self._request.finish_reason = "stop"
                self._request.measure(generated_tokens=self._seen)
                break
            logprob, top = logprobs_of(probabilities[place]) if place < len(probabilities) else (None, ())
            out += self._text.push(text if place == len(ids) - 1 else "", token_id(id), logprob, top[: self._top])
        if not ids and text:
            out += self._text.push(text)
        return out

    def finish(self) -> Sequence[Token]:
        if not self._ended:
            raise UnansweredError("the answer broke off before its end")
        tokens = self._text.finish()
        if self._is_call_forced:
            rest = [token.tool_call for token in tokens if token.tool_call is not None]
            calls = join_tool_calls([*self._calls, *rest])
            if self._request.finish_reason == "length":
                if not calls:
                    raise cut_off()  # `tokens` may be the call's markup, which is not text of the answer
                self._request.finish_reason = None  # only the end token was missing: the tokens say "tool_calls"
            check_choice(self._request.config.tool_choice, [call.name for call in calls])
        if self._choices is not None and self._request.finish_reason == "stop":
            text = "".join([*self._texts, *(token.text for token in tokens)])
            if text not in self._choices:  # such as a special token, whose name the server leaves out of the text
                raise ServerError("the server did not enforce choices: its answer (on `partial`) is none of them")
        return tokens

    def _end(self, event: Mapping[str, Any]) -> None:
        self.done = self._ended = True
        kind = event.get("stop_type")
        reason: FinishReason = "length" if kind == "limit" or event.get("truncated") else "stop"
        # Where there may be calls, whether there are any decides between "stop" and "tool_calls".
        self._request.finish_reason = None if reason == "stop" and self._reads_calls else reason
        measure(self._request, event.get("timings"))
