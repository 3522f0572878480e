# SPDX-License-Identifier: Apache-2.0
"""Errors raised by the call itself: wrong arguments and unsupported options (behaviours 4 and 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from ...errors import UnsupportedError
from ...model import TextModel
from ...options import GENERATE_FIELDS, GenerateConfig
from ...types import Message, Tool
from ..base import Begun, Contract

Call = Callable[..., Any]

_CALLS: Mapping[str, Call] = {
    "generate": lambda model, **options: model.generate("x", **options),
    "agenerate": lambda model, **options: model.agenerate("x", **options),
    "chat": lambda model, **options: model.chat([Message("user", "x")], **options),
    "achat": lambda model, **options: model.achat([Message("user", "x")], **options),
    "stream_batch": lambda model, **options: model.stream_batch(["x"], **options),
    "astream_batch": lambda model, **options: model.astream_batch(["x"], **options),
    "batch_generate": lambda model, **options: model.batch_generate(["x"], **options),
    "abatch_generate": lambda model, **options: asyncio.run(model.abatch_generate(["x"], **options)),
    "classify": lambda model, **options: model.classify(["x"], **options),
    "aclassify": lambda model, **options: asyncio.run(model.aclassify(["x"], **options)),
}
"""Every method that starts an operation. Streams are not iterated, because the call itself must raise the errors."""

SAMPLES: Mapping[str, Any] = {
    "max_tokens": 3,
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "stop": ["zzz"],
    "stop_tokens": [0],
    "seed": 7,
    "logprobs": 2,
    "return_logits": True,
    "json_schema": Contract.schema,
    "regex": "[a-c]{1,3}",
    "choices": ["yes", "no"],
    "grammar": 'start: "yes" | "no"',
    "logit_bias": {5: 1.0},
    "schema_in_prompt": True,
    "min_tokens": 2,
    "reasoning_budget": 5,
    "n": 2,
    "tools": [Tool("f", "A function.")],
    "tool_choice": "auto",
    "reasoning": False,
    "template_options": {"contract": True},
    "timeout": 1000.0,
}
"""A valid value for every option."""

_CHAT_ONLY = ("tools", "tool_choice", "reasoning", "template_options", "reasoning_budget", "schema_in_prompt")
_BATCH_ONLY = ("n",)

every_call = pytest.mark.parametrize("call", _CALLS.values(), ids=_CALLS)
every_option = pytest.mark.parametrize("option", GENERATE_FIELDS)


class Arguments(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (4, 9)

    @every_call
    def test_an_unknown_option_is_a_type_error_that_names_the_nearest(self, model: TextModel, call: Call) -> None:
        with Begun(model) as begun, pytest.raises(TypeError, match="max_tokens"):
            self._calling(model, call, max_token=3)
        assert begun.count == 0

    @every_call
    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"max_tokens": "many"}, TypeError),
            ({"max_tokens": 0}, ValueError),
            ({"max_tokens": -2}, ValueError),
            ({"temperature": "warm"}, TypeError),
            ({"temperature": -0.1}, ValueError),
            ({"temperature": float("nan")}, ValueError),
            ({"top_p": 1.5}, ValueError),
            ({"stop": ""}, ValueError),
            ({"stop": 3}, TypeError),
            ({"seed": -1}, ValueError),
            ({"timeout": 0}, ValueError),
            ({"reasoning": "much"}, ValueError),
            ({"config": {"max_tokens": 3}}, TypeError),
        ],
        ids=lambda value: repr(value) if isinstance(value, dict) else None,
    )
    def test_a_wrong_value_is_told(
        self, model: TextModel, call: Call, options: Mapping[str, Any], error: type[Exception]
    ) -> None:
        with Begun(model) as begun, pytest.raises(error):
            self._calling(model, call, **options)
        assert begun.count == 0

    @every_option
    def test_an_option_is_honoured_or_refused(self, model: TextModel, option: str) -> None:
        """An option that a model does not declare is refused by name, in every call, before any work."""
        for name, call in _CALLS.items():
            if "class" in name or ("chat" in name and not self.chats(model)):
                continue
            here = (option not in _CHAT_ONLY or "chat" in name) and (option not in _BATCH_ONLY or "batch" in name)
            if self.honours(model, option) and here:
                if option == "return_logits":  # only classify returns logits
                    with pytest.raises(UnsupportedError, match="return_logits"):
                        call(model, return_logits=True)
                elif not self._runs_in_call(name):
                    self._with_required_options(call, option)(model, **{option: SAMPLES[option]})
                continue
            with Begun(model) as begun, pytest.raises((UnsupportedError, ValueError)) as refused:
                call(model, **{option: SAMPLES[option]})
            assert begun.count == 0
            assert option in str(refused.value)
            if not self.honours(model, option):
                assert isinstance(refused.value, UnsupportedError), (
                    "an option that the model does not support must raise UnsupportedError"
                )
                self.check_refusal(model, refused.value, option)

    @every_option
    def test_an_option_in_a_config_is_honoured_or_refused_alike(self, model: TextModel, option: str) -> None:
        if self.honours(model, option):
            return
        config = GenerateConfig(**{option: SAMPLES[option]})
        with pytest.raises(UnsupportedError, match=option):
            model.generate("x", config)
        with pytest.raises(UnsupportedError, match=option):
            model.agenerate("x", config)

    @every_call
    def test_what_asks_for_nothing_is_honoured_by_all(self, model: TextModel, call: Call) -> None:
        nothing: dict[str, Any] = {"max_tokens": 1, "timeout": 1000.0, "logprobs": 0, "return_logits": False}
        self._calling(model, call, **nothing)
        self._calling(model, call, **dict.fromkeys(GENERATE_FIELDS) | nothing)

    @pytest.mark.parametrize("wrong", [None, 3, b"x", ["x"]], ids=repr)
    def test_a_prompt_is_text(self, model: TextModel, wrong: Any) -> None:
        with pytest.raises(TypeError):
            model.generate(wrong)
        with pytest.raises(TypeError):
            model.agenerate(wrong)

    @pytest.mark.parametrize("wrong", [None, 3, "x"], ids=repr)
    def test_many_prompts_are_an_iterable_of_text(self, model: Any, wrong: Any) -> None:
        for call in (model.stream_batch, model.astream_batch, model.batch_generate, model.classify):
            with pytest.raises(TypeError):
                call(wrong)
        for call in (model.batch_generate, model.classify):
            with pytest.raises(TypeError):
                call(["x", 3])

    @pytest.mark.parametrize("wrong", ["hello", Message("user", "x"), {"role": "user"}, 3, [3], ["x"], []], ids=repr)
    def test_messages_are_messages(self, model: TextModel, wrong: Any) -> None:
        if not self.chats(model):
            return  # another test checks that chat() is refused
        with pytest.raises((TypeError, ValueError)):
            model.chat(wrong)
        with pytest.raises((TypeError, ValueError)):
            model.achat(wrong)

    def test_options_are_named_as_they_are(self, model: TextModel) -> None:
        assert isinstance(model.options, frozenset)
        assert model.options <= set(GENERATE_FIELDS), "model.options has names that are not fields of GenerateConfig"

    def _calling(self, model: TextModel, call: Call, **options: Any) -> Any:
        """Make the call, with `generate` in place of `chat` if the model has no chats."""
        if call in (_CALLS["chat"], _CALLS["achat"]) and not self.chats(model):
            call = _CALLS["generate"]
        return call(model, **options)

    @staticmethod
    def _runs_in_call(name: str) -> bool:
        """Return whether the call itself runs the operation, because it returns no stream."""
        return name in ("batch_generate", "abatch_generate")

    @staticmethod
    def _with_required_options(call: Call, option: str) -> Call:
        """Return `call` with the other options that this option requires."""
        if option == "tool_choice":
            return lambda model, **options: call(model, tools=SAMPLES["tools"], **options)
        return call
