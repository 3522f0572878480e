# SPDX-License-Identifier: Apache-2.0
"""The templates are written for these tests, one for each difference between real templates."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference_bridge.chat.generic_tools import generic_tool_prompt
from inference_bridge.chat.markup import GENERIC_OPENERS
from inference_bridge.chat.templates import template as module
from inference_bridge.chat.templates.template import ChatTemplate, ChatTemplateError
from inference_bridge.errors import ModelLoadError, UnsupportedError
from inference_bridge.types import Attachment, Message, Tool, ToolCall

CHATML = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

HERMES = """
{%- if tools %}{{ '<|im_start|>tools\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}
{%- endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""

STRICT = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant must take turns') }}
{%- endif %}
{{- '<turn>' + m.role + '\n' + m.content | trim + '</turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""

NINE = """
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}{{ '[TOOL_CALLS]' }}[{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last }}{% endfor %}]</s>
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- '[RESULT]' + m.tool_call_id + ' ' + m.content + '[/RESULT]' }}
{%- else %}{{ '[' + m.role + ']' + m.content }}{% endif %}{% endfor %}"""

ONE_CALL = """
{%- for t in tools or [] %}{{ t.function.name + '\n' }}{% endfor %}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '\n' }}
{%- if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}{# ipython #}"""

AS_TEXT = """
{%- for t in tools or [] %}{{ t | tojson }}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.content is none %}{% for call in m.tool_calls %}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments + '}</tool_call>' }}
{%- endfor %}{% else %}{{ m.role + ': ' + m.content + '\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}"""

PARTS = """
{%- for m in messages %}{{ '<' + m.role + '>' }}{% for part in m.content %}
{%- if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

HARMONY = """<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>
{%- for t in tools or [] %}{{ t.function.name }}{% endfor %}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.thinking or m.content or '') + '<|end|>' }}
{%- set call = m.tool_calls[0].function %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson + '<|call|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

ODD = HERMES.replace("<tool_call>", "<<call>>").replace("</tool_call>", "<</call>>")

WEATHER = Tool("weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("call_abcdef", "weather", {"city": "Paris"})
CONVERSATION = [
    Message("user", "How is it in Paris?"),
    Message("assistant", "", tool_calls=[CALL]),
    Message("tool", "Sunny", tool_call_id="call_abcdef"),
]
TWO_CALLS = [
    Message("user", "And in Rome?"),
    Message("assistant", "I look.", tool_calls=[CALL, ToolCall("b", "weather", {"city": "Rome"})], reasoning="Two."),
    Message("tool", "Wet", tool_call_id="b"),
    Message("tool", "Sunny", tool_call_id="call_abcdef"),
    Message("user", "Thanks"),
]


def user(text: str) -> list[Message]:
    return [Message("user", text)]


# ---------------------------------------------------------------- plain conversations


def test_messages_become_a_prompt() -> None:
    template = ChatTemplate(CHATML)
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "No"),
    ]
    assert template.render(messages).text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_demo_model_s_own_template(demo_model_path: Path) -> None:
    from inference_bridge.catalog.headers.gguf import read_metadata

    source = read_metadata(demo_model_path).text("tokenizer.chat_template")
    template = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert template.render(user("Hi")).text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (template.supports_system, template.supports_tools, template.supports_parts) == (True, False, False)
    assert not template.reasons


def test_template_options_come_over_everything_else() -> None:
    source = "{{ greeting }} {{ bos_token }} {{ messages[0].content }}{% if add_generation_prompt %} go{% endif %}"
    template = ChatTemplate(source, bos_token="<s>")
    options = {"greeting": ["Hello", {"n": 1.5}], "add_generation_prompt": False, "bos_token": None}
    assert template.render(user("Hi"), options=options).text == "['Hello', {'n': 1.5}] None Hi"


def test_template_options_are_plain_values() -> None:
    class Sneaky:
        def steal(self) -> str:
            return "secret"

    with pytest.raises(TypeError, match="template option x"):
        ChatTemplate(CHATML).render(user("Hi"), options={"x": {"y": [Sneaky()]}})


def test_a_template_sees_copies() -> None:
    class Loud(str):
        __slots__ = ()

        def loud(self) -> str:
            return "!"

    template = ChatTemplate("{{ messages[0].content }}{{ x.loud is defined }}")
    assert template.render(user("Hi"), options={"x": Loud("a")}).text == "HiFalse"


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        ChatTemplate(CHATML).render([])


# ---------------------------------------------------------------- templates that refuse or fail


def test_a_refusal_is_the_caller_s_error_in_the_template_s_words() -> None:
    with pytest.raises(ChatTemplateError, match="user and assistant must take turns"):
        ChatTemplate(STRICT).render([*user("a"), *user("b")])
    assert issubclass(ChatTemplateError, ValueError)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages",
        "{% for m in messages %}",
        "{{ x | no_such_filter }}",
        "{{ 'a' * 10**9 }}",
        "a" * 200_000,
    ],
)
def test_a_broken_template_can_t_be_loaded(source: str) -> None:
    with pytest.raises(ModelLoadError, match="chat template can't be used"):
        ChatTemplate(source)


