# SPDX-License-Identifier: Apache-2.0
"""Earlier turns of a conversation: text and reasoning beside a tool call are shown as far as the template can."""

from __future__ import annotations

import pytest

from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.types import Message, Tool, ToolCall

pytest.importorskip("jinja2")

WEATHER = Tool("weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("a", "weather", {"city": "PARIS"})
RESULT = Message("tool", "SUNNY", tool_call_id="a")
NEXT = [Message("assistant", "ANSWER", reasoning="SECRET"), Message("user", "NEXT")]

TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
HERMES = (
    "{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>{% endfor %}"
)

# The rules of gpt-oss's template: no text and thought beside one call, and no thought where an answer follows.
GPT_OSS = (
    TOOLS + "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- for field in ('content', 'thinking') %}{%- for tag in ('analysis', 'final') %}"
    "{%- if '<|channel|>' ~ tag ~ '<|message|>' in (m[field] or '') %}{{ raise_exception('tags') }}{% endif %}"
    "{%- endfor %}{%- endfor %}"
    "{%- if 'tool_calls' in m %}"
    "{%- set later = namespace(found=false) %}{%- for n in messages[loop.index:] %}"
    "{%- if n.role == 'assistant' and 'tool_calls' not in n %}{%- set later.found = true %}{% endif %}{% endfor %}"
    "{%- if m.content and m.thinking %}{{ raise_exception('not both') }}"
    "{%- elif (m.content or m.thinking) and not later.found %}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' }}{% endif %}"
    "{%- set call = m.tool_calls[0].function %}"
    "{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{- call.arguments | tojson + '<|call|>' }}"
    "{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CALLED = '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "PARIS"}<|call|>'
PREAMBLE = "<|start|>assistant<|channel|>commentary<|message|>BESIDE<|end|>"
THOUGHT = "<|start|>assistant<|channel|>analysis<|message|>THOUGHT<|end|>"


def turn(text: str = "", reasoning: str | None = None) -> list[Message]:
    return [Message("user", "QUESTION"), Message("assistant", text, tool_calls=[CALL], reasoning=reasoning), RESULT]


def shown(source: str, messages: list[Message], *, tools: bool = True) -> str:
    template = ChatTemplate(source)
    try:
        return template.render(messages, tools=[WEATHER] if tools else []).text
    finally:
        template.close()


# ---------------------------------------------------------------- Harmony


@pytest.mark.parametrize(
    ("text", "reasoning", "before"),
    [("BESIDE", "THOUGHT", THOUGHT + PREAMBLE), ("BESIDE", None, PREAMBLE), ("", "THOUGHT", THOUGHT), ("", None, "")],
)
def test_text_beside_a_call_is_commentary_and_reasoning_is_analysis(
    text: str, reasoning: str | None, before: str
) -> None:
    assert f"QUESTION<|end|>{before}{CALLED}" in shown(GPT_OSS, turn(text, reasoning))


def test_text_beside_a_call_stays_when_an_answer_follows() -> None:
    prompt = shown(GPT_OSS, turn("BESIDE", "THOUGHT") + NEXT)
    assert f"QUESTION<|end|>{PREAMBLE}{CALLED}" in prompt
    assert "THOUGHT" not in prompt  # the template leaves out what was thought before an answer
    assert "SECRET" not in prompt


def test_text_of_several_turns_is_commentary_each_time() -> None:
    prompt = shown(GPT_OSS, turn("BESIDE") + NEXT + turn("BESIDE", "THOUGHT"), tools=False)
    assert prompt.count(PREAMBLE + CALLED) == 2
    assert prompt.count(THOUGHT) == 1


def test_reasoning_of_earlier_calls_in_a_turn_stays_beside_text_of_later_ones() -> None:
    prompt = shown(GPT_OSS, turn("", "THOUGHT") + turn("BESIDE", "SECOND")[1:])
    assert THOUGHT + CALLED in prompt
    assert f"<|message|>SECOND<|end|>{PREAMBLE}{CALLED}" in prompt


def test_a_template_that_writes_commentary_itself_is_left_alone() -> None:
    own = (
        TOOLS
        + "{% for m in messages %}{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "{% if m.tool_calls %}{% if m.content %}<|channel|>commentary<|message|>{{ m.content }}<|end|>{% endif %}"
        "{% for c in m.tool_calls %}<|channel|>commentary to=functions.{{ c.function.name }}<|message|>"
        "{{ c.function.arguments | tojson }}<|call|>{% endfor %}"
        "{% else %}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    assert "<|message|>THOUGHT<|end|><|channel|>commentary<|message|>BESIDE<|end|><|channel|>commentary to=" in shown(
        own, turn("BESIDE", "THOUGHT")
    )


# ---------------------------------------------------------------- reasoning


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning", "thought", "tool_plan"])
def test_reasoning_beside_a_call_reaches_templates_under_each_of_its_names(key: str) -> None:
    message = f"[{{{{ m.role }}}}]<{{{{ m.{key} }}}}>{{{{ m.content }}}}{HERMES}"
    source = f"{TOOLS}{{% for m in messages %}}{message}{{% endfor %}}"
    prompt = shown(source, turn("BESIDE", "THOUGHT"))
    assert '[assistant]<THOUGHT>BESIDE<tool_call>{"name": "weather"' in prompt
    assert "[user]<>QUESTION" in prompt


def test_reasoning_is_a_part_of_the_content_where_the_template_takes_it_so() -> None:
    """As Ministral's and Magistral's templates do."""
    blocks = (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
        "{% if b.type == 'text' %}{{ b.text }}{% elif b.type == 'thinking' %}[THINK]{{ b.thinking }}[/THINK]{% endif %}"
        "{% endfor %}{% endif %}"
    )
    source = f"{TOOLS}{{% for m in messages %}}[{{{{ m.role }}}}]{blocks}{HERMES}{{% endfor %}}"
    assert "[assistant][THINK]THOUGHT[/THINK]BESIDE<tool_call>" in shown(source, turn("BESIDE", "THOUGHT"))
    assert "[assistant][THINK]THOUGHT[/THINK]<tool_call>" in shown(source, turn("", "THOUGHT"))
    assert "[assistant][THINK]SECRET[/THINK]ANSWER[user]NEXT" in shown(source, [*turn(), *NEXT])
    assert "[assistant]BESIDE<tool_call>" in shown(source, turn("BESIDE"))


def test_reasoning_stays_with_the_call_where_only_a_call_shows_it() -> None:
    """As Gemma 4's and Command R7B's templates do, which show text and calls in messages of their own."""
    source = (
        TOOLS + "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}"
        "{% if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}"
        + HERMES
        + "{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    prompt = shown(source, turn("BESIDE", "THOUGHT"))
    assert "[assistant]BESIDE[assistant]<think>THOUGHT</think><tool_call>" in prompt


def test_reasoning_stays_with_the_text_where_the_template_shows_it_there() -> None:
    source = (
        TOOLS + "{% for m in messages %}[{{ m.role }}]{% if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}"
        "{% if m.tool_calls %}" + HERMES + "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    prompt = shown(source, turn("BESIDE", "THOUGHT"))
    assert "[assistant]<think>THOUGHT</think>BESIDE[assistant]<tool_call>" in prompt


# ---------------------------------------------------------------- names in ids

KIMI = (
    TOOLS + "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_call_id }}"
    "{% if m.tool_calls %}<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}"
    "<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
    "<|tool_calls_section_end|>{% endif %}{% if m.role == 'tool' %}{{ m.name }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("tools", [True, False])
def test_a_template_that_writes_ids_alone_gets_ids_with_the_tool_s_name(tools: bool) -> None:
    prompt = shown(KIMI, [*turn(), *NEXT, *turn()], tools=tools)
    for number in (0, 1):
        assert f'<|tool_call_begin|>functions.weather:{number}<|tool_call_argument_begin|>{{"city": "PARIS"}}' in prompt
        assert f"[tool]SUNNYfunctions.weather:{number}weather" in prompt


def test_ids_that_the_model_made_are_kept() -> None:
    call = ToolCall("functions.weather:7", "weather", {"city": "PARIS"})
    messages = [
        Message("user", "QUESTION"),
        Message("assistant", "", tool_calls=[call]),
        Message("tool", "SUNNY", tool_call_id="functions.weather:7"),
    ]
    assert shown(KIMI, messages).count("functions.weather:7") == 2


# ---------------------------------------------------------------- tags with a suffix


def test_tags_that_a_template_puts_together_are_known_by_its_suffix() -> None:
    source = (
        "{%- set HYTK = ':0a1b2c' %}{%- set begin = '<tool_calls{}>'.format(HYTK) %}"
        + TOOLS
        + "{% for m in messages %}"
        "[{{ m.role }}]{% if m.thinking %}{{ '<think{0}>{1}</think{0}>'.format(HYTK, m.thinking) }}{% endif %}"
        "{{ m.content }}{% if m.tool_calls %}{{ begin }}{% for c in m.tool_calls %}"
        "{{ '\n<tool_call{}>'.format(HYTK) + c.function.name + '<tool_sep{}>\n'.format(HYTK) }}"
        "{% for key, value in c.function.arguments.items() %}{{ '<arg_key{0}>{1}</arg_key{0}>\n'.format(HYTK, key) }}"
        "{{ '<arg_value{0}>{1}</arg_value{0}>\n'.format(HYTK, value) }}{% endfor %}"
        "{{ '</tool_call{}>'.format(HYTK) }}{% endfor %}{{ '</tool_calls{}>'.format(HYTK) }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.supports_tools
    assert template.format.thinking is not None
    assert template.format.thinking.opens == "<think:0a1b2c>"
    prompt = template.render(turn("BESIDE", "THOUGHT"), tools=[WEATHER]).text
    assert "<think:0a1b2c>THOUGHT</think:0a1b2c>BESIDE<tool_calls:0a1b2c>\n<tool_call:0a1b2c>weather<tool_sep" in prompt
    template.close()
