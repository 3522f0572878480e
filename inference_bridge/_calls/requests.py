# SPDX-License-Identifier: Apache-2.0
"""What a caller passed, made into a `Request` in which every option that is set is one the model honours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedError
from ..options import DEFAULTS, GenerateConfig
from ..request import Request
from ..types import Message
from .arguments import as_message, check_tool_choice, decides_the_end, turns_of
from .classify import ClassifyCall

_CAPABILITY_OF = {
    "json_schema": "json_schema",
    "tools": "tools",
    "tool_choice": "tools",
    "logprobs": "logprobs",
    "reasoning": "reasoning",
}
"""Options that a capability stands for; the others are named in `TextModel.options`."""

_ALWAYS = frozenset({"max_tokens", "timeout", "return_logits", "n"})
"""Options the base class sees to itself."""

_OF_CHAT = ("tools", "tool_choice", "reasoning", "template_options", "reasoning_budget", "schema_in_prompt")
"""Options that say how to render a conversation: a raw prompt has no use for them."""

_NO_FILL = "the model has no tokens for prefix, suffix and middle: load one that was trained for it"

_OFF: Mapping[str, Any] = {
    "logprobs": 0,
    "return_logits": False,
    "stop": (),
    "stop_tokens": (),
    "tools": (),
    "template_options": {},
    "logit_bias": {},
    "min_tokens": 0,
    "schema_in_prompt": False,
    "n": 1,
}
"""Values that ask for nothing: every model honours them."""


_OFTEN = 1024
"""The timeout is checked once for this many messages."""


class RequestMaker(ABC):
    """The part of a `TextModel` that checks arguments and makes requests of them."""

    backend: str = ""
    """The backend's name, for messages."""

    options: frozenset[str] = frozenset()
    """The `GenerateConfig` fields this model honours, beside max_tokens, timeout and what
    its capabilities stand for. Setting another raises UnsupportedError."""

    wrapped: bool = False
    """True: a model of another library, which is sent the options that were set and no defaults. Some such models
    refuse a temperature."""

    defaults: GenerateConfig = GenerateConfig()
    """Options that hold where the caller sets none: those of the configured name it was loaded by."""

    capabilities: frozenset[str]
    """What this loaded model can do: "chat", "tools", "json_schema", "images", "reasoning", "logits",
    "logprobs", "token_ids", "embeddings", "rerank", "infill", "stats"."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ModelClosedError where the model is closed."""

    @property
    def _name(self) -> str:
        return self.backend or type(self).__name__

    def _check_text(self, text: Any) -> None:
        """To the author: what `count_tokens` checks first. Raises TypeError or ModelClosedError."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        self._check_open()

    def _generation(self, prompt: str, config: GenerateConfig | None, options: Mapping[str, Any]) -> Request:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a str, not {type(prompt).__name__}")
        checked = self._raw_config(config, options)
        self._check_one_answer(checked, "batch_generate")
        return Request("generate", checked, prompt=prompt)

    def _infilling(
        self, prefix: str, suffix: str, config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        """The request of `infill`. To the author: by default the model has no tokens for it."""
        for name, text in (("prefix", prefix), ("suffix", suffix)):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a str, not {type(text).__name__}")
        self._raw_config(config, options)
        raise UnsupportedError("infill", self._name, self._why_not("infill") or _NO_FILL)

    def _check_one_answer(self, config: GenerateConfig, instead: str) -> None:
        if (config.n or 1) > 1:
            raise UnsupportedError(f"n={config.n}", self._name, f"a stream is one answer: {instead}() gives several")

    def _conversation(
        self, messages: Sequence[Message | Mapping[str, Any]], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        given = turns_of(messages)
        if not given:
            raise ValueError("messages is empty: chat() answers at least one message")
        checked = self._config(config, options)
        request = Request("chat", checked)
        request.count_time()
        turns = []
        for number, message in enumerate(given):
            if number % _OFTEN == 0:
                request.check_time()
            turns.append(as_message(message))
        check_tool_choice(checked)
        self._check_one_answer(checked, "chat_batch")
        for turn in turns:
            for attachment in turn.attachments:
                kind = attachment.type.split("/")[0] + "s"
                if kind not in self.capabilities:
                    raise UnsupportedError(f"{attachment.type} attachments", self._name)
        request.messages = tuple(turns)
        return request

    def _raw_config(self, config: GenerateConfig | None, options: Mapping[str, Any]) -> GenerateConfig:
        """`_config` of an operation on raw prompts. Of the model's defaults, chats' own don't concern it."""
        defaults = replace(self.defaults, **dict.fromkeys(_OF_CHAT))
        checked = self._config(config, options, defaults=defaults)
        for name in _OF_CHAT:
            value = getattr(checked, name)
            if value is not None and value != _OFF.get(name):
                raise ValueError(f"{name} is an option of chat(): generate() takes the prompt as it is")
        return checked

    def _config(
        self,
        config: GenerateConfig | None,
        options: Mapping[str, Any],
        *,
        defaults: GenerateConfig | None = None,
        logits: bool = False,
    ) -> GenerateConfig:
        """The caller's config with the options over it, every set field of which is honoured."""
        if config is not None and not isinstance(config, GenerateConfig):
            raise TypeError(f"config must be a GenerateConfig, not {type(config).__name__}")
        self._check_open()
        asked = (config or GenerateConfig()).with_options(options)
        merged = asked.over(defaults or self.defaults)
        if grammar := decides_the_end(merged):
            if asked.stop or asked.stop_tokens:
                stop = "stop" if asked.stop else "stop_tokens"
                why = "it could cut the answer short: leave it out"
                raise UnsupportedError(f"{stop} with {grammar}", self._name, why)
            merged = replace(merged, stop=None, stop_tokens=None)
        for name, value in merged.set_fields().items():
            if name in _OFF and value == _OFF[name]:
                continue
            capability = _CAPABILITY_OF.get(name)
            honoured = capability in self.capabilities if capability else name in self.options or name in _ALWAYS
            if not honoured:
                raise UnsupportedError(name, self._name, self._why_not(name))
        if merged.min_tokens and not self.wrapped:
            merged.over(DEFAULTS)  # raises ValueError where the default max_tokens is less
        if merged.return_logits and not (logits and "logits" in self.capabilities):
            raise UnsupportedError("return_logits", self._name, "logits come from classify(), where a model has them")
        return self._checked(merged)

    def _why_not(self, option: str) -> str:
        """To the author: why an option is not honoured, and what to do instead; "" if there is nothing to say."""
        return ""

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        """A backend's own part of it: `config`, or what it makes of that. Raises UnsupportedError."""
        return config

    def _classify_config(self, call: ClassifyCall) -> GenerateConfig:
        """Return the options for the one token to predict, the likeliest."""
        if call.labels is not None:
            raise UnsupportedError("labels in classify", self._name)
        config = self._raw_config(call.config, call.options)
        self._check_one_answer(config, "batch_generate")
        greedy = 0.0 if "temperature" in self.options else None  # what can't be set is not sent
        return GenerateConfig(max_tokens=1, temperature=greedy).over(config)

    @abstractmethod
    def _verify(self, request: Request) -> None:
        """Check what takes long to check."""

    def _verified(self, request: Request) -> Request:
        request.count_time()
        self._verify(request)
        request.prepared_now()
        return request
