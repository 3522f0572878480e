# SPDX-License-Identifier: Apache-2.0
"""The llm plugin through llm's Python API: what it offers, what a prompt becomes, what llm is told of the answer.

The command line is in test_llm_cli.py, with a real model.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import llm
import pydantic
import pytest
from click.testing import CliRunner
from llm.parts import (
    AttachmentPart,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

import inference_bridge as ib
from inference_bridge import (
    Attachment,
    GenerateConfig,
    LoadConfig,
    Message,
    Request,
    TextModel,
    Token,
    ToolCall,
    ToolCallDelta,
)
from llm_inference_bridge.messages import to_messages
from llm_inference_bridge.models import AsyncInferenceBridge, InferenceBridge

from ...parts.llm_plugin import Play, Scripted, ScriptedBackend, offered, text
from ...parts.models.gguf_files import write_checkpoint, write_model
from ...parts.models.tiny import Words, WordsBackend

pytestmark = pytest.mark.usefixtures("no_models_in_llm")


# ---------------------------------------------------------------- what is offered


def test_found_models_under_each_backend_that_takes_them(models_directory: Path) -> None:
    model = write_model(models_directory / "small.gguf")
    write_checkpoint(models_directory / "other")
    ib.register(WordsBackend("either"))
    ib.register(WordsBackend("gguf", loads=lambda source: source.endswith(".gguf")))
    ib.register(WordsBackend("away", missing="no such device"))
    mine = {id for id in offered() if "SmolLM2" not in id}
    assert mine == {"either:small", "either:other", "gguf:small"}
    assert offered()["gguf:small"][0].text_model() is offered()["gguf:small"][1].text_model()
    assert cast(Words, offered()["gguf:small"][0].text_model()).source == str(model)


def test_a_backend_taken_only_when_named_is_offered_nothing_that_was_found(models_directory: Path) -> None:
    class OnlyNamed(WordsBackend):
        only_when_named = True

    write_model(models_directory / "small.gguf")
    ib.register(OnlyNamed())
    assert not offered()


def test_configured_models(models_directory: Path, configure: Callable[[str], Path]) -> None:
    write_model(models_directory / "small.gguf")
    large = write_model(models_directory / "large.gguf")
    configure(
        """
        [models.one]
        source = "second:thing"
        device = "left"
        [models.two]
        source = "anything"
        backend = "first"
        [models.three]
        source = "large"
        [models.small]
        source = "first:elsewhere.gguf"
        [models.four]
        source = "thing"
        """
    )
    ib.register(first := WordsBackend("first", loads=lambda source: source.endswith(".gguf")))
    ib.register(second := WordsBackend("second", loads=lambda source: source == "thing"))
    ids = {id for id in offered() if "SmolLM2" not in id}
    assert ids == {"second:one", "first:two", "first:three", "first:large", "first:small", "second:four"}
    for id in ("second:one", "first:three", "first:small"):
        offered()[id][0].text_model()
    assert [(model.source, model.config) for model in second.loaded] == [("thing", LoadConfig(device="left"))]
    assert [model.source for model in first.loaded] == [str(large), "elsewhere.gguf"]


def test_a_wrong_configuration_file_is_told_in_one_line_and_what_is_found_still_works(
    home: Path, configure: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    found = write_model(home / "hub" / "models--a--b" / "snapshots" / "0" / "small.gguf")
    path = configure("[models.one]\nsorce = 'x'")
    ib.register(backend := WordsBackend())
    offered()
    model = offered()["words:small"][0]
    warning = capsys.readouterr().err
    assert warning.startswith(
        f"Warning: inference-bridge: {path}:2:1: models.one.sorce: is not known: did you mean 'source'"
    )
    assert warning.count("\n") == 1
    with pytest.raises(llm.ModelError, match=r"one can't be loaded: .*:2:1: .*did you mean 'source'"):
        offered()["words:one"][0].prompt("p").text()
    assert model.prompt("still works").text() == "still works"
    assert backend.loaded[0].source == str(found)


@pytest.mark.parametrize("broken", ["availability", "can_load"])
def test_a_backend_that_raises_is_told_in_one_line_and_the_others_are_offered(
    broken: str, models_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(WordsBackend):
        pass

    def fail(*_: object) -> bool:
        raise RuntimeError("fell\nover")

    setattr(Broken, broken, fail)
    write_model(models_directory / "small.gguf")
    ib.register(Broken("broken"))
    ib.register(WordsBackend())
    assert {id for id in offered() if "SmolLM2" not in id} == {"words:small"}
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "small.gguf" in line or broken == "availability"]) == 1
    assert all("'broken'" in line and line.endswith("RuntimeError: fell over") for line in lines)


def test_features_are_told_without_loading(configure: Callable[[str], Path], models_directory: Path) -> None:
    class Sees(WordsBackend):
        capabilities = frozenset({"images", "audios", "tools", "json_schema"})

    blind = write_model(models_directory / "blind.gguf", {"tokenizer.chat_template": "{{ messages }}"})
    given = f"[models.given]\nsource = 'sees:{blind}'\nmmproj = 'eyes.gguf'"
    configure(f"[models.remote]\nsource = 'sees:remote'\n{given}")
    ib.register(sees := Sees("sees"))
    ib.register(WordsBackend())
    for model in (*offered()["sees:remote"], *offered()["sees:blind"]):
        assert (model.supports_tools, model.supports_schema) == (True, True)
    assert {"image/png", "image/webp", "audio/wav"} < offered()["sees:remote"][0].attachment_types
    assert {"image/png", "audio/wav"} < offered()["sees:given"][0].attachment_types
    assert offered()["sees:blind"][0].attachment_types == frozenset()
    plain = offered()["words:blind"][0]
    assert (plain.supports_tools, plain.supports_schema, plain.attachment_types) == (False, False, frozenset())
    assert not sees.loaded


def test_garbage_collector_is_left_alone_in_a_program(models_directory: Path) -> None:
    write_model(models_directory / "small.gguf")
    ib.register(WordsBackend())
    frozen = gc.get_freeze_count()
    assert offered()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_garbage_collector_skips_in_a_command_what_llm_has_imported(models_directory: Path) -> None:
    write_model(models_directory / "small.gguf")
    code = """