def test_a_template_that_fails_on_the_messages_is_an_error() -> None:
    template = ChatTemplate(
        "{% if 'x' in messages[0].content %}{{ messages[0].content / 2 }}{% endif %}{{ messages[0].content }}"
    )
    assert template.render(user("Hi")).text == "Hi"
    with pytest.raises(ChatTemplateError, match="fails on these messages: TypeError"):
        template.render(user("x"))


def test_a_template_that_loops_on_some_messages_is_stopped() -> None:
    template = ChatTemplate("{% if 'x' in messages[0].content %}{{ messages[0].content * 10**10 }}{% endif %}")
    with pytest.raises(ChatTemplateError, match="was stopped: it needed too much memory"):
        template.render(user("x"))


def test_a_long_conversation_is_within_bounds() -> None:
    messages = [Message("user" if n % 2 == 0 else "assistant", "word " * 2000) for n in range(501)]
    assert ChatTemplate(STRICT).render(messages).text.count("<turn>") == 502


def test_many_threads_may_render() -> None:
    template = ChatTemplate(CHATML)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.extend(template.render(user(f"{n}.")).text for _ in range(50)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(found)) == sorted(template.render(user(f"{n}.")).text for n in range(8))
    assert len(found) == 400


# ---------------------------------------------------------------- roles


def test_the_system_text_precedes_the_user_s_text_without_a_system_role() -> None:
    template = ChatTemplate(STRICT, bos_token="<s>")
    assert not template.supports_system
    messages = [Message("system", "Be brief."), *user("Hi")]
    assert template.render(messages).text == "<s><turn>user\nBe brief.\n\nHi</turn>\n<turn>model\n"
    assert template.render([Message("system", "Go.")]).text == "<s><turn>user\nGo.</turn>\n<turn>model\n"


def test_the_developer_role_becomes_system_if_the_template_lacks_it() -> None:
    messages = [Message("developer", "Be brief."), *user("Hi")]
    assert "<|im_start|>system\nBe brief." in ChatTemplate(CHATML).render(messages).text
    assert "<|im_start|>developer\n" in ChatTemplate(CHATML + "{# developer #}").render(messages).text


# ---------------------------------------------------------------- tools


def test_tools_are_passed_to_a_template_that_supports_them() -> None:
    template = ChatTemplate(HERMES)
    assert template.supports_tools
    assert template.supports_tool_calls
    text = template.render(CONVERSATION, tools=[WEATHER]).text
    assert '"name": "weather"' in text.split("<|im_start|>user")[0]
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>' in text
    assert "<|im_start|>tool\nSunny" in text


@pytest.mark.parametrize("source", [CHATML, STRICT, ODD])
def test_tools_are_in_a_generic_prompt_if_the_template_does_not_support_them(source: str) -> None:
    template = ChatTemplate(source)
    assert not template.supports_tools
    rendered = template.render([Message("system", "Be brief."), *CONVERSATION], tools=[WEATHER])
    assert "Be brief.\n\n" + generic_tool_prompt([WEATHER]) in rendered.text
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert rendered.text.count(call) == 1
    assert "user\n<tool_response>\nSunny\n</tool_response>" in rendered.text
    assert set(GENERIC_OPENERS) <= set(rendered.format.openers)
    assert rendered.format.bare


def test_generic_tool_results_are_joined_with_the_next_user_message() -> None:
    rendered = ChatTemplate(STRICT).render(TWO_CALLS, tools=[WEATHER])
    assert rendered.text.count("<turn>user") == 2
    assert (
        "<turn>user\n<tool_response>\nWet\n</tool_response>\n<tool_response>\nSunny\n</tool_response>\nThanks</turn>"
        in rendered.text
    )


