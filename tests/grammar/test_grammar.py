# SPDX-License-Identifier: Apache-2.0
"""The mask on the logits, and the grammars of answers: JSON, calls, and reasoning before them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from llguidance import LLTokenizer, TokenizerWrapper

from inference_bridge import GenerationError, ModelClosedError, Tool, UnsupportedError
from inference_bridge.chat.call_notation import notation
from inference_bridge.chat.formats import OPENERS
from inference_bridge.chat.markup import THINKING, ChatFormat, Thinking, chat_output
from inference_bridge.grammar.grammar import MAX_CALLS, Grammar, Vocabulary, answer_grammar, check_answer
from inference_bridge.types import Token, ToolCall, join_tool_calls
from tests.parts.models.byte_model import END, PADDING, ByteTokens, allowed, feed, vocabulary, walk

TOKENS = ByteTokens()
VOCABULARY = vocabulary(TOKENS)
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
THINK = Thinking("<think>", "</think>")

TOOLS = (
    Tool(
        "get_weather",
        parameters={
            "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    ),
    Tool(
        "add",
        parameters={
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"$ref": "#/properties/a"}},
            "required": ["a", "b"],
        },
    ),
    Tool("now"),
)


def grammar(schema: Any = None, *, vocabulary: Vocabulary = VOCABULARY, **options: Any) -> Grammar:
    made = answer_grammar(vocabulary, schema, backend="engine", **options)
    assert made is not None
    return made


# ---------------------------------------------------------------- the mask


def test_the_mask_is_in_place_and_leaves_what_is_allowed() -> None:
    logits = np.linspace(-3, 3, len(TOKENS.texts) + PADDING, dtype=np.float32)
    before = logits.copy()
    grammar({"type": "boolean"}).mask(logits)
    finite = np.flatnonzero(np.isfinite(logits))
    assert [chr(token) for token in finite] == ["f", "t"]
    assert (logits[finite] == before[finite]).all()
    assert np.isneginf(logits[END:]).all(), "the end, and tokens that are none"


def test_a_mask_smaller_than_the_vocabulary() -> None:
    logits = np.zeros(100, np.float32)
    made = grammar({"enum": ["a"]})
    made.mask(logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [ord('"')]


def test_the_text_ends_where_the_grammar_does() -> None:
    made = grammar(PERSON)
    for byte in b'{"age":1':
        assert not made.finished
        assert END not in allowed(made)
        made.accept(byte)
    assert allowed(made) == {*b"0123456789}"}
    made.accept(ord("}"))
    assert made.finished
    assert allowed(made) == {END}
    made.accept(END)
    assert made.finished


def test_where_the_text_may_end_it_goes_on_only_with_what_the_model_would_say() -> None:
    made = feed(grammar({"type": "integer"}), "42")
    assert not made.finished
    assert allowed(made, likeliest=ord("7")) == {*b"0123456789", END}
    assert allowed(made, likeliest=END) == {*b"0123456789", END}
    assert allowed(made, likeliest=ord(".")) == {END}
    assert allowed(made, likeliest=len(TOKENS.texts) + 5) == {END}, "padding"
    feed(made, [END])
    assert made.finished


def test_a_token_that_is_not_allowed() -> None:
    made = grammar(PERSON)
    with pytest.raises(GenerationError, match="the grammar does not allow token 91 here"):
        made.accept(ord("["))
    assert not made.finished
    with pytest.raises(GenerationError, match="can't be followed any further"):
        made.mask(np.zeros(len(TOKENS.texts), np.float32))


def test_a_grammar_without_a_next_token_is_an_error() -> None:
    # The character can't be written, which is noticed only when it is needed.
    made = feed(grammar({"type": "object", "properties": {"a": {"pattern": "^\\x01$", "type": "string"}}}), '{"a":')
    logits = np.zeros(len(TOKENS.texts), np.float32)
    with pytest.raises(GenerationError, match="the grammar can't be followed any further"):
        made.mask(logits)
    assert not logits.any(), "and nothing else may be chosen"
    assert not made.finished


# ---------------------------------------------------------------- vocabularies


def test_llguidance_is_imported_at_its_first_use() -> None:
    code = (
        "import sys; import inference_bridge.grammar.grammar as g; g.Vocabulary(lambda: None);"
        "print([n for n in ('llguidance', 'numpy', 'llama_cpp', 'mlx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_tokenizer_is_built_once_for_all_threads() -> None:
    built = []
    start = threading.Barrier(8)

    def make() -> LLTokenizer:
        built.append(threading.get_ident())
        return LLTokenizer(TokenizerWrapper(TOKENS))

    shared = Vocabulary(make)
    assert not shared.ready
    said: list[str] = []

    def one(seed: int) -> None:
        start.wait()
        for _ in range(5):
            text = walk(grammar(PERSON, vocabulary=shared), random.Random(seed), TOKENS)
            said.append(TOKENS.read(text or []))

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(built), shared.ready) == (1, True)
    assert len(said) == 40
    assert all(isinstance(json.loads(text)["age"], int) for text in said)


def test_a_closed_vocabulary() -> None:
    closed = vocabulary()
    closed.close()
    with pytest.raises(ModelClosedError):
        grammar(PERSON, vocabulary=closed)
    with pytest.raises(ModelClosedError):
        closed.prepare()
    assert not closed.ready


def test_markup_names_special_tokens() -> None:
    tokens = ByteTokens(["<|a|>", "<|a|>b"])
    some = vocabulary(tokens)
    assert some.markup('x<|a|>"y\n') == r'"x" <[257]> "\"y\n"'
    assert some.markup("<|a|>b<|a|>") == "<[258]> <[257]>", "the longest"
    assert some.markup("") == ""
    assert "<|a|>" in some
    assert "<|b|>" not in some


def test_a_grammar_that_does_not_compile() -> None:
    with pytest.raises(GenerationError, match="the grammar does not compile"):
        VOCABULARY.grammar(lambda _: "start: nothing_of_that_name")


# ---------------------------------------------------------------- JSON


def test_a_request_without_a_schema_has_no_grammar() -> None:
    assert answer_grammar(VOCABULARY, backend="engine") is None
    assert answer_grammar(VOCABULARY, tools=TOOLS, choice="auto", backend="engine") is None
    assert answer_grammar(VOCABULARY, tools=TOOLS, choice="none", backend="engine") is None


def test_json_is_all_there_is() -> None:
    assert allowed(grammar(PERSON)) == {ord("{")}
    assert allowed(grammar(PERSON, format=ChatFormat())) == {ord("{")}


def test_tokens_of_several_bytes_border_anywhere() -> None:
    tokens = ByteTokens(more=['{"', '{"age":', '":1', "1}", "}}", "12", "é}"])
    made = grammar(PERSON, vocabulary=vocabulary(tokens))
    feed(made, [tokens.id('{"'), *b"age", tokens.id('":1')])
    assert {tokens.texts[token] for token in allowed(made, tokens=tokens)} >= {b"12", b"1}", b"}"}
    assert not {tokens.id("}}"), tokens.id("é}")} & allowed(made, tokens=tokens)
    assert feed(made, [tokens.id("1}")]).finished


# ---------------------------------------------------------------- reasoning


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_the_grammar_binds_behind_the_reasoning(special: bool, begun: bool) -> None:
    tokens = ByteTokens(["<think>", "</think>"] if special else [])
    opens, closes = ([tokens.id("<think>")], [tokens.id("</think>")]) if special else (b"<think>", b"</think>")
    made = grammar(PERSON, vocabulary=vocabulary(tokens), format=ChatFormat(THINK), in_reasoning=begun)
    if not begun:
        assert allowed(made, tokens=tokens) == {ord("{"), opens[0]}
        feed(made, opens)
    inside = allowed(made, tokens=tokens)
    assert inside >= {*range(0x80)}
    assert END not in inside
    feed(made, 'Let me see: {"no": [ </thin')
    assert END not in allowed(made, tokens=tokens)
    feed(made, closes)
    assert allowed(made, tokens=tokens) == {*b" \t\r\n{"}
    feed(made, '\n\n{"age":1}')
    assert made.finished


def test_a_spelled_mark_does_not_end_reasoning_that_a_token_ends() -> None:
    tokens = ByteTokens(["<think>", "</think>"])
    made = grammar(PERSON, vocabulary=vocabulary(tokens), format=ChatFormat(THINK), in_reasoning=True)
    feed(made, "</think")
    assert ord(">") not in allowed(made, tokens=tokens)


def test_reasoning_that_may_not_begin() -> None:
    made = grammar(PERSON, format=ChatFormat(THINK), may_reason=False)
    assert allowed(made) == {ord("{")}


def test_reasoning_and_answer_in_one_token() -> None:
    tokens = ByteTokens(more=["</think>{", '.</think>\n{"', "</think>x", "k>["])
    made = grammar(PERSON, vocabulary=vocabulary(tokens), format=ChatFormat(THINK), in_reasoning=True)
    inside = allowed(made, tokens=tokens)
    assert inside >= {tokens.id("</think>{"), tokens.id('.</think>\n{"'), tokens.id("k>[")}
    assert tokens.id("</think>x") not in inside
    feed(made, "</thin")
    assert tokens.id("k>[") not in allowed(made, tokens=tokens)
    made = grammar(PERSON, vocabulary=vocabulary(tokens), format=ChatFormat(THINK), in_reasoning=True)
    assert feed(made, [tokens.id('.</think>\n{"'), *b'age":1}']).finished


@pytest.mark.parametrize("tags", THINKING, ids=lambda tags: tags.opens)
@pytest.mark.parametrize("special", [True, False])
def test_what_is_said_in_each_familys_tags(tags: Thinking, special: bool) -> None:
    tokens = ByteTokens([tags.opens, tags.closes] if special else [])
    format = ChatFormat(tags)
    made = grammar(PERSON, vocabulary=vocabulary(tokens), format=format)
    opens, closes = (
        ([tokens.id(tags.opens)], [tokens.id(tags.closes)]) if special else (tags.opens.encode(), tags.closes.encode())
    )
    said = [*opens, *b"\nWell.\n", *closes, *b'\n{"age":1}']
    assert feed(made, said).finished
    read = _read(tokens, said, format)
    assert _text(read, "text") == '{"age":1}'
    assert _text(read, "reasoning") == "Well."


HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")


@pytest.mark.parametrize("special", [HARMONY, ()], ids=["special", "spelled"])
def test_harmony(special: Sequence[str]) -> None:
    tokens, format = ByteTokens(special), ChatFormat(harmony=True)
    some = vocabulary(tokens)
    thought = "<|channel|>analysis<|message|>Well.<|end|><|start|>assistant"
    for before in ("", thought, thought * 2):
        for final in ("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"):
            said = _tokens(tokens, before + final + '{"age":1}')
            assert feed(grammar(PERSON, vocabulary=some, format=format), said).finished
            read = _read(tokens, said, format)
            assert _text(read, "text") == '{"age":1}'
            assert _text(read, "reasoning") == "Well." * (len(before) // len(thought))
    made = feed(grammar(PERSON, vocabulary=some, format=format), _tokens(tokens, thought[: -len("assistant")]))
    assert allowed(made, tokens=tokens) == {ord("a")}
    with pytest.raises(GenerationError):
        feed(grammar(PERSON, vocabulary=some, format=format), _tokens(tokens, "<|channel|>commentary<|message|>"))


def _tokens(tokens: ByteTokens, text: str) -> list[int]:
    """The text's tokens, special ones where they are."""
    found: list[int] = []
    while text:
        name = next((name for name in HARMONY if text.startswith(name) and name.encode() in tokens.texts), text[0])
        found += [tokens.id(name)] if len(name) > 1 else name.encode()
        text = text[len(name) :]
    return found


