# SPDX-License-Identifier: Apache-2.0
"""All that an earlier turn holds is in the prompt, whatever the family: texts, calls, results, attachments' places."""

from __future__ import annotations

import re

import pytest

from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.errors import UnsupportedError
from inference_bridge.types import Attachment, Message, ToolCall
from tests.chat.templates.test_past_turns import CALL, GPT_OSS, HERMES, NEXT, PREAMBLE, THOUGHT, TOOLS, WEATHER
from tests.parts.chat_forms import FORMS, SAVE
from tests.parts.family_table import source

pytest.importorskip("jinja2")

IMAGE = Attachment("image/png", data=b"png")
MARK = "<__image__>"
# The texts of both turns, with a mark for each attachment.
ASKED = Message("user", ["ASKED ", IMAGE, " THIS"])
CALLED = Message(
    "assistant",
    ["BESIDE ", IMAGE, " MORE"],
    [ToolCall("call00001", "save", {"path": "ONE.txt"}), ToolCall("call00002", "save", {"path": "TWO.txt"})],
    reasoning="THOUGHT",
)
RESULTS = [
    Message("tool", "FIRST", tool_call_id="call00001", name="save"),
    Message("tool", ["SECOND ", IMAGE], tool_call_id="call00002", name="save"),
]
LATER = [Message("assistant", ["ANSWER ", IMAGE], reasoning="SECRET"), Message("user", "NEXT")]
OPEN = [ASKED, CALLED, *RESULTS]
CONVERSATIONS = {"open": OPEN, "two turns": [*OPEN, *LATER, *OPEN]}
EACH = ["ASKED", "BESIDE", "MORE", "ONE.txt", "TWO.txt", "FIRST", "SECOND"]

# What templates do with the text beside a call.
SHOWN = "{{ m.content }}"
CONTENT = {
    "beside the call": SHOWN,
    "not beside the call": "{% if not m.tool_calls %}{{ m.content }}{% endif %}",
    "no second message": "{% if loop.previtem is defined and loop.previtem.role == m.role == 'assistant' %}"
    "{{ raise_exception('again') }}{% endif %}{% if not m.tool_calls %}{{ m.content }}{% endif %}",
    "no system role": "{% if m.role == 'system' %}{{ raise_exception('system') }}{% endif %}{{ m.content }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("name", [name for name in FORMS if name != "gpt-oss"])  # its own tests are below
def test_nothing_of_earlier_turns_is_left_out(name: str, content: str) -> None:
    reasons = "{% if m.thinking %}{THOUGHT:{{ m.thinking }}}{% endif %}"
    written = source(FORMS[name]).replace(SHOWN, reasons + CONTENT[content])
    template = ChatTemplate(written)
    try:
        for label, messages in CONVERSATIONS.items():
            told = [Message("system", ["RULES ", IMAGE]), *messages] if content == "no system role" else messages
            prompt = template.render(told, tools=[SAVE], media_marker=MARK).text
            turns = sum(message is CALLED for message in messages)
            for word in EACH:
                assert prompt.count(word) == turns, f"{word} ({label})"
            assert prompt.count("{THOUGHT:THOUGHT}") == turns
            assert prompt.count(MARK) == sum(len(message.attachments) for message in told)
            assert len(re.findall(rf"ASKED {MARK} THIS", prompt)) == turns
            assert len(re.findall(rf"BESIDE {MARK} MORE", prompt)) == turns
            assert len(re.findall(rf"SECOND {MARK}", prompt)) == turns
            assert len(re.findall(rf"ANSWER {MARK}", prompt)) == (label != "open")
            assert prompt.find("ASKED") < prompt.find("ONE.txt") < prompt.find("TWO.txt") < prompt.find("SECOND")
            assert prompt.find("ONE.txt") < prompt.find("FIRST")
    finally:
        template.close()


# ---------------------------------------------------------------- Harmony


def _rendered(source: str, messages: list[Message], marker: str | None = MARK) -> str:
    template = ChatTemplate(source)
    try:
        return template.render(messages, tools=[WEATHER], media_marker=marker).text
    finally:
        template.close()


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("content", [["BESIDE", IMAGE], [IMAGE]])
def test_an_attachment_beside_a_call_of_harmony_is_commentary(content: list[str | Attachment], answered: bool) -> None:
    message = Message("assistant", content, tool_calls=[CALL], reasoning="THOUGHT")
    messages = [Message("user", "QUESTION"), message, Message("tool", "SUNNY", tool_call_id="a")]
    prompt = _rendered(GPT_OSS, messages + NEXT * answered)
    thought = "" if answered else THOUGHT
    preamble = PREAMBLE.replace("BESIDE", "".join(part if isinstance(part, str) else MARK for part in content))
    assert f"QUESTION<|end|>{thought}{preamble}<|start|>assistant to=functions.weather" in prompt


def test_an_attachment_that_the_template_of_harmony_would_have_to_place_is_refused() -> None:
    message = Message("assistant", [IMAGE], tool_calls=[CALL])
    messages = [Message("user", "QUESTION"), message, Message("tool", "SUNNY", tool_call_id="a")]
    with pytest.raises(UnsupportedError, match="put them into messages of the user"):
        _rendered(GPT_OSS, messages, None)


# ---------------------------------------------------------------- templates that place attachments or leave them out

PARTS = (
    "{% for b in ([] if m.content is string else m.content) %}"
    "{{ '<image>' if b.type == 'image' else b.text }}{% endfor %}{{ m.content if m.content is string }}"
)


@pytest.mark.parametrize("content", CONTENT)
def test_a_template_places_the_attachments_of_earlier_turns(content: str) -> None:
    own = CONTENT[content].replace(SHOWN, PARTS)
    written = f"{TOOLS}{{% for m in messages %}}[{{{{ m.role }}}}]{own}{HERMES}{{% endfor %}}"
    messages = [Message("system", ["RULES ", IMAGE]), *OPEN, *LATER] if content == "no system role" else [*OPEN, *LATER]
    prompt = _rendered(written, messages, None)
    assert prompt.count("<image>") == sum(len(message.attachments) for message in messages)
    assert "BESIDE <image> MORE" in prompt


def test_an_attachment_that_a_template_leaves_out_is_shown_in_another_form() -> None:
    written = (
        TOOLS + "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role == 'tool' %}{{ m.content.split('<')[0] }}{% else %}{{ m.content }}{% endif %}"
        + HERMES
        + "{% endfor %}"
    )
    prompt = _rendered(written, OPEN)
    assert "[user]<tool_response>\nFIRST" in prompt
    assert f"SECOND {MARK}\n</tool_response>" in prompt


def test_an_attachment_that_no_form_shows_is_refused() -> None:
    written = f"{TOOLS}{{% for m in messages %}}{{{{ m.content.split('<')[0] }}}}{HERMES}{{% endfor %}}"
    with pytest.raises(UnsupportedError, match="shows 0 of 3 attachments: put attachments into messages of the user"):
        _rendered(written, OPEN)
