# SPDX-License-Identifier: Apache-2.0
"""System messages in unusual places reach the model, whatever its template does with them."""

from __future__ import annotations

import pytest

from inference_bridge.chat.system_messages import are_usual, usual
from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.types import Message, Tool

ANY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
FIRST = (
    "{% if messages[0].role == 'system' %}[system]{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
LAST = (
    "{% set ns = namespace(system='') %}{% for m in messages if m.role == 'system' %}{% set ns.system = m.content %}"
    "{% endfor %}[system]{{ ns.system }}{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
    "{% endfor %}[assistant]"
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
DEVELOPER = (
    "{# developer #}{% for m in messages if m.role in ('system', 'user', 'assistant') %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
NO_SYSTEM = FIRST.replace("[system]{{ messages[0].content }}", "")
TEMPLATES = {
    "any": ANY, "first": FIRST, "last": LAST, "strict": STRICT, "developer": DEVELOPER, "none": NO_SYSTEM,
}  # fmt: skip


def S(text: str) -> Message:
    return Message("system", text)


def D(text: str) -> Message:
    return Message("developer", text)


def U(text: str) -> Message:
    return Message("user", text)


def A(text: str) -> Message:
    return Message("assistant", text)


CONVERSATIONS = {
    "two": [S("S1"), S("S2"), U("U1")],
    "in the middle": [S("S1"), U("U1"), A("A1"), S("S2"), U("U2")],
    "in the middle alone": [U("U1"), A("A1"), S("S2"), U("U2")],
    "at the end": [U("U1"), S("S1")],
    "after an answer": [U("U1"), A("A1"), S("S1")],
    "alone": [S("S1")],
    "developer": [D("D1"), U("U1")],
    "system and developer": [S("S1"), D("D1"), U("U1")],
}


@pytest.mark.parametrize("tools", [(), (Tool("clock", "The time"),)], ids=["", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("source", TEMPLATES)
def test_every_text_is_in_the_prompt_once(source: str, conversation: str, tools: tuple[Tool, ...]) -> None:
    template = ChatTemplate(TEMPLATES[source])
    try:
        prompt = template.render(CONVERSATIONS[conversation], tools=tools).text
    finally:
        template.close()
    assert [prompt.count(message.text) for message in CONVERSATIONS[conversation]] == [1] * len(
        CONVERSATIONS[conversation]
    )
    assert not tools or "clock" in prompt


def test_a_template_that_shows_them_gets_them_unchanged() -> None:
    template = ChatTemplate(ANY)
    messages = CONVERSATIONS["in the middle"]
    try:
        assert template.render(messages).text == "[system]S1[user]U1[assistant]A1[system]S2[user]U2[assistant]"
    finally:
        template.close()


def test_the_usual_places() -> None:
    assert usual(CONVERSATIONS["two"]) == [S("S1\n\nS2"), U("U1")]
    assert usual(CONVERSATIONS["in the middle"]) == [S("S1"), U("U1"), A("A1"), U("S2\n\nU2")]
    assert usual(CONVERSATIONS["at the end"]) == [U("U1\n\nS1")]
    assert usual([U("U1"), S("S1"), A("A1")]) == [U("U1\n\nS1"), A("A1")]
    assert usual(CONVERSATIONS["after an answer"]) == [U("U1"), A("A1"), U("S1")]
    assert usual([S("S1"), S("")]) == [U("S1")]
    for messages in CONVERSATIONS.values():
        assert not are_usual(messages)
        assert are_usual(usual(messages))