import atexit, gc
from llm.cli import cli
assert gc.get_freeze_count() == 0
atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))
cli(["models", "-q", "small"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True"


# ---------------------------------------------------------------- loading


def test_a_model_is_loaded_once_for_all_prompts_and_threads_sync_and_async(configure: Callable[[str], Path]) -> None:
    class Slow(WordsBackend):
        def load_model(self, source: str, config: LoadConfig) -> TextModel:
            time.sleep(0.05)
            return super().load_model(source, config)

    configure("[models.one]\nsource = 'words:one'")
    ib.register(backend := Slow())
    pairs = [offered()["words:one"] for _ in range(3)]
    answers: list[str] = []
    threads = [threading.Thread(target=lambda m=m: answers.append(m.prompt("a b").text())) for m, _ in pairs]
    for thread in threads:
        thread.start()

    async def ask() -> list[str]:
        return list(await asyncio.gather(*(model.prompt("a b").text() for _, model in pairs)))

    answers += asyncio.run(ask())
    for thread in threads:
        thread.join()
    assert answers == ["a b"] * 6
    assert len(backend.loaded) == 1


def test_a_command_loads_one_slot_and_a_program_all_of_them(configure: Callable[[str], Path]) -> None:
    class Slots(WordsBackend):
        load_options = frozenset({"parallel_slots"})

    configure("[models.one]\nsource = 'llama_cpp:x'\n[models.two]\nsource = 'llama_cpp:x'\nparallel_slots = 3")
    ib.register(backend := Slots("llama_cpp"))

    @click.command()
    def command() -> None:
        for model, _ in offered().values():
            model.prompt("a").text()
            model.text_model().close()
        asyncio.run(ask())

    async def ask() -> None:
        await offered()["llama_cpp:one"][1].prompt("a").text()

    assert CliRunner().invoke(command).exit_code == 0
    offered()["llama_cpp:one"][0].text_model().close()
    asyncio.run(ask())
    slots = [cast(LoadConfig, model.config).parallel_slots for model in backend.loaded if model.source == "x"]
    assert slots == [1, 3, 1, None]


def test_a_closed_model_is_loaded_again(configure: Callable[[str], Path]) -> None:
    configure("[models.one]\nsource = 'words:one'")
    ib.register(backend := WordsBackend())
    model = offered()["words:one"][0]
    assert model.prompt("a").text() == "a"
    model.text_model().close()
    assert model.prompt("b").text() == "b"
    assert len(backend.loaded) == 2


def test_a_failed_load_is_tried_again(configure: Callable[[str], Path]) -> None:
    class Flaky(WordsBackend):
        failures = 1

        def load_model(self, source: str, config: LoadConfig) -> TextModel:
            if self.failures:
                self.failures -= 1
                raise ib.ModelLoadError("no memory for it")
            return super().load_model(source, config)

    configure("[models.one]\nsource = 'words:one'")
    ib.register(Flaky())
    model = offered()["words:one"][0]
    with pytest.raises(llm.ModelError, match="no memory for it"):
        model.prompt("a").text()
    assert model.prompt("a").text() == "a"


# ---------------------------------------------------------------- the conversation


def test_messages_of_every_kind() -> None:
    png = llm.Attachment(type="image/png", content=b"\x89PNG")
    theirs = [
        llm.Message("system", [TextPart("Be brief.")]),
        llm.Message("user", [TextPart("What "), TextPart("is this?"), AttachmentPart(png)]),
        llm.Message(
            "assistant",
            [
                ReasoningPart("Hm. "),
                ReasoningPart("", redacted=True),
                ReasoningPart("A tool."),
                TextPart("Let me see."),
                ToolCallPart("look", {"at": 1}, "c1"),
                ToolCallPart("weigh", {}, "c2"),
            ],
        ),
        llm.Message(
            "tool",
            [
                ToolResultPart(
                    "look", "a cat", "c1", attachments=[llm.Attachment(type="image/gif", url="https://x/y")]
                ),
                ToolResultPart("weigh", "Error: no scales", "c2", exception="OSError: no scales"),
            ],
        ),
        llm.Message("assistant", [TextPart("A cat.")]),
    ]
    assert to_messages(theirs) == [
        Message("system", "Be brief."),
        Message("user", ["What ", "is this?", Attachment("image/png", data=b"\x89PNG")]),
        Message(
            "assistant",
            "Let me see.",
            [ToolCall("c1", "look", {"at": 1}), ToolCall("c2", "weigh", {})],
            reasoning="Hm. A tool.",
        ),
        Message("tool", ["a cat", Attachment("image/gif", url="https://x/y")], tool_call_id="c1", name="look"),
        Message("tool", "Error: no scales", tool_call_id="c2", name="weigh"),
        Message("assistant", "A cat."),
    ]


def test_a_result_inside_an_answer_is_a_message_between_its_halves() -> None:
    """As another provider's server tools leave it in a conversation that goes on here."""
    parts: list[Part] = [
        ToolCallPart("search", {"q": "cats"}, "s1", server_executed=True),
        ToolResultPart("search", "many", "s1", server_executed=True),
        TextPart("There are many."),
    ]
    assert to_messages([llm.Message("assistant", parts)]) == [
        Message("assistant", "", [ToolCall("s1", "search", {"q": "cats"})]),
        Message("tool", "many", tool_call_id="s1", name="search"),
        Message("assistant", "There are many."),
    ]


def test_an_attachment_by_path_has_its_type_told_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "dot.gif"
    path.write_bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")
    (message,) = to_messages([llm.user(llm.Attachment(path=str(path)))])
    assert message.content == (Attachment("image/gif", path=str(path)),)


def test_an_attachment_of_no_known_type_is_refused() -> None:
    with pytest.raises(ValueError, match="--at"):
        to_messages([llm.user(llm.Attachment(content=b"?"))])


def test_a_part_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="NewPart"):
        to_messages([llm.Message("user", [type("NewPart", (Part,), {})()])])


def test_a_conversation_grows_by_question_and_answer(play: Play) -> None:
    model, scripted = play(text("one"), text("two"))
    conversation = model.conversation()
    conversation.prompt("first", system="Count.").text()
    conversation.prompt("second").text()
    assert scripted.requests[1].messages == (
        Message("system", "Count."),
        Message("user", "first"),
        Message("assistant", "one"),
        Message("user", "second"),
    )


# ---------------------------------------------------------------- options


def test_options_reach_the_model_under_their_own_names(play: Play) -> None:
    given: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 0,
        "stop": ["a", "b"],
        "seed": 1,
        "reasoning": "low",
        "template_options": {"deep": [1]},
        "timeout": 9,
    }
    model, scripted = play(text("x"))
    model.prompt("p", **given).text()
    assert scripted.config.set_fields() == given | {"stop": ("a", "b"), "timeout": 9.0}