def _read(tokens: ByteTokens, said: Sequence[int], format: ChatFormat, **options: Any) -> list[Token]:
    output = chat_output(format, **options)
    read = [out for token in said for out in output.push(tokens.texts[token], token)]
    return [*read, *output.finish()]


def _text(read: Sequence[Token], kind: str) -> str:
    return "".join(token.text for token in read if token.kind == kind)


def _calls(read: Sequence[Token]) -> tuple[ToolCall, ...]:
    return join_tool_calls(token.tool_call for token in read if token.tool_call is not None)


# ---------------------------------------------------------------- tool calls

FORMATS = {
    **{opener: (ChatFormat(openers=(opener,)), ()) for opener in OPENERS},
    "Llama": (ChatFormat(openers=("<|python_tag|>",), bare=True), ()),
    "generic": (ChatFormat(openers=("<tool_call>", "```json"), bare=True), ()),
    "Mistral": (ChatFormat(openers=("[TOOL_CALLS]",), short_ids=True), ("[TOOL_CALLS]", "[ARGS]")),
    "Hermes, special": (ChatFormat(openers=("<tool_call>",)), ("<tool_call>", "</tool_call>")),
    "Phi": (ChatFormat(openers=("<|tool_call|>",)), ("<|tool_call|>", "<|/tool_call|>")),
    "reasoning": (ChatFormat(THINK, ("<tool_call>",)), ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    "Harmony": (ChatFormat(harmony=True), HARMONY),
    "Harmony, spelled": (ChatFormat(harmony=True), ()),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("choice", ["required", "add"])
def test_forced_calls_are_read_back(name: str, choice: str) -> None:
    format, special = FORMATS[name]
    tokens = ByteTokens(special)
    some = vocabulary(tokens)
    rng = random.Random(0)
    goers_on = [*b"\n<;{", *(tokens.id(mark) for mark in special if mark in format.openers)]
    weights = dict.fromkeys(b"\n<;{", 20.0) | dict.fromkeys(range(END + 1, len(tokens.texts)), 300.0)
    if name == "Harmony, spelled":  # or the reasoning would not come to its end in time
        weights |= dict.fromkeys([*range(0x80, 0x100), *b"an"], 1e-9)
    forced = notation(format, [tool.name for tool in TOOLS]) is None
    heard = several = 0
    goes_on = choice == "required" and "Harmony" not in name
    for _ in range(200):
        if heard >= 10 and (several or not goes_on):
            break
        made = grammar(vocabulary=some, tools=TOOLS, choice=choice, format=format)
        said = walk(made, rng, tokens, limit=1500, weights=weights, likeliest=goers_on)
        if said is None:
            continue
        read = _read(tokens, said, format, tools=TOOLS, forced_call=forced)
        calls = _calls(read)
        heard += 1
        several += len(calls) > 1
        assert _text(read, "text") == ""
        assert 1 <= len(calls) <= (MAX_CALLS if choice == "required" else 1)
        for call in calls:
            assert call.name in ({tool.name for tool in TOOLS} if choice == "required" else {"add"})
            if call.name == "add":
                assert set(call.arguments) == {"a", "b"}
                assert all(0 <= value <= 99 for value in call.arguments.values())
    assert (heard >= 10, bool(several)) == (True, goes_on)


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "generic": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
        "Llama": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
        "Phi": '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": 2}}]<|/tool_call|>',
        "Mistral": '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}',
        "[TOOL_CALLS]": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]',
        "<function=": '<function=add>{"a": 1, "b": 2}</function>',
        "<|tool_call_start|>": '{"name": "add", "arguments": {"a": 1, "b": 2}}',
        "Harmony": '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "b": 2}',
    }.items(),
)
def test_calls_as_the_family_writes_them(name: str, text: str) -> None:
    format, special = FORMATS[name]
    tokens = ByteTokens(special)
    made = grammar(vocabulary=vocabulary(tokens), tools=TOOLS, choice="add", format=format)
    rest = text
    while rest:
        name = next((name for name in special if rest.startswith(name)), rest[0])
        made.accept(tokens.id(name) if len(name) > 1 else ord(name))
        rest = rest[len(name) :]
    assert made.finished


