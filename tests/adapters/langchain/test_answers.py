# SPDX-License-Identifier: Apache-2.0
"""Generated tokens as LangChain messages and chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import LLMResult

import inference_bridge as ib
from inference_bridge import FinishReason, Request, TextModel, Token, ToolCallDelta, TopLogprob
from langchain_inference_bridge import ChatInferenceBridge
from langchain_inference_bridge.messages import to_messages

pytestmark = pytest.mark.filterwarnings("ignore:The method `BaseChatModel._a?chat_model_stream_v3` is in beta")


class Scripted(TextModel):
    """Yields the given tokens, for outputs that the small model of these tests never generates."""

    backend = "scripted"
    model_type = "play"
    info = ib.ModelInfo(architecture="play", context_length=100)
    capabilities = frozenset({"logprobs", "reasoning", "tools"})

    def __init__(self, tokens: Sequence[Token], finish_reason: FinishReason | None = None) -> None:
        self.tokens = tokens
        self.finish_reason = finish_reason

    def _run(self, request: Request) -> Iterator[Token]:
        request.measure(prompt_tokens=7, cached_tokens=3)
        request.finish_reason = self.finish_reason
        yield from self.tokens

    def close(self) -> None:
        pass


def call(arguments: str, index: int = 0, *, id: str | None = None, name: str | None = None) -> Token:
    return Token("", kind="tool_call", tool_call=ToolCallDelta(index, id, name, arguments))


def pieces(index: int, name: str, arguments: str) -> list[Token]:
    first, *rest = [call(part, index) for part in arguments]
    assert first.tool_call is not None
    return [call(first.tool_call.arguments, index, id=f"id{index}", name=name), *rest]


def thought(text: str) -> Token:
    return Token(text, kind="reasoning")


def merged(chat: ChatInferenceBridge, **options: Any) -> AIMessageChunk:
    first, *others = chat.stream("?", **options)
    full = first + others
    assert isinstance(full, AIMessageChunk)
    return full


def chat_of(tokens: Sequence[Token], finish_reason: FinishReason | None = None, **fields: Any) -> ChatInferenceBridge:
    return ChatInferenceBridge(text_model=Scripted(tokens, finish_reason), **fields)


def content(message: AIMessage) -> list[dict[str, Any]]:
    """The content blocks, without the numbers that LangChain merges them by."""
    return [{key: value for key, value in block.items() if key != "index"} for block in message.content_blocks]


# ---------------------------------------------------------------- text and reasoning

REASONED = [thought("6 "), thought("times 7"), Token("4"), Token(""), Token("2")]


def test_reasoning_is_a_separate_block() -> None:
    chat = chat_of(REASONED)
    for message in (chat.invoke("?"), merged(chat)):
        assert message.content == "42"
        assert content(message) == [{"type": "reasoning", "reasoning": "6 times 7"}, {"type": "text", "text": "42"}]
        assert to_messages([message])[0].reasoning == "6 times 7"


def test_content_consists_of_blocks_on_request() -> None:
    chat = chat_of(REASONED, output_version="v1")
    blocks = [{"type": "reasoning", "reasoning": "6 times 7"}, {"type": "text", "text": "42"}]
    for message in (chat.invoke("?"), merged(chat)):
        assert isinstance(message.content, list)
        assert content(message) == blocks
        assert message.text == "42"
        (again,) = to_messages([message])
        assert (again.text, again.reasoning) == ("42", "6 times 7")


def test_usage_comes_once_and_counts_reasoning_and_cached_tokens() -> None:
    chat = chat_of(REASONED)
    expected = {
        "input_tokens": 7,
        "output_tokens": 5,
        "total_tokens": 12,
        "input_token_details": {"cache_read": 3},
        "output_token_details": {"reasoning": 2},
    }
    assert chat.invoke("?").usage_metadata == expected
    chunks = list(chat.stream("?"))
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [expected]
    assert chunks[-1].chunk_position == "last"


def test_metadata_has_the_model_and_the_finish_reason() -> None:
    chat = chat_of([Token("a")], "length")
    for message in (chat.invoke("?"), merged(chat)):
        metadata = message.response_metadata
        assert metadata["model_name"] == "scripted:play"
        assert metadata["model_provider"] == "inference-bridge"
        assert metadata["finish_reason"] == "length"
        assert metadata["timings"].keys() >= {"total_seconds", "time_to_first_token", "decode_tokens_per_second"}
        json.dumps(metadata)


def test_an_answer_without_a_token_is_an_answer() -> None:
    chat = chat_of([], "stop")
    for message in (chat.invoke("?"), merged(chat)):
        assert (message.content, message.response_metadata["finish_reason"]) == ("", "stop")


def test_log_probabilities_are_given_for_each_token() -> None:
    tokens = [
        Token("é", logprob=-0.5, top_logprobs=(TopLogprob("é", 1, -0.5), TopLogprob("e", 2, -1.5))),
        Token("", logprob=-1.0),
    ]
    chat = chat_of(tokens)
    expected = [
        {
            "token": "é",
            "bytes": [195, 169],
            "logprob": -0.5,
            "top_logprobs": [
                {"token": "é", "bytes": [195, 169], "logprob": -0.5},
                {"token": "e", "bytes": [101], "logprob": -1.5},
            ],
        },
        {"token": "", "bytes": [], "logprob": -1.0, "top_logprobs": []},
    ]
    assert chat.invoke("?", logprobs=2).response_metadata["logprobs"] == {"content": expected}
    assert merged(chat, logprobs=2).response_metadata["logprobs"] == {"content": expected}


# ---------------------------------------------------------------- tool calls

TWO_CALLS = [
    Token("so"),
    *pieces(0, "weather", '{"city": "Paris"}'),
    *pieces(1, "time", "{}"),
    Token("."),
    *pieces(2, "weather", '{"city": "Rome"}'),
]
CALLED = [
    {"type": "tool_call", "id": "id0", "name": "weather", "args": {"city": "Paris"}},
    {"type": "tool_call", "id": "id1", "name": "time", "args": {}},
    {"type": "tool_call", "id": "id2", "name": "weather", "args": {"city": "Rome"}},
]


def test_tool_calls() -> None:
    chat = chat_of(TWO_CALLS)
    for message in (chat.invoke("?"), merged(chat)):
        assert message.tool_calls == CALLED
        assert message.invalid_tool_calls == []
        assert message.content == "so."
        assert message.response_metadata["finish_reason"] == "tool_calls"


def test_tool_calls_among_blocks_keep_their_places() -> None:
    message = merged(chat_of(TWO_CALLS, output_version="v1"))
    text = [{"type": "text", "text": text} for text in ("so", ".")]
    assert content(message) == [text[0], CALLED[0], CALLED[1], text[1], CALLED[2]]
    assert message.tool_calls == CALLED


def test_a_call_that_has_no_id_gets_one() -> None:
    chat = chat_of([call("{", name="now"), call("}")])
    for message in (chat.invoke("?"), merged(chat)):
        (made,) = message.tool_calls
        assert made["id"]
        assert made["id"].startswith("call_")


ARGUMENTS = r'{"path": "/home/a\"b\\c\u00e9", "lines": [1, {"of": [true, "x"]}], "n": -2.5}'


@pytest.mark.parametrize("length", range(1, len(ARGUMENTS)))
def test_a_call_that_breaks_off_anywhere_is_never_a_call(length: int) -> None:
    cut = ARGUMENTS[:length]
    chat = chat_of([call(cut, id="1", name="delete")], "length")

    message = chat.invoke("?")
    assert message.tool_calls == []
    (invalid,) = message.invalid_tool_calls
    assert (invalid["name"], invalid["args"], invalid["id"]) == ("delete", cut, "1")
    assert invalid["error"] == "the call is incomplete (finish reason 'length')"

    for version in (None, "v1"):
        full = merged(chat.model_copy(update={"output_version": version}))
        assert full.tool_calls == []
        (invalid,) = full.invalid_tool_calls
        assert (invalid["name"], invalid["id"]) == ("delete", "1")
        assert str(invalid["args"]).startswith(cut)
        assert str(invalid["args"]).endswith("<the call is incomplete (finish reason 'length')>")

    output = chat.stream_events("?", version="v3").output
    assert output.tool_calls == []
    assert len(output.invalid_tool_calls) == 1


def test_arguments_that_are_not_an_object_make_an_invalid_call() -> None:
    chat = chat_of([call("[1, 2]", id="1", name="delete")])
    for message in (chat.invoke("?"), merged(chat)):
        assert message.tool_calls == []
        assert len(message.invalid_tool_calls) == 1


def test_arguments_nested_too_deep_make_an_invalid_call() -> None:
    chat = chat_of([call('{"path": ' + "[" * 100_000, id="1", name="delete")], "length")
    for message in (chat.invoke("?"), merged(chat)):
        assert message.tool_calls == []
        assert len(message.invalid_tool_calls) == 1


def test_structured_output_by_a_call_that_was_complete_when_the_limit_came() -> None:
    schema = {
        "title": "named",
        "description": "Somebody.",
        "type": "object",
        "properties": {"name": {"type": "string"}},
    }
    for arguments, complete in (('{"name": "Ann"}', True), ('{"name": "An', False)):
        chat = chat_of([call(arguments, id="1", name="named")], "length")
        structured = chat.with_structured_output(schema, method="function_calling")
        if complete:
            assert structured.invoke("?") == {"name": "Ann"}
        else:
            with pytest.raises(OutputParserException, match="cut off"):
                structured.invoke("?")


async def test_events_of_the_newest_protocol() -> None:
    chat = chat_of([*REASONED, *TWO_CALLS])
    text = [{"type": "text", "text": text} for text in ("42so", ".")]
    expected = [{"type": "reasoning", "reasoning": "6 times 7"}, text[0], CALLED[0], CALLED[1], text[1], CALLED[2]]
    assert content(chat.stream_events("?", version="v3").output) == expected
    assert content(await (await chat.astream_events("?", version="v3")).output) == expected


# ---------------------------------------------------------------- callbacks


async def test_callbacks_hear_each_token_and_the_end() -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Listener(BaseCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.heard.append(token)

        def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
            self.heard.append(response.generations[0][0].text)

    chat = chat_of([Token("a"), Token("b")])
    sync, asynchronous, whole = Listener(), Listener(), Listener()
    list(chat.stream("?", {"callbacks": [sync]}))
    async for _ in chat.astream("?", {"callbacks": [asynchronous]}):
        pass
    chat.invoke("?", {"callbacks": [whole]})
    assert sync.heard == asynchronous.heard == ["a", "b", "", "ab"]
    assert whole.heard == ["ab"]


async def test_async_is_as_sync() -> None:
    chat = chat_of([*REASONED, *TWO_CALLS])
    message = await chat.ainvoke("?")
    chunks = [chunk async for chunk in chat.astream("?")]
    assert content(message) == content(chat.invoke("?"))
    assert content(chunks[0] + chunks[1:]) == content(merged(chat))
