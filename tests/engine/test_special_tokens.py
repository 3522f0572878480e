# SPDX-License-Identifier: Apache-2.0
"""Which texts need a mark, so that the names of special tokens in them are text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge import Attachment, Message, Tool, ToolCall
from inference_bridge.engine.special_tokens import USUAL_MARK, Names, Shield

NAMES = ("<|im_end|>", "<|im_start|>", "</s>", "[INST]", "s")
TEXTS = st.text(st.sampled_from("<|>im_endstar/[INST] "), max_size=24) | st.sampled_from(NAMES)


@given(TEXTS)
def test_a_text_is_touched_where_shielding_changes_it(text: str) -> None:
    names = Names(NAMES)
    assert names.touch(text) == (names.shielded(text, "\ufdd0") != text)


NAMED = "a </s> b"
CALL = ToolCall("1", "add", {})


@pytest.mark.parametrize(
    "value",
    [
        Message(NAMED),
        Message("user", NAMED),
        Message("user", ["a", NAMED]),
        Message("user", "a", name=NAMED),
        Message("tool", "a", tool_call_id=NAMED),
        Message("assistant", "a", reasoning=NAMED),
        Message("assistant", tool_calls=[ToolCall("1", NAMED, {})]),
        Message("assistant", tool_calls=[ToolCall(NAMED, "add", {})]),
        Message("assistant", tool_calls=[ToolCall("1", "add", {NAMED: 1})]),
        Message("assistant", tool_calls=[ToolCall("1", "add", {"x": [{"y": NAMED}]})]),
        Message("user", "a <"),
        Tool(NAMED),
        Tool("add", NAMED),
        Tool("add", parameters={"description": NAMED}),
        Tool("add", parameters={"properties": {NAMED: {}}}),
        {"option": [NAMED]},
    ],
)
def test_a_name_is_found_in_each_part(value: Any) -> None:
    assert Shield(NAMES[:3]).mark_for([value], []) == USUAL_MARK


def test_no_mark_is_needed_without_names() -> None:
    image = Attachment("image/png", data=b"</s>")
    messages = [Message("user", ["a", image]), Message("assistant", "b", tool_calls=[CALL], reasoning="c")]
    assert Shield(NAMES[:3]).mark_for(messages, [Tool("add", "adds")], {"option": "x"}) == ""


def test_the_work_for_many_messages_can_be_given_up() -> None:
    class GivenUpError(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise GivenUpError

    with pytest.raises(GivenUpError):
        Shield(NAMES[:3]).mark_for([Message("user", f"text {number}") for number in range(10_000)], check=check)