def test_a_schema_reaches_the_model(play: Play) -> None:
    model, scripted = play(text("{}"))
    model.prompt("p", schema={"type": "object"}).text()
    assert scripted.config.json_schema == {"type": "object"}


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("max_tokens", "-1", -1),
        ("temperature", "0.2", 0.2),
        ("stop", "\n", "\n"),
        ("stop", "[not a list", "[not a list"),
        ("stop", "5", "5"),
        ("stop", r'["\n", "User:"]', ["\n", "User:"]),
        ("stop_tokens", "7", [7]),
        ("stop_tokens", "[7, 8]", [7, 8]),
        ("reasoning", "off", False),
        ("reasoning", "on", True),
        ("reasoning", "high", "high"),
        ("template_options", '{"a": {"b": 1}}', {"a": {"b": 1}}),
        ("tool_choice", "look", "look"),
        ("timeout", "2.5", 2.5),
    ],
)
def test_options_as_typed_on_a_command_line(name: str, typed: str, value: object) -> None:
    given: dict[str, Any] = {name: typed}
    options = InferenceBridge.Options(**given)
    assert getattr(options, name) == value
    assert type(getattr(options, name)) is type(value)
    again = InferenceBridge.Options(**json.loads(options.model_dump_json(exclude_none=True)))  # as llm logs them
    assert again == options


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temperature", "-1", "temperature must be at least 0"),
        ("temperature", "nan", "temperature must be finite"),
        ("temperature", "warm", "valid number"),
        ("max_tokens", "0", "max_tokens must be at least 1"),
        ("max_tokens", "2.5", "valid integer"),
        ("top_p", "1.5", "top_p must be at most 1"),
        ("seed", "-1", "seed must be at least 0"),
        ("stop", [1], "stop must be"),
        ("stop", '["a", 1]', "stop must be"),
        ("stop_tokens", "one", "stop_tokens must be"),
        ("stop_tokens", "[1.5]", "stop_tokens must be"),
        ("reasoning", "maybe", "reasoning must be"),
        ("template_options", "[1]", "template_options must be"),
        ("template_options", "{a}", "template_options must be"),
        ("timeout", "0", "timeout must be above 0"),
        ("choices", "yes", "choices must be"),
        ("context_length", "-1", "context_length must be at least 0"),
        ("tool_choice", "", "tool_choice must not be empty"),
        ("temprature", "1", "did you mean 'temperature'"),
        ("tempo", "1", "Unknown option"),
        ("json_schema", "{}", "--schema"),
        ("parallel_slots", "8", "-l parallel_slots VALUE"),
    ],
)
def test_a_wrong_option_is_told_by_its_name(name: str, value: Any, told: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        InferenceBridge.Options(**{name: value})
    (error,) = caught.value.errors()
    assert error["loc"] == (name,)  # llm joins these to show them, so they are strings
    assert told in error["msg"]


def test_every_option_explains_itself_and_is_one_of_the_contract() -> None:
    properties = InferenceBridge.Options.model_json_schema()["properties"]
    assert set(GenerateConfig.__dataclass_fields__) - set(properties) == {
        "json_schema",
        "logprobs",
        "n",
        "return_logits",
        "tools",
    }
    assert all(field["description"] for field in properties.values())
    assert {InferenceBridge.Options, AsyncInferenceBridge.Options} == {InferenceBridge.Options}


def test_without_options_an_answer_is_bounded_and_sampled_as_the_model_recommends(play: Play) -> None:
    model, scripted = play(text("a"), text("b"), text("c"), text("d"))
    model.prompt("p").text()
    # llama.cpp's customary sampling, as far as this model has the options: it has no min_p.
    assert scripted.config == GenerateConfig(max_tokens=4096, temperature=0.8, top_k=40, top_p=0.95)
    scripted.recommended = GenerateConfig(temperature=0.6, top_k=20, top_p=0.5)
    model.prompt("p", top_k=5).text()
    assert scripted.config == GenerateConfig(max_tokens=4096, temperature=0.6, top_k=5, top_p=0.5)
    model.prompt("p", temperature=0.0).text()
    assert scripted.config == GenerateConfig(max_tokens=4096, temperature=0.0)
    scripted.info = ib.ModelInfo(architecture="scripted", context_length=2048)
    model.prompt("p", temperature=0.0).text()
    assert scripted.config == GenerateConfig(max_tokens=-1, temperature=0.0)  # the context bounds it


def test_load_options_of_a_prompt_come_before_the_configuration(
    configure: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WordsBackend, "load_options", None)
    ib.register(backend := WordsBackend("loads"))
    configure("[models.one]\nsource = 'loads:x'\ncontext_length = 512\nthreads = 2")
    model, _ = offered()["loads:one"]
    model.prompt("p").text()
    model.prompt("p", context_length=8192, gpu_layers=0, max_tokens=3).text()
    model.prompt("p", context_length=8192, gpu_layers=0, max_tokens=4).text()  # which is loaded already
    model.prompt("p", deterministic=True, kv_cache_type="q8_0").text()
    model.prompt("p", threads=0).text()
    assert [one.config for one in backend.loaded] == [
        LoadConfig(context_length=512, threads=2),
        LoadConfig(context_length=8192, gpu_layers=0, threads=2),
        LoadConfig(context_length=512, threads=2, deterministic=True, kv_cache_type="q8_0"),
        LoadConfig(context_length=512),
    ]
    with pytest.raises(ValueError, match="gpu_layers must be at least -1"):
        model.prompt("p", gpu_layers=-2)
    for other, meant in (("n_ctx", "context_length"), ("num_predict", "max_tokens")):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            model.prompt("p", **cast("dict[str, Any]", {other: 1}))


def test_the_settings_of_a_configured_name_come_before_llms_own(play: Play) -> None:
    model, scripted = play(text("a"), options="max_tokens = 9\ntemperature = 0.1")
    scripted.recommended = GenerateConfig(temperature=0.6, top_k=20)
    model.prompt("p").text()
    assert scripted.config == GenerateConfig(max_tokens=9, temperature=0.1)


# ---------------------------------------------------------------- the answer


def test_text_reasoning_usage_and_how_it_ended(play: Play) -> None:
    tokens = [Token("Hm", kind="reasoning"), Token("", id=1), Token("Ye"), Token("s")]
    model, _ = play(tokens)
    response = model.prompt("p")
    events = list(cast(Any, response).stream_events())
    assert [(event.type, event.chunk) for event in events] == [("reasoning", "Hm"), ("text", "Ye"), ("text", "s")]
    assert response.text() == "Yes"
    assert response.messages() == [llm.Message("assistant", [ReasoningPart("Hm"), TextPart("Yes")])]
    assert response.usage() == llm.Usage(input=7, output=4, details={"cached_tokens": 3})
    told = response.json()
    assert told is not None
    assert told["finish_reason"] == "stop"
    assert told["metrics"]["prompt_tokens"] == 7
    json.dumps(told)


def test_an_answer_at_its_limit_says_so(play: Play) -> None:
    model, _ = play(text("a", "b", "c"))
    response = model.prompt("p", max_tokens=2)
    assert response.text() == "ab"
    assert (response.json() or {})["finish_reason"] == "length"


def test_without_streaming_the_answer_is_the_same(play: Play) -> None:
    model, _ = play(text("a", "b"), text("a", "b"))
    assert model.prompt("p", stream=False).text() == model.prompt("p").text() == "ab"


CALLS = [
    Token("", kind="tool_call", tool_call=ToolCallDelta(0, "c1", "add")),
    Token("", kind="tool_call", tool_call=ToolCallDelta(0, arguments='{"a": 1, ')),
    Token("", kind="tool_call", tool_call=ToolCallDelta(0, arguments='"b": 2}')),
    Token("", kind="tool_call", tool_call=ToolCallDelta(1, None, "add", '{"a": 3, "b": 4}')),
]


def test_tool_calls_are_streamed_recorded_once_and_answered(play: Play) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    model, scripted = play(CALLS, text("3 and 7"))
    chain = model.chain("Add.", tools=[add], options={"tool_choice": "required"})
    events = list(cast(Any, chain).stream_events())
    first, second = chain._responses
    assert [event.type for event in events[:3]] == ["tool_call_name", "tool_call_args", "tool_call_args"]
    calls = first.tool_calls()
    assert [(call.name, call.arguments) for call in calls] == [("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})]
    assert calls[0].tool_call_id == "c1"
    assert calls[1].tool_call_id not in (None, "", "c1")
    assert [type(part) for part in first.messages()[0].parts] == [ToolCallPart, ToolCallPart]
    assert second.text() == "3 and 7"

    (tool,) = cast("tuple[ib.Tool]", scripted.requests[0].config.tools)
    assert (tool.name, tool.description) == ("add", "Add two numbers.")
    assert set(tool.parameters["properties"]) == {"a", "b"}
    # Forced again after the answer, the model could never speak.
    assert [request.config.tool_choice for request in scripted.requests] == ["required", "auto"]
    asked, *answers = scripted.requests[1].messages[1:]
    assert [call.id for call in asked.tool_calls] == [answer.tool_call_id for answer in answers]
    assert [answer.text for answer in answers] == ["3", "7"]


def test_a_tool_call_that_was_cut_off_is_an_error(play: Play) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    model, _ = play(CALLS)
    with pytest.raises(llm.ModelError, match=r"tool 'add' is incomplete .*'length'.*max_tokens"):
        model.chain("Add.", tools=[add], options={"max_tokens": 2}).text()


async def test_the_asynchronous_twin_tells_the_same(play: Play, configure: Callable[[str], Path]) -> None:
    _, _ = play([Token("Hm", kind="reasoning"), *text("Ye", "s")], CALLS)
    model = offered()["scripted:play"][1]
    response = model.prompt("p")
    events = [event async for event in cast(Any, response).astream_events()]
    assert [(event.type, event.chunk) for event in events] == [("reasoning", "Hm"), ("text", "Ye"), ("text", "s")]
    assert await response.text() == "Yes"
    assert await response.usage() == llm.Usage(input=7, output=3, details={"cached_tokens": 3})
    calls = await model.prompt("p", tools=[llm.Tool("add", "", {"type": "object"})]).tool_calls()
    assert [call.name for call in calls] == ["add", "add"]


# ---------------------------------------------------------------- errors and endings


class Failing(Scripted):
    """Says two words and fails."""

    error: Exception = ib.ServerError("the server went away")

    def _run(self, request: Request) -> Iterator[Token]:
        yield from text("so ", "far")
        raise self.error


def failing(error: Exception, configure: Callable[[str], Path]) -> tuple[InferenceBridge, AsyncInferenceBridge]:
    configure("[models.play]\nsource = 'scripted:play'")
    model = Failing([])
    model.error = error
    ib.register(ScriptedBackend(model))
    return offered()["scripted:play"]


@pytest.mark.parametrize(
    ("error", "told"),
    [(ib.ServerError("the server went away"), "went away"), (RuntimeError("a bug"), "RuntimeError: a bug")],
)
def test_a_failure_midway_is_an_llm_error_after_what_there_was(
    error: Exception, told: str, configure: Callable[[str], Path]
) -> None:
    model, async_model = failing(error, configure)
    seen: list[str] = []
    with pytest.raises(llm.ModelError, match=told) as caught:
        seen.extend(model.prompt("p"))
    assert seen == ["so ", "far"]
    assert isinstance(caught.value.__cause__, ib.GenerationError)

    async def ask() -> None:
        await async_model.prompt("p").text()

    with pytest.raises(llm.ModelError, match=told):
        asyncio.run(ask())


def test_what_the_model_can_not_do_is_an_llm_error(configure: Callable[[str], Path]) -> None:
    configure("[models.one]\nsource = 'words:one'")
    ib.register(WordsBackend())
    with pytest.raises(llm.ModelError, match="words does not support temperature"):
        offered()["words:one"][0].prompt("p", temperature=1.0).text()


def test_dropping_a_response_ends_the_operation(play: Play) -> None:
    model, scripted = play(text("a", "b", "c"))
    chunks = iter(model.prompt("p"))
    assert next(chunks) == "a"
    assert not scripted.requests[0].cancelled
    cast(Any, chunks).close()
    assert scripted.requests[0].cancelled


async def test_cancelling_a_task_ends_the_operation(configure: Callable[[str], Path]) -> None:
    class Waiting(Scripted):
        started = threading.Event()

        def _run(self, request: Request) -> Iterator[Token]:
            self.requests.append(request)
            yield Token("a")
            self.started.set()
            over = threading.Event()
            request.on_cancel(over.set)
            over.wait()

    configure("[models.play]\nsource = 'scripted:play'")
    ib.register(ScriptedBackend(waiting := Waiting([])))
    model = offered()["scripted:play"][1]

    async def ask() -> str:
        return await model.prompt("p").text()

    task = asyncio.ensure_future(ask())
    await asyncio.to_thread(waiting.started.wait)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert waiting.requests[0].cancelled