def test_another_call_only_if_the_model_goes_on() -> None:
    format = ChatFormat(openers=("<tool_call>",))
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    made = feed(grammar(tools=TOOLS, choice="required", format=format), call + "\n")
    assert not made.finished
    assert allowed(made, likeliest=ord("T")) == {END}
    assert allowed(made, likeliest=ord("<")) == {ord("<"), END}
    feed(made, "\n".join([call] * (MAX_CALLS - 1)))
    assert allowed(made, likeliest=ord("\n")) == {ord("\n"), END}
    assert feed(made, "\n").finished
    assert feed(grammar(tools=TOOLS, choice="now", format=format), call).finished


def test_names_that_stand_in_json() -> None:
    tool = Tool('say "é"')
    format = ChatFormat(openers=("<function=", "<tool_call>"))
    assert notation(format, ["plain"]) != notation(format, [tool.name])
    said = walk(grammar(tools=[tool], choice="required", format=format), random.Random(0), TOKENS)
    assert said is not None
    assert [call.name for call in _calls(_read(TOKENS, said, format, tools=[tool]))] == [tool.name]


@pytest.mark.parametrize("format", [ChatFormat(openers=("<tool_call>",)), ChatFormat(openers=("<|tool_call_start|>",))])
def test_the_answer_is_json_or_a_call_with_a_schema(format: ChatFormat) -> None:
    rng = random.Random(0)
    kinds = set()
    forced = notation(format, [tool.name for tool in TOOLS]) is None
    for choice in ("auto", None):
        for _ in range(10):
            made = grammar(PERSON, tools=TOOLS, choice=choice, format=format)
            said = walk(made, rng, TOKENS, weights={ord("n"): 3})
            assert said is not None
            read = _read(TOKENS, said, format, tools=TOOLS, forced_call=forced)
            calls, text = _calls(read), _text(read, "text")
            assert bool(calls) != bool(text)
            assert calls or isinstance(json.loads(text)["age"], int)
            kinds.add(bool(calls))
    assert kinds == {True, False}
    assert allowed(grammar(PERSON, tools=TOOLS, choice="none", format=ChatFormat(openers=("<tool_call>",)))) == {
        ord("{")
    }


