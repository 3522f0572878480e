# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference_bridge.chat.assembler import Matcher, TextAssembler
from inference_bridge.types import Token, TopLogprob

steady = settings(derandomize=True, max_examples=400, deadline=None)

# Few characters, so that stop strings occur, overlap and break off; several bytes long, some of them.
texts = st.text("ab\né😀", max_size=30)
stops = st.lists(st.text("ab\né😀", min_size=1, max_size=5), max_size=6)
cuts = st.lists(st.integers(1, 7), min_size=1, max_size=40)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    out: list[bytes] = []
    while data:
        size = sizes[len(out) % len(sizes)]
        out.append(data[:size])
        data = data[size:]
    return out


def assemble(assembler: TextAssembler, parts: list[bytes]) -> list[Token]:
    tokens = [token for number, piece in enumerate(parts) for token in assembler.push(piece, number)]
    return tokens + assembler.finish()


def expected(text: str, stops: list[str]) -> str:
    """The text before the stop string that ends first; of several that end at the same place, the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text
    end, length = min(ends)
    return text[: end + length]


@steady
@given(texts.map(str.encode) | st.binary(max_size=40), cuts, stops)
@example(b"\xf0\x9f", [1], [])
@example(b"\xed\xa0\x80\xc3", [1], [])
@example(b"abab", [1], ["abc", "ba"])
def test_the_text_up_to_the_stop_string_does_not_depend_on_the_split(
    data: bytes, sizes: list[int], stops: list[str]
) -> None:
    parts = pieces(data, sizes)
    assembler = TextAssembler(stops)
    tokens = assemble(assembler, parts)
    text = data.decode("utf-8", "replace")
    assert "".join(token.text for token in tokens) == expected(text, stops)
    assert assembler.stopped == any(stop in text for stop in stops)
    assert [token.id for token in tokens] == list(range(len(tokens)))
    if not assembler.stopped:
        assert len(tokens) == len(parts)


@steady
@given(texts, cuts, stops)
def test_only_a_possible_beginning_of_a_stop_string_is_held_back(text: str, sizes: list[int], stops: list[str]) -> None:
    assembler = TextAssembler(stops)
    seen = b""
    yielded: list[Token] = []
    for number, piece in enumerate(pieces(text.encode(), sizes)):
        seen += piece
        yielded += assembler.push(piece, number)
        if assembler.stopped:
            break
        so_far = seen.decode("utf-8", "ignore")
        prefixes = {stop[:length] for stop in stops for length in range(1, len(stop))}
        held = max((len(prefix) for prefix in prefixes if so_far.endswith(prefix)), default=0)
        out = "".join(token.text for token in yielded)
        assert so_far.startswith(out)
        assert len(out) <= len(so_far) - held
        # A token is not divided: the whole token in which the prefix begins is held back.
        assert len(so_far) - held - len(out) < 7


@pytest.mark.parametrize(
    ("parts", "texts"),
    [
        ([b"Hello", b" wor", b"ld"], ["Hello", " wor", "ld"]),
        ([b"\xf0", b"\x9f", b"\x98\x80!"], ["", "", "😀!"]),
        ([b"a\xc3", b"\xa9"], ["a", "é"]),
        ([b"a", b"\xe4\xbd"], ["a", "\ufffd"]),
        ([b"\xff", b"b"], ["\ufffd", "b"]),
        ([b"", b"b", b""], ["", "b", ""]),
        ([b"\xe4", b"x"], ["", "\ufffdx"]),
    ],
)
def test_each_input_token_gives_one_output_token(parts: list[bytes], texts: list[str]) -> None:
    assert [token.text for token in assemble(TextAssembler(), parts)] == texts


def test_plain_tokens_are_not_held() -> None:
    assembler = TextAssembler(["User:"])
    assert assembler.push(b"Hello", 1) == [Token("Hello", 1)]
    assert assembler.push(b" U", 2) == []
    assert assembler.push(b"niverse", 3) == [Token(" U", 2), Token("niverse", 3)]


def test_text_before_a_stop_string_in_the_same_token_is_kept() -> None:
    assembler = TextAssembler(["###"])
    assert assembler.push(b"done #", 1) == []
    assert assembler.push(b"#", 2) == []
    assert assembler.push(b"# more", 3) == [Token("done ", 1), Token("", 2), Token("", 3)]
    assert assembler.stopped
    assert assembler.push(b"and more", 4) == []
    assert assembler.finish() == []


def test_a_stop_string_in_the_first_token() -> None:
    assembler = TextAssembler(["Hi"])
    assert assembler.push(b"Hi there", 1) == [Token("", 1)]
    assert assembler.stopped


def test_the_stop_string_that_ends_first_applies_with_any_split() -> None:
    for parts in ([b"xabcdef"], [b"xa", b"bcdef"], [b"x", b"a", b"b", b"c", b"d", b"e", b"f"]):
        tokens = assemble(TextAssembler(["abcdef", "cd", "bcd"]), parts)
        assert "".join(token.text for token in tokens) == "xa"


def test_a_stop_string_may_contain_a_replacement_character() -> None:
    assembler = TextAssembler(["\ufffd"])
    assert assembler.push(b"a\xe4", 1) == []
    assert assembler.finish() == [Token("a", 1)]
    assert assembler.stopped


def test_ids_and_logprobs_stay_with_their_tokens() -> None:
    top = (TopLogprob("a", 7, -0.1),)
    assembler = TextAssembler(["ab"])
    assert assembler.push(b"a", 7, -0.1, top) == []
    assert assembler.push(b"c", 8, -0.2) == [Token("a", 7, -0.1, top), Token("c", 8, -0.2)]


def test_a_long_stop_string_costs_each_character_once() -> None:
    """Trying every prefix of the stop string would take 2,000 calls for each token."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1

    assembler = TextAssembler(["a" * 2000 + "b"])
    sys.setprofile(count)
    try:
        tokens = [token for number in range(3000) for token in assembler.push(b"aa", number)]
    finally:
        sys.setprofile(None)
    assert len(tokens) == 2000
    assert calls < 3000 * 200


@steady
@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5), st.text("abc", max_size=20))
def test_matcher_finds_the_first_end_and_the_longest_there(strings: list[str], text: str) -> None:
    node, end, found = Matcher(strings).scan(0, text)
    ends = [(text.find(string) + len(string), -len(string)) for string in strings if string in text]
    if ends:
        assert (end, -len(found)) == min(ends)
    else:
        assert (end, found) == (len(text), "")
        suffixes = [text[at:] for at in range(len(text)) if any(s.startswith(text[at:]) for s in strings)]
        assert Matcher(strings).depth[node] == max(map(len, suffixes), default=0)