def test_a_notation_that_cannot_be_parsed_is_not_requested(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inference_bridge"):
        template = ChatTemplate(ODD)
    assert "unknown notation" in caplog.text
    # A conversation that already has such calls is still rendered by the template.
    assert "<<call>>" in template.render(CONVERSATION).text


def test_ids_are_made_as_mistral_s_templates_want_them() -> None:
    template = ChatTemplate(NINE)
    assert template.supports_tools
    text = template.render(TWO_CALLS, tools=[WEATHER]).text
    given = re.findall(r'"id": "([A-Za-z0-9]{9})"', text)
    answered = re.findall(r"\[RESULT\]([A-Za-z0-9]{9}) (\w+)", text)
    assert len(set(given)) == 2
    assert answered == [(given[1], "Wet"), (given[0], "Sunny")]
    own = [Message("user", "?"), Message("assistant", tool_calls=[ToolCall("a1B2c3D4e", "weather", {})])]
    assert '"id": "a1B2c3D4e"' in template.render(own).text


def test_calls_and_results_without_ids_are_matched_by_their_order() -> None:
    calls = [ToolCall("", "weather", {"city": "Paris"}), ToolCall("", "news", {})]
    messages = [*user("?"), Message("assistant", tool_calls=calls), Message("tool", "Sunny"), Message("tool", "None")]
    text = ChatTemplate(NINE).render(messages).text
    given = re.findall(r'"id": "(\w{9})"', text)
    assert re.findall(r"\[RESULT\](\w{9}) (\w+)", text) == [(given[0], "Sunny"), (given[1], "None")]
    names = "{% for m in messages %}{{ m.name | default('-') }} {% endfor %}"
    assert ChatTemplate(HERMES + names).render(messages).text.endswith("- - weather news ")


def test_a_result_without_its_call_has_an_id_in_the_template_s_form() -> None:
    messages = [*user("?"), Message("tool", "Sunny", tool_call_id="call_that_was_cut_off")]
    assert re.search(r"\[RESULT\]\w{9} Sunny", ChatTemplate(NINE).render(messages).text)


def test_messages_have_one_call_each_if_the_template_allows_only_one() -> None:
    template = ChatTemplate(ONE_CALL)
    assert template.supports_tool_calls
    text = template.render(TWO_CALLS, tools=[WEATHER]).text
    order = ['{"city": "Paris"}', "Sunny", '{"city": "Rome"}', "Wet", "Thanks"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


def test_arguments_are_text_and_content_is_none_if_the_template_requires_it() -> None:
    template = ChatTemplate(AS_TEXT)
    assert template.supports_tools
    assert '"arguments": {"city": "Paris"}}</tool_call>' in template.render(CONVERSATION, tools=[WEATHER]).text


def test_a_separate_template_for_tools_is_used() -> None:
    template = ChatTemplate(CHATML, tool_source=HERMES)
    assert template.render(user("Hi")).text == ChatTemplate(CHATML).render(user("Hi")).text
    assert (
        template.render(user("Hi"), tools=[WEATHER]).text
        == ChatTemplate(HERMES).render(user("Hi"), tools=[WEATHER]).text
    )


def test_a_template_for_tools_alone_may_iterate_over_none() -> None:
    template = ChatTemplate("{% for t in tools %}{{ t | tojson }}{% endfor %}" + HERMES)
    assert template.render(user("Hi")).text == ChatTemplate(HERMES).render(user("Hi")).text


def test_the_parser_reads_calls_written_by_the_template(read: Callable[..., Any]) -> None:
    """A call in the conversation, parsed as if the model had generated it."""
    for source in (HERMES, NINE, AS_TEXT, ONE_CALL, HARMONY, CHATML, STRICT, ODD):
        template = ChatTemplate(source)
        prompt = template.render(CONVERSATION[:1], tools=[WEATHER])
        full = template.render(CONVERSATION[:2], tools=[WEATHER], options={"add_generation_prompt": False}).text
        answer = full[full.index("Paris?") + len("Paris?") :]
        for end in (
            "</turn>\n<turn>assistant\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|start_header_id|>assistant\n",
        ):
            answer = answer.removeprefix(end)
        answer = answer.removeprefix("<|end|><|start|>assistant")
        assert read(prompt.format, answer, tools=[WEATHER]).calls == [("weather", {"city": "Paris"})], source


# ---------------------------------------------------------------- tools and calls that a template can't show

# Command R+ writes the description of every parameter.
DESCRIBED = (
    "{%- for t in tools or [] %}{{ t.function.name }}{% for k, p in t.function.parameters.properties.items() %}"
    "{{ k + ': ' + p.description }}{% endfor %}{% endfor %}" + HERMES
)
# Hermes 2 and 3 have a macro that calls itself for each of a list of types.
TYPED = (
    "{%- macro kind(s) %}{% if s.type == 'string' %}str{% elif s.type is iterable %}{% for x in s.type %}"
    "{{ kind({'type': x}) }}{% endfor %}{% endif %}{% endmacro %}{%- for t in tools or [] %}{{ t.function.name }}"
    "{% for k, p in t.function.parameters.properties.items() %}{{ kind(p) }}{% endfor %}{% endfor %}" + HERMES
)
# Shows the parameters that have a description, and leaves out the others.
SELECTIVE = (
    "{%- for t in tools or [] %}{{ t.function.name }}{% for k, p in t.function.parameters.properties.items() %}"
    "{% if p.description %}{{ k }}{% endif %}{% endfor %}{% endfor %}" + HERMES.replace("{{ t | tojson }}", "")
)
MAYBE = Tool("find", "Find", {"type": "object", "properties": {"city": {"type": ["string", "null"]}}})
BESIDE = [
    Message("user", "How is it?"),
    Message("assistant", "Looking.", tool_calls=[ToolCall("1", "weather", {"city": "Paris"})]),
    Message("tool", "Sunny", tool_call_id="1"),
]


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


class _ClearedByAnotherThread(dict[str, object]):
    """A cache that another thread clears after each look-up."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.clear()
        return found


def test_tools_are_shown_while_another_thread_clears_the_cache_of_tools() -> None:
    template = ChatTemplate(HERMES)
    first = template.render(user("Q"), tools=[WEATHER]).text
    template._shown = _ClearedByAnotherThread(template._shown)
    assert template.render(user("Q"), tools=[WEATHER]).text == first


@pytest.mark.parametrize("source", [DESCRIBED, TYPED, SELECTIVE])
def test_a_tool_that_the_template_can_t_show_is_in_the_generic_prompt(source: str) -> None:
    template = ChatTemplate(source)
    assert template.supports_tools
    shown = Tool("find", "Find", {"type": "object", "properties": {"city": {"type": "string", "description": "d"}}})
    assert "You may call functions" not in template.render(user("Q"), tools=[shown]).text
    rendered = template.render(BESIDE, tools=[MAYBE])
    assert generic_tool_prompt([MAYBE]) in rendered.text
    assert set(GENERIC_OPENERS) <= set(rendered.format.openers)
    assert in_order(rendered.text, "How is it?", "Looking.", '{"city": "Paris"}', "Sunny")


def test_calls_that_the_template_refuses_are_text() -> None:
    refuses = (
        "{% for m in messages %}{% if m.content == 'Wet' %}{{ raise_exception('dry only') }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(refuses + HERMES)
    messages = [*BESIDE[:2], Message("tool", "Wet", tool_call_id="1")]
    assert in_order(template.render(messages).text, "Looking.", '{"city": "Paris"}', "<tool_response>\nWet")
    # What it refuses in any form is the caller's error, in the template's own words.
    with pytest.raises(ChatTemplateError, match="dry only"):
        template.render(user("Wet"), tools=[WEATHER])


def test_a_template_may_append_to_its_own_lists() -> None:
    source = (
        "{%- set q = namespace(ids=[]) %}{{ tools | tojson if tools }}"
        "{%- for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% if m.tool_calls %}<|tool_calls_section_begin|>{% for c in m.tool_calls %}"
        "{% set i = 'functions.' + c.function.name + ':' + loop.index0 | string %}{% set _ = q.ids.append(i) %}"
        "<|tool_call_begin|>{{ i }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>"
        "{% endfor %}<|tool_calls_section_end|>{% elif m.role == 'tool' %}{{ q.ids.pop() }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.supports_tools
    text = template.render(BESIDE, tools=[WEATHER]).text
    assert (
        "Looking.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>" in text
    )
    assert text.endswith("[tool]Sunnyfunctions.weather:0")


CONTENT = (
    "{{ 'MARK' + (tools | tojson if tools else '') }}{%- for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("mark", "call"),
    [
        (
            "<|tool_list_start|>",
            '<|tool_call_start|>[weather(city="Par\\"is", n=[1, True, {"a": None}])]<|tool_call_end|>',
        ),
        (
            "<|tool_call|>",
            '<|tool_call|>[{"name": "weather", "arguments": {"city": "Par\\"is", "n": [1, true, {"a": null}]}}]',
        ),
    ],
    ids=["LFM2", "Granite 3.3"],
)
def test_calls_that_a_template_takes_as_content_are_in_the_family_s_notation(
    mark: str, call: str, read: Callable[..., Any]
) -> None:
    template = ChatTemplate(CONTENT.replace("MARK", mark))
    arguments = {"city": 'Par"is', "n": [1, True, {"a": None}]}
    messages = [
        BESIDE[0],
        Message("assistant", "Looking.", tool_calls=[ToolCall("1", "weather", arguments)]),
        BESIDE[2],
    ]
    rendered = template.render(messages, tools=[WEATHER])
    assert rendered.text.endswith(f"<user>How is it?<assistant>Looking.{call}<tool>Sunny")
    assert read(rendered.format, call, tools=[WEATHER]).calls == [("weather", arguments)]


CALL_ALONE = "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
EITHER = (
    "{%- for t in tools or [] %}{{ t | tojson }}{% endfor %}{%- for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and m.content is none %}"
    + CALL_ALONE
    + "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
CALLS_FIRST = EITHER.replace("m.role == 'assistant' and m.content is none", "m.tool_calls")


@pytest.mark.parametrize("source", [EITHER, CALLS_FIRST], ids=["DeepSeek", "Llama 3, Mistral, Cohere"])
@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_text_beside_a_call_is_a_message_before_it(source: str, tools: list[Tool]) -> None:
    text = ChatTemplate(source).render(BESIDE, tools=tools).text
    assert text.endswith(
        '[user]How is it?[assistant]Looking.[assistant]<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}'
        "</tool_call>[tool]Sunny"
    )


def test_text_beside_a_call_joins_the_answer_where_messages_must_alternate() -> None:
    alternates = (
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% if m.role != 'tool' and not m.tool_calls %}"
        "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(alternates + CALLS_FIRST)
    assert in_order(template.render(BESIDE, tools=[WEATHER]).text, "Looking.", "<tool_call>", "Sunny")
    longer = [*BESIDE, *BESIDE[1:], Message("assistant", "Nice."), *user("Thanks")]
    text = template.render(longer, tools=[WEATHER]).text
    assert "You may call functions" not in text
    assert text.endswith("[assistant]Looking.\n\nLooking.\n\nNice.[user]Thanks")


def test_ids_of_nine_characters_or_more() -> None:
    template = ChatTemplate(NINE.replace("!= 9", "< 9"))
    assert template.supports_tools
    text = template.render(BESIDE, tools=[WEATHER]).text
    given = re.findall(r'"id": "(\w+)"', text)
    assert re.findall(r"\[RESULT\](\w+)", text) == given
    assert [len(id) for id in given] == [9]
    assert '"id": "call_abcdef"' in template.render(CONVERSATION, tools=[WEATHER]).text


def test_tools_as_text_and_the_time_in_firefunction_s_variables() -> None:
    template = ChatTemplate("{{ 'Functions: ' + functions + '. Now: ' + datetime }}" + HERMES)
    assert re.match(r"Functions: \. Now: \w{3} \d\d \d{4} ", template.render(user("Q")).text)
    assert '"name": "weather"' in template.render(user("Q"), tools=[WEATHER]).text.partition(". Now")[0]
    assert template.render(user("Q"), options={"functions": "f", "datetime": "d"}).text.startswith(
        "Functions: f. Now: d"
    )


def test_trials_have_time_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is ahead by half a second at each look, as on a machine that is busy with other programs."""
    looks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(looks) / 2))
    slow = "{% for i in range(99999) %}{% endfor %}"  # a millisecond is left for a render after the deadline
    assert ChatTemplate(slow + HERMES).supports_tools
    assert next(looks) / 2 > module._TRIALS_SECONDS


