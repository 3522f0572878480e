# SPDX-License-Identifier: Apache-2.0
"""The parts of TextModel that every backend inherits: checks of arguments, options, classify."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge import (
    GenerateConfig,
    GenerationTimeoutError,
    Message,
    ModelClosedError,
    Request,
    TextModel,
    Token,
    Tool,
    UnsupportedError,
)

from ..parts.models.tiny import AsyncWords, Tiny, Waits, Words

TOOL = {"name": "add", "parameters": {"type": "object"}}


class Able(Words):
    """Declares support for everything, and records its requests."""

    backend = "able"
    options = frozenset(GenerateConfig.__dataclass_fields__)
    capabilities = frozenset({"tools", "json_schema", "images", "reasoning", "logprobs"})

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def _run(self, request: Request) -> Iterator[Token]:
        self.requests.append(request)
        return super()._run(request)


def _asked(model: Able) -> GenerateConfig:
    return model.requests.pop().config


# ---------------------------------------------------------------- methods that a backend must define


def test_run_or_arun() -> None:
    class Neither(TextModel):
        def close(self) -> None: ...

    with pytest.raises(TypeError, match="Neither must define _run or _arun"):
        Neither()

    class NoClose(TextModel):
        def _run(self, request: Request) -> Iterator[Token]:
            return iter(())

    with pytest.raises(TypeError, match="abstract"):
        NoClose()  # type: ignore[abstract]


def test_init_need_not_call_super() -> None:
    class Model(TextModel):
        info = ib.ModelInfo()
        capabilities = frozenset()

        def __init__(self, text: str, *, twice: bool) -> None:
            self.text = text * (1 + twice)

        def _run(self, request: Request) -> Iterator[Token]:
            return iter([Token(self.text)])  # any iterator will do

        def close(self) -> None: ...

    with Model("a", twice=True) as model:
        assert model.generate("x").text() == "aa"
        assert asyncio.run(model.agenerate("x").text()) == "aa"


def test_optional_interfaces() -> None:
    class More(Words):
        def stats(self) -> ib.GenerateStats:
            return ib.GenerateStats()

        def embed(self, texts: Any) -> list[list[float]]:
            return []

        async def aembed(self, texts: Any) -> list[list[float]]:
            return []

    assert isinstance(Words(), ib.BatchModel)
    assert not isinstance(Words(), ib.StatsModel | ib.EmbeddingModel)
    assert isinstance(More(), ib.StatsModel)
    assert isinstance(More(), ib.EmbeddingModel)


@pytest.mark.parametrize("name", ["embed", "aembed", "rerank", "arerank", "stats"])
def test_an_operation_that_the_model_does_not_have_is_refused(name: str) -> None:
    model = Words()
    assert not hasattr(model, name)
    with pytest.raises(ib.UnsupportedError) as caught:
        getattr(model, name)
    assert caught.value.feature == name
    assert caught.value.why


def test_any_other_name_is_an_attribute_error_alone() -> None:
    class Broken(Words):
        @property
        def broken(self) -> str:
            raise AttributeError("the cause")

    with pytest.raises(AttributeError, match="has no attribute 'embedd'"):
        Words().embedd  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="the cause"):
        Broken().broken  # noqa: B018


def test_a_missing_optional_interface_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="Words does not support count_tokens"):
        Words().count_tokens("x")
    with pytest.raises(UnsupportedError, match="labels in classify"):
        Words().classify(["x"], labels=["a", "b"])


# ---------------------------------------------------------------- checks at the call

CALLS: list[Callable[..., object]] = [
    lambda model, **options: model.generate("x", **options),
    lambda model, **options: model.agenerate("x", **options),
    lambda model, **options: model.chat([Message("user", "x")], **options),
    lambda model, **options: model.achat([Message("user", "x")], **options),
    lambda model, **options: model.batch_generate(["x"], **options),
    lambda model, **options: model.stream_batch(["x"], **options),
    lambda model, **options: model.astream_batch(["x"], **options),
    lambda model, **options: model.classify(["x"], **options),
    lambda model, **options: asyncio.run(model.abatch_generate(["x"], **options)),
    lambda model, **options: asyncio.run(model.aclassify(["x"], **options)),
]
EVERY_CALL = pytest.mark.parametrize(
    "call",
    CALLS,
    ids=["generate", "agenerate", "chat", "achat", "batch_generate", "stream_batch", "astream_batch", "classify",
         "abatch_generate", "aclassify"],
)  # fmt: skip


@EVERY_CALL
def test_wrong_options_are_refused_by_the_call(call: Callable[..., object]) -> None:
    model = Able()
    with pytest.raises(TypeError, match="unknown generation option 'max_token': did you mean 'max_tokens'"):
        call(model, max_token=3)
    with pytest.raises(TypeError, match="temperature must be a number"):
        call(model, temperature="hot")
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be"):
            call(model, temperature=wrong)
    with pytest.raises(TypeError, match="config must be a GenerateConfig, not dict"):
        call(model, config={"max_tokens": 3})
    assert model.begun == 0


@EVERY_CALL
def test_unsupported_options_are_refused_by_the_call(call: Callable[..., object]) -> None:
    model = Words()
    for name, value in {
        "temperature": 0.0,
        "seed": 1,
        "stop": "x",
        "stop_tokens": 3,
        "json_schema": {},
        "logprobs": 1,
    }.items():
        with pytest.raises(UnsupportedError, match=f"Words does not support {name}") as error:
            call(model, **{name: value})
        assert (error.value.feature, error.value.backend) == (name, "Words")
    with pytest.raises(UnsupportedError, match="return_logits"):
        call(model, return_logits=True)
    assert model.begun == 0


@EVERY_CALL
def test_options_without_effect_are_accepted_by_all_models(call: Callable[..., object]) -> None:
    call(Words(), stop=[], stop_tokens=[], logprobs=0, return_logits=False, timeout=60, max_tokens=5)


@EVERY_CALL
def test_a_closed_model_refuses_the_call(call: Callable[..., object]) -> None:
    model = Able()
    model.close()
    with pytest.raises(ModelClosedError, match="closed: load it again"):
        call(model)


@pytest.mark.parametrize(
    ("name", "value", "capability"),
    [
        ("json_schema", {}, "json_schema"),
        ("tools", [TOOL], "tools"),
        ("tool_choice", "auto", "tools"),
        ("logprobs", 2, "logprobs"),
        ("reasoning", "low", "reasoning"),
    ],
)
def test_options_that_a_capability_stands_for(name: str, value: Any, capability: str) -> None:
    class One(Words):
        capabilities = frozenset({capability})

    message = [Message("user", "x")]
    assert One().chat(message, **{name: value}).text() == "x"
    with pytest.raises(UnsupportedError, match=name):
        Words().chat(message, **{name: value})


def test_prompts_are_text() -> None:
    model = Words()
    for wrong in (None, 3, b"x", ["x"]):
        with pytest.raises(TypeError, match="prompt must be a str"):
            model.generate(wrong)  # type: ignore[arg-type]
    for prompts in ("x", 3, None):
        with pytest.raises(TypeError, match="prompts must be an iterable of str"):
            model.batch_generate(prompts)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="prompts must be an iterable of str"):
            model.stream_batch(prompts)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prompts\[1\] must be a str, not int"):
        model.batch_generate(["x", 3])  # type: ignore[list-item]


def test_messages_are_messages() -> None:
    model = Words()
    for one in (Message("user", "a b"), {"role": "user", "content": "a b"}):
        assert model.chat([one]).text() == "a b"
    assert model.chat(iter([Message("user", "generated")])).text() == "generated"  # type: ignore[arg-type]
    for wrong in ("hello", Message("user", "x"), {"role": "user"}, 3, [3], ["x"]):
        with pytest.raises(TypeError, match="message"):
            model.chat(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="messages is empty"):
        model.chat([])
    with pytest.raises(ValueError, match="needs a role"):
        model.chat([{"content": "x"}])
    assert model.begun == 1 + 1 + 1


def test_attachments_need_their_capability() -> None:
    image = [Message("user", ["see: ", ib.Attachment("image/png", data=b"")])]
    assert Able().chat(image).text() == "see:"
    with pytest.raises(UnsupportedError, match="image/png attachments"):
        Words().chat(image)
    with pytest.raises(UnsupportedError, match="audio/wav attachments"):
        Able().chat([Message("user", [ib.Attachment("audio/wav", data=b"")])])


def test_a_raw_prompt_refuses_options_of_chats() -> None:
    model = Able()
    for options in ({"tools": [TOOL]}, {"tool_choice": "none"}, {"reasoning": "low"}, {"template_options": {"a": 1}}):
        with pytest.raises(ValueError, match="is an option of chat"):
            model.generate("x", **options)
        with pytest.raises(ValueError, match="is an option of chat"):
            model.stream_batch(["x"], **options)


def test_tool_choice_names_one_of_the_tools() -> None:
    model, message = Able(), [Message("user", "x")]
    for choice in ("auto", "none", "required", "add"):
        model.chat(message, tools=[TOOL], tool_choice=choice)
    with pytest.raises(ValueError, match="tool_choice='sub' is not the name of a tool: the tools are add"):
        model.chat(message, tools=[TOOL], tool_choice="sub")
    for choice in ("required", "add"):
        with pytest.raises(ValueError, match=f"tool_choice='{choice}' needs tools"):
            model.chat(message, tool_choice=choice)


# ---------------------------------------------------------------- options


def test_options_go_over_config_and_config_over_the_defaults() -> None:
    model = Able()
    model.defaults = GenerateConfig(temperature=0.5, top_k=7, seed=1)
    model.generate("x", GenerateConfig(top_k=8, seed=2), seed=3).text()
    assert _asked(model) == GenerateConfig(temperature=0.5, top_k=8, seed=3)
    model.generate("x", seed=None).text()
    assert _asked(model) == model.defaults
    model.batch_generate(["x"], top_k=9)
    assert _asked(model) == GenerateConfig(temperature=0.5, top_k=9, seed=1)


def test_defaults_for_chats_do_not_keep_raw_prompts_out() -> None:
    model = Able()
    model.defaults = GenerateConfig(reasoning="low", template_options={"a": 1}, seed=1)
    model.chat([Message("user", "x")]).text()
    assert _asked(model) == model.defaults
    model.generate("x").text()
    assert _asked(model) == GenerateConfig(seed=1)
    assert [result.text for result in model.batch_generate(["a", "b"])] == ["a", "b"]


def test_a_stop_can_not_cut_json_short() -> None:
    model, tool = Able(), Tool("add")
    with pytest.raises(UnsupportedError, match="able does not support stop with json_schema: it could cut the answer"):
        model.generate("x", json_schema={}, stop="}")
    with pytest.raises(UnsupportedError, match="stop_tokens with json_schema"):
        model.batch_generate(["x"], GenerateConfig(stop_tokens=[3]), json_schema={})
    with pytest.raises(UnsupportedError, match="stop with tool_choice='add'"):
        model.chat([Message("user", "x")], tools=[tool], tool_choice="add", stop=["}"])
    model.chat([Message("user", "x")], tools=[tool], stop=["}"]).close()
    # The caller did not request a default.
    model.defaults = GenerateConfig(stop=["}"], seed=1)
    model.generate("x", json_schema={}).text()
    assert _asked(model) == GenerateConfig(json_schema={}, seed=1)
    model.generate("x").text()
    assert _asked(model) == model.defaults


def test_unsupported_defaults_are_refused() -> None:
    model = Words()
    model.defaults = GenerateConfig(seed=1)
    with pytest.raises(UnsupportedError, match="seed"):
        model.generate("x")


def test_unset_options_are_not_passed_to_the_backend() -> None:
    model = Able()
    model.generate("x").text()
    assert _asked(model).set_fields() == {}


# ---------------------------------------------------------------- classify


@pytest.mark.parametrize("kind", [Words, AsyncWords])
async def test_classify_is_the_first_token(kind: type[Tiny]) -> None:
    model = kind()
    expected = [ib.ClassifyResult(Token("yes")), ib.ClassifyResult(Token("no")), ib.ClassifyResult(Token(""))]
    assert model.classify(["yes it is", "no", ""]) == expected
    assert await model.aclassify(["yes it is", "no", ""]) == expected


def test_classify_is_greedy_if_the_model_supports_temperature() -> None:
    model = Able()
    model.classify(["x"])
    assert _asked(model) == GenerateConfig(max_tokens=1, temperature=0.0)


async def test_classify_raises_the_error_of_a_prompt() -> None:
    class Picky(Words):
        def _run(self, request: Request) -> Iterator[Token]:
            if "bad" in request.prompt:
                raise ib.ContextLengthExceededError(9, 3)
            return super()._run(request)

    with pytest.raises(ib.ContextLengthExceededError):
        Picky().classify(["good", "bad"])
    with pytest.raises(ib.ContextLengthExceededError):
        await Picky().aclassify(["good", "bad"])


async def test_cancelling_aclassify_frees_its_operations() -> None:
    model = Waits()
    task = asyncio.create_task(model.aclassify(["", ""]))
    await asyncio.to_thread(model.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(model.finished.wait)
    assert not model._life.running


async def test_aclassify_uses_a_backend_s_classify() -> None:
    class Own(Words):
        def classify(self, *args: Any, **kwargs: Any) -> list[ib.ClassifyResult]:
            return [ib.ClassifyResult(Token("own"))]

    assert (await Own().aclassify(["x"]))[0].token.text == "own"


# ---------------------------------------------------------------- the timeout of what comes before the first token


class Counted(dict[str, Any]):
    """A message that counts how many of its kind are read."""

    read = 0

    def get(self, key: str, default: Any = None) -> Any:
        Counted.read += key == "role"
        return super().get(key, default)


def test_timeout_covers_the_reading_of_messages() -> None:
    Counted.read = 0
    messages = [Counted(role="user", content="hi")] * 50_000
    with pytest.raises(GenerationTimeoutError):
        Words().chat(messages, timeout=0.001).text()
    assert Counted.read < len(messages)