# ---------------------------------------------------------------- checks at the call


def test_parameters_of_tools_are_checked_like_a_schema() -> None:
    odd = Tool("odd", parameters={"type": "object", "properties": {"a": {"not": {}}}})
    message = "the JSON Schema keyword 'not': at #/properties/a of parameters of tool 'odd'"
    for choice in ("required", "odd"):
        with pytest.raises(UnsupportedError, match=message):
            check_answer(None, [odd], choice, backend="engine")
        with pytest.raises(UnsupportedError, match=message):
            grammar(tools=[odd], choice=choice)
    with pytest.raises(UnsupportedError, match=message):
        check_answer(PERSON, [odd], "auto", backend="engine")
    check_answer(None, [odd], "auto", backend="engine")  # they are read as they come
    check_answer(PERSON, [odd], "none", backend="engine")
    check_answer(None, [odd, *TOOLS], "add", backend="engine")


def test_parameters_are_an_object() -> None:
    with pytest.raises(ValueError, match="the parameters of tool 'odd' must be of type object, not 'string'"):
        check_answer(None, [Tool("odd", parameters={"type": "string"})], "required", backend="engine")
    check_answer(None, [Tool("free", parameters={})], "required", backend="engine")


def test_a_schema_is_checked() -> None:
    with pytest.raises(UnsupportedError, match="'not': at # of json_schema"):
        check_answer({"not": {}}, backend="engine")
    check_answer(PERSON, backend="engine")