def test_the_processor_time_of_all_trials_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIALS_SECONDS", 0.05)
    slow = "{% for i in range(99999) %}{% set x = i %}{% endfor %}"
    with pytest.raises(ModelLoadError, match="too long"):
        ChatTemplate(slow + CHATML)


def test_a_timeout_bounds_a_render() -> None:
    endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if messages[0].content == 'x' %}" + endless + "{% endif %}" + CHATML)
    with pytest.raises(ChatTemplateError, match="took too long"):
        template.render(user("x"), timeout=0.1)
    assert "user\ny" in template.render(user("y"), timeout=60).text


def test_closing_a_template_ends_its_process() -> None:
    template = ChatTemplate(CHATML, tool_source=HERMES)
    template.close()
    template.close()
    assert "Hi" in template.render(user("Hi")).text


# ---------------------------------------------------------------- reasoning


def test_reasoning_reaches_the_template() -> None:
    template = ChatTemplate(HERMES, vocabulary={"<think>", "</think>"})
    assert template.reasoning_toggle
    assert template.reasons
    off = template.render(user("Hi"), reasoning=False)
    assert off.text.endswith("<think>\n\n</think>\n\n")
    assert (off.in_reasoning, off.in_answer) == (False, True)
    on = template.render(user("Hi"), reasoning=True)
    assert on.text == template.render(user("Hi")).text
    assert (on.in_reasoning, on.in_answer) == (False, False)


