# SPDX-License-Identifier: Apache-2.0
"""Turns the arguments of a call into a `Request`, in which the model supports every option that is set."""

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
"""Options that a model supports if it has a capability; `TextModel.options` lists the others."""

_ALWAYS = frozenset({"max_tokens", "timeout", "return_logits", "n"})
"""Options that the base class implements."""

_OF_CHAT = ("tools", "tool_choice", "reasoning", "template_options", "reasoning_budget", "schema_in_prompt")
"""Options of conversations. They do not apply to raw prompts."""

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
"""Values that switch an option off. Every model accepts them."""


_CHECK_INTERVAL = 1024
"""The timeout is checked each time this many messages have been read."""


class RequestMaker(ABC):
    """The part of a `TextModel` that checks arguments and makes requests from them."""

    backend: str = ""
    """The backend's name, for messages."""

    options: frozenset[str] = frozenset()
    """The `GenerateConfig` fields that this model supports, in addition to max_tokens, timeout, n and the options that
    its capabilities imply. Setting another field raises UnsupportedError."""

    wrapped: bool = False
    """True: the model belongs to another library, and gets only the options that were set, no defaults. Some such
    models refuse a temperature."""

    defaults: GenerateConfig = GenerateConfig()
    """Options that apply if the caller does not set them: those that the configuration file sets for the model."""

    capabilities: frozenset[str]
    """What this loaded model can do: "chat", "tools", "json_schema", "images", "reasoning", "logits",
    "logprobs", "token_ids", "embeddings", "rerank", "infill", "stats"."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ModelClosedError if the model is closed."""

    @property
    def _name(self) -> str:
        return self.backend or type(self).__name__

    def _check_text(self, text: Any) -> None:
        """To the author: call this first in `count_tokens`. Raises TypeError or ModelClosedError."""
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
        """Return the request of `infill`. To the author: the default implementation raises UnsupportedError."""
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
            if number % _CHECK_INTERVAL == 0:
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
        """`_config` for an operation on raw prompts. The model's defaults for chat options are ignored."""
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
        """Return the caller's options with the model's defaults. Raises UnsupportedError for an unsupported option.

        Args:
            config: The caller's config.
            options: The caller's options, which replace fields of `config`.
            defaults: Replaces the model's defaults.
            logits: Whether the operation can return logits.
        """
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
        """To the author: return why an option is not supported, and what to do instead; "" if nothing is known."""
        return ""

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        """To the author: check the options further, or change them. Raises UnsupportedError."""
        return config

    def _classify_config(self, call: ClassifyCall) -> GenerateConfig:
        """Return the options for the prediction of one token, the most likely one."""
        if call.labels is not None:
            raise UnsupportedError("labels in classify", self._name)
        config = self._raw_config(call.config, call.options)
        self._check_one_answer(config, "batch_generate")
        greedy = 0.0 if "temperature" in self.options else None  # an unsupported option is not sent
        return GenerateConfig(max_tokens=1, temperature=greedy).over(config)

    @abstractmethod
    def _verify(self, request: Request) -> None:
        """Run the slow checks of a request."""

    def _verified(self, request: Request) -> Request:
        request.count_time()
        self._verify(request)
        request.prepared_now()
        return request