def test_a_prompt_may_end_inside_reasoning() -> None:
    template = ChatTemplate(CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}{# </think> #}")
    rendered = template.render(user("Hi"))
    assert (rendered.in_reasoning, rendered.in_answer) == (True, False)


def test_degrees_of_reasoning() -> None:
    template = ChatTemplate(HARMONY)
    assert template.format.harmony
    assert template.reasoning_effort
    assert "Reasoning: high" in template.render(user("Hi"), reasoning="high").text
    assert "Reasoning: medium" in template.render(user("Hi")).text
    assert "Reasoning: medium" in template.render(user("Hi"), reasoning=True).text


@pytest.mark.parametrize(
    ("source", "reasoning", "why"),
    [
        (CHATML, True, "no reasoning"),
        (CHATML, "low", "no levels"),
        (HERMES, "high", "no levels"),
        (HARMONY, False, "can't switch reasoning off"),
    ],
)
def test_unsupported_reasoning_is_refused(source: str, reasoning: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=f"llama_cpp does not support reasoning={reasoning!r}.*{why}"):
        ChatTemplate(source, backend="llama_cpp").render(user("Hi"), reasoning=reasoning)


def test_disabling_reasoning_of_a_model_without_reasoning_is_accepted() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(user("Hi"), reasoning=False).text == template.render(user("Hi")).text


def test_earlier_reasoning_reaches_the_template_under_both_its_names() -> None:
    source = "{{ messages[-1].reasoning_content }}{{ messages[-1].thinking }}{{ messages[0].thinking is defined }}"
    messages = [*user("Hi"), Message("assistant", "Yes", reasoning="Hm. ")]
    assert ChatTemplate(source).render(messages).text == "Hm. Hm. False"


# ---------------------------------------------------------------- attachments

IMAGE = Attachment("image/png", data=b"png")


def test_parts_reach_a_template_that_takes_them() -> None:
    template = ChatTemplate(PARTS)
    assert template.supports_parts
    messages = [Message("system", "Look."), Message("user", ["What is ", IMAGE, "?"])]
    assert template.render(messages).text == "<system>Look.<user>What is <image>?<assistant>"


def test_attachments_need_a_place() -> None:
    messages = [Message("user", ["What is ", IMAGE, "?"])]
    with pytest.raises(UnsupportedError, match="attachments"):
        ChatTemplate(CHATML).render(messages)
    with pytest.raises(UnsupportedError, match="application/pdf"):
        ChatTemplate(PARTS).render([Message("user", [Attachment("application/pdf", data=b"")])])


@pytest.mark.parametrize("source", [CHATML, PARTS])
def test_a_media_marker_stands_for_each_attachment(source: str) -> None:
    messages = [Message("user", ["What is ", IMAGE, "?"])]
    assert "What is <__media__>?" in ChatTemplate(source).render(messages, media_marker="<__media__>").text


def test_text_in_pieces_is_text() -> None:
    assert "user\nOne two<|im_end|>" in ChatTemplate(CHATML).render([Message("user", ["One", " two"])]).text
