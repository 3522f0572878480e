# SPDX-License-Identifier: Apache-2.0
"""For each model family a minimal form of its template: how it writes a call, a thought and an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jinja2

from inference_bridge.chat.formats.json_calls import DEEPSEEK, PLAMO
from inference_bridge.chat.formats.nested_calls import M3
from inference_bridge.chat.formats.tagged_calls import STEP
from inference_bridge.chat.markup import ChatFormat, detect_format, with_values_as_written
from inference_bridge.types import Tool

SAVE = Tool(
    "save",
    "Save a file",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "body": {"type": "string"},
            "rows": {"type": "array", "items": {"type": "string"}},
            "count": {"type": "integer"},
            "share": {"type": "number"},
            "on": {"type": "boolean"},
            "options": {"type": "object", "additionalProperties": {"type": ["integer", "boolean"]}},
        },
    },
)
TOOLS = (SAVE, Tool("clock", "The time"))


@dataclass(frozen=True)
class Form:
    """A minimal form of how a family's template writes one call, of `name` with `arguments`.

    `never`: texts that no value can hold, because they end one. `reasoning` and `before` are
    what the model writes around a thought, and before the call or the answer.
    """

    call: str
    marks: str = ""
    never: tuple[str, ...] = ()
    reasoning: tuple[str, str] = ("", "")
    before: str = ""
    after: str = ""
    answer: tuple[str, str] = ("", "")


JSON = '{"name": "{{ name }}", "arguments": {{ arguments | json }}}'
ARGS = "{{ arguments | json }}"
EACH = "{% for key, value in arguments.items() %}"
TEXT = "{{ value if value is string else value | json }}"
DSML = "\uff5cDSML\uff5c"
THINK = ("<think>", "</think>\n\n")


def parameters(opens: str, closes: str) -> str:
    return f"{EACH}{opens}{TEXT}{closes}{{% endfor %}}"


def key_values(prefix: str = "", suffix: str = "") -> str:
    key, value = f"{prefix}arg_key{suffix}", f"{prefix}arg_value{suffix}"
    return parameters(f"<{key}>{{{{ key }}}}</{key}>\n<{value}>", f"</{value}>\n")


def invoked(prefix: str, closer: str) -> str:
    inside = parameters(f'<{prefix}parameter name="{{{{ key }}}}">', f"</{prefix}parameter>\n")
    return f'<{prefix}{closer}>\n<{prefix}invoke name="{{{{ name }}}}">\n{inside}</{prefix}invoke>\n</{prefix}{closer}>'


def dsml(closer: str, space: str = "") -> str:
    mark = DSML + space
    inside = (
        f'{EACH}<{mark}parameter name="{{{{ key }}}}" '
        f"string=\"{{{{ 'true' if value is string else 'false' }}}}\">{TEXT}</{mark}parameter>\n{{% endfor %}}"
    )
    return f'\n\n<{mark}{closer}>\n<{mark}invoke name="{{{{ name }}}}">\n{inside}</{mark}invoke>\n</{mark}{closer}>'


_XML = (
    "{% macro xml(value) %}{% if value is mapping %}{% for key, inner in value.items() %}"
    f"{M3}<{{{{ key }}}}>{{{{ xml(inner) }}}}{M3}</{{{{ key }}}}>{{% endfor %}}"
    "{% elif value is string %}{{ value }}{% elif value is iterable %}"
    f"{{% for inner in value %}}{M3}<item>{{{{ xml(inner) }}}}{M3}</item>{{% endfor %}}"
    "{% else %}{{ value | json }}{% endif %}{% endmacro %}"
)
_GEMMA = (
    '{% macro gemma(value) %}{% if value is string %}<|"|>{{ value }}<|"|>{% elif value is mapping %}'
    "{{ '{' }}{% for key, inner in value.items() %}{{ ',' if not loop.first }}{{ key }}:{{ gemma(inner) }}{% endfor %}"
    "{{ '}' }}{% elif value is iterable %}[{% for inner in value %}{{ ',' if not loop.first }}{{ gemma(inner) }}"
    "{% endfor %}]{% else %}{{ value | json }}{% endif %}{% endmacro %}"
)
_K3 = (
    '{% for key, value in arguments.items() %}<|open|>argument key="{{ key }}" '
    "type=\"{{ 'string' if value is string else 'object' }}\"<|sep|>"
    f"{TEXT}<|close|>argument<|sep|>{{% endfor %}}"
)
_PYTHON = f"{{{{ name }}}}({EACH}{{{{ ', ' if not loop.first }}}}{{{{ key }}}}={{{{ value | repr }}}}{{% endfor %}})"
_WRAPPED = "<parameter={{ key }}>\n", "\n</parameter>\n"

FORMS = {
    "hermes": Form(f"<tool_call>\n{JSON}\n</tool_call>", reasoning=THINK),
    "granite-3.1": Form(f"<tool_call> [{JSON}]"),
    "hermes, single line": Form(f"<tool_call>{JSON}</tool_call>"),
    "qwen3-coder": Form(
        f"<tool_call>\n<function={{{{ name }}}}>\n{parameters(*_WRAPPED)}</function>\n</tool_call>",
        never=("</parameter>",),
        reasoning=THINK,
    ),
    "mimo": Form(
        f"<tool_call>\n<function={{{{ name }}}}>\n{parameters('<parameter={{ key }}>', '</parameter>')}"
        "</function>\n</tool_call>",
        never=("</parameter>",),
    ),
    "glm-4.6": Form(
        f"<tool_call>{{{{ name }}}}\n{key_values()}</tool_call>", "<arg_key>", never=("</arg_value>",), reasoning=THINK
    ),
    "seed-oss": Form(
        f"<seed:tool_call>\n<function={{{{ name }}}}>\n{parameters('<parameter={{ key }}>', '</parameter>')}"
        "</function>\n</seed:tool_call>",
        never=("</parameter>",),
        reasoning=("<seed:think>", "</seed:think>"),
    ),
    "minicpm5": Form(
        f'<function name="{{{{ name }}}}">{EACH}<param name="{{{{ key }}}}">{TEXT}</param>{{% endfor %}}</function>',
        never=("</param>", "<![CDATA["),
        reasoning=THINK,
    ),
    "hunyuan": Form(
        f"<tool_calls>[{JSON}]</tool_calls>",
        reasoning=("<think>\n", "\n</think>\n"),
        answer=("<answer>\n", "\n</answer>"),
    ),
    "hy3": Form(
        "<tool_calls:opensource>\n<tool_call:opensource>{{ name }}<tool_sep:opensource>\n"
        f"{key_values(suffix=':opensource')}</tool_call:opensource>\n</tool_calls:opensource>",
        never=("</arg_value:opensource>",),
        reasoning=("<think:opensource>", "</think:opensource>"),
    ),
    "hy4": Form(
        "<tool_calls:6124c78e>\n<tool_call:6124c78e>{{ name }}\n"
        f"{key_values(suffix=':6124c78e')}</tool_call:6124c78e>\n</tool_calls:6124c78e>",
        never=("</arg_value:6124c78e>",),
        reasoning=("<think:6124c78e>", "</think:6124c78e>"),
    ),
    "k2-horizon": Form(
        f"<ifm|tool_calls><ifm|tool_call>{{{{ name }}}}{key_values('ifm|')}</ifm|tool_call></ifm|tool_calls>",
        never=("</ifm|arg_value>",),
        reasoning=("<ifm|think_fast>\n", "\n</ifm|think_fast>\n"),
    ),
    "longcat": Form(
        f"<longcat_tool_call>{{{{ name }}}}\n{key_values('longcat_')}</longcat_tool_call>",
        never=("</longcat_arg_value>",),
        reasoning=("<longcat_think>", "</longcat_think>"),
    ),
    "longcat, json": Form(f"<longcat_tool_call>{JSON}</longcat_tool_call>"),
    "minimax-m2": Form(invoked("", "minimax:tool_call").replace("<minimax:", "<minimax:"), never=("</parameter>",)),
    "minimax-m3": Form(
        f'{_XML}{M3}<tool_call>\n{M3}<invoke name="{{{{ name }}}}">{EACH}{M3}<{{{{ key }}}}>{{{{ xml(value) }}}}'
        f"{M3}</{{{{ key }}}}>{{% endfor %}}{M3}</invoke>\n{M3}</tool_call>",
        never=(M3,),
        reasoning=("<mm:think>", "</mm:think>"),
    ),
    "deepseek-3.2": Form(dsml("function_calls"), never=(f"</{DSML}parameter>",), reasoning=THINK),
    "deepseek-4": Form(dsml("tool_calls"), never=(f"</{DSML}parameter>",), reasoning=THINK),
    "deepseek-4.1": Form(dsml("calls", " "), never=(f"</{DSML} parameter>",), reasoning=THINK),
    "step-3": Form(
        STEP.format("calls_begin")
        + STEP.format("call_begin")
        + "function"
        + STEP.format("sep")
        + '<steptml:invoke name="{{ name }}">'
        + parameters('<steptml:parameter name="{{ key }}">', "</steptml:parameter>")
        + "</steptml:invoke>"
        + STEP.format("call_end")
        + STEP.format("calls_end"),
        never=("</steptml:parameter>",),
        reasoning=THINK,
    ),
    "plamo-3": Form(
        PLAMO.format("begin_tool_requests")
        + PLAMO.format("begin_tool_request")
        + PLAMO.format("begin_tool_name")
        + "{{ name }}"
        + PLAMO.format("end_tool_name")
        + PLAMO.format("begin_tool_arguments")
        + f"<|plamo:constrain|>json<|plamo:msg|>{ARGS}"
        + PLAMO.format("end_tool_arguments")
        + PLAMO.format("end_tool_request")
        + PLAMO.format("end_tool_requests"),
        reasoning=(PLAMO.format("begin_think"), PLAMO.format("end_think")),
    ),
    "inkling": Form(
        f'{{{{ name }}}}<|content_invoke_tool_json|>{{"name": "{{{{ name }}}}", "args": {ARGS}}}<|end_message|>'
        "<|content_model_end_sampling|>",
        "<|message_model|>",
        reasoning=("<|content_thinking|>", "<|end_message|><|message_model|>"),
        answer=("<|content_text|>", "<|end_message|>"),
    ),
    "muse": Form(
        f" to=save<|message|>{invoked('atem:', 'function_calls')}",
        "<|start|>assistant<|message|>",
        never=("</atem:parameter>",),
        reasoning=(" to=self<|message|>", "<|eom|><|start|>assistant"),
        answer=(" to=user<|message|>", ""),
    ),
    "mistral": Form(f"[TOOL_CALLS][{JSON}]", reasoning=("[THINK]", "[/THINK]")),
    "mistral 11": Form(f"[TOOL_CALLS]{{{{ name }}}}[ARGS]{ARGS}"),
    "nemotron": Form(f"<TOOLCALL>[{JSON}]</TOOLCALL>"),
    "gigachat-3": Form(
        f"<|message_sep|>\n\nfunction call<|role_sep|>\n{JSON}<|message_sep|>\n\n",
        "function call",
        answer=("", "<|message_sep|>\n\n"),
    ),
    "gigachat-3.1": Form(f"<|function_call|>{JSON}"),
    "granite-3.3": Form(
        f"<|tool_call|>[{JSON}]", "</response>", reasoning=("<think>", "</think>"), answer=("<response>", "</response>")
    ),
    "granite-3.2": Form(
        f"<|tool_call|>[{JSON}]", reasoning=("Here is my thought process:\n", "\nHere is my response:\n")
    ),
    "granite-20b": Form(f"<function_call> {JSON}"),
    "internlm": Form(f"<|action_start|><|plugin|>\n{JSON.replace('arguments', 'parameters', 1)}<|action_end|>"),
    "dots": Form(invoked("", "dots_function_call"), never=("</parameter>",)),
    "phi-4-mini": Form(f"<|tool_call|>[{JSON}]<|/tool_call|>"),
    "functools": Form(f"functools[{JSON}]"),
    "cohere": Form(
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "{{ name }}", "parameters": '
        f"{ARGS}}}\n]<|END_ACTION|>",
        reasoning=("<|START_THINKING|>", "<|END_THINKING|>"),
        answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "deepseek-r1": Form(
        DEEPSEEK.format("calls\u2581begin")
        + DEEPSEEK.format("call\u2581begin")
        + "function"
        + DEEPSEEK.format("sep")
        + f"{{{{ name }}}}\n```json\n{ARGS}\n```"
        + DEEPSEEK.format("call\u2581end")
        + DEEPSEEK.format("calls\u2581end"),
        reasoning=THINK,
    ),
    "kimi-k2": Form(
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.{{ name }}:0<|tool_call_argument_begin|>"
        f"{ARGS}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "kimi-k2, no section": Form(
        f"<|tool_call_begin|>functions.{{{{ name }}}}:0<|tool_call_argument_begin|>{ARGS}<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
    ),
    "kimi-k3": Form(
        f'<|open|>tools<|sep|><|open|>call tool="{{{{ name }}}}" index="1"<|sep|>{_K3}<|close|>call<|sep|>'
        "<|close|>tools<|sep|><|close|>message<|sep|>",
        never=("<|close|>argument<|sep|>",),
        reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        answer=("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    ),
    "apertus": Form(
        f'<|tools_prefix|>[{{"{{{{ name }}}}": {ARGS}}}]<|tools_suffix|>',
        reasoning=("<|inner_prefix|>", "<|inner_suffix|>"),
    ),
    "solar-open": Form(
        "<|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2<|tool_call:name|>{{ name }}"
        f"<|tool_call:args|>{ARGS}<|tool_call:end|>",
        "<|think|><|content|>",
        reasoning=("<|think|>", "<|end|>"),
        answer=("<|begin|>assistant<|content|>", ""),
    ),
    "apriel-1.6": Form(
        f"\n<tool_calls>[{JSON}]</tool_calls>", "[BEGIN FINAL RESPONSE]", reasoning=("", "\n[BEGIN FINAL RESPONSE]\n")
    ),
    "gemma-4": Form(
        f"{_GEMMA}<|tool_call>call:{{{{ name }}}}{{{{ gemma(arguments) }}}}<tool_call|>",
        never=('<|"|>',),
        reasoning=("<|channel>thought\n", "<channel|>"),
    ),
    "function-gemma": Form(
        f"{_GEMMA}<start_function_call>call:{{{{ name }}}}{{{{ gemma(arguments) }}}}<end_function_call>".replace(
            '<|"|>', "<escape>"
        ),
        never=("<escape>",),
    ),
    "lfm2": Form(f"<|tool_call_start|>[{_PYTHON}]<|tool_call_end|>"),
    "lfm2, json": Form(f"<|tool_call_start|>[{JSON}]<|tool_call_end|>"),
    "llama-4, json": Form(f"<|python_start|>{JSON}<|python_end|>"),
    "llama-4, python": Form(f"<|python_start|>[{_PYTHON}]<|python_end|>"),
    "llama-3": Form(JSON.replace("arguments", "parameters", 1), "<|start_header_id|> ipython"),
    "llama-3.2, python": Form(f"[{_PYTHON}]", "<|start_header_id|> ipython"),
    "llama-3.1, tag": Form(f"<function={{{{ name }}}}>{ARGS}</function>"),
    "olmo-3": Form(f"<function_calls>{_PYTHON}</function_calls>"),
    "functionary-3.2": Form(f"{{{{ name }}}}\n{ARGS}", ">>>all >>>${recipient}", answer=("all\n", "")),
    "gpt-oss": Form(
        f"<|channel|>commentary to=functions.{{{{ name }}}} <|constrain|>json<|message|>{ARGS}<|call|>",
        reasoning=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        answer=("<|channel|>final<|message|>", ""),
    ),
    "gemma-3, code": Form(f"```tool_code\n{_PYTHON}\n```", "none", never=("```",)),
    "generic": Form(f"<tool_call>\n{JSON}\n</tool_call>", "none"),
}

_environment = jinja2.Environment(autoescape=False, keep_trailing_newline=True)  # noqa: S701 - prompts are not HTML
_environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
_environment.filters["repr"] = repr


def written(form: Form, arguments: dict[str, Any]) -> str:
    return _environment.from_string(form.call).render(name="save", arguments=arguments)


def format_of(form: Form) -> ChatFormat:
    """As it is when a model is loaded: by the text of its template, and by a call that the template writes."""
    if form.marks == "none":
        return detect_format("{{ messages }}")
    template = "".join((form.call, form.marks, *form.reasoning, *form.answer))
    probe = {"path": "VALUE1"}
    return with_values_as_written(detect_format(template), written(form, probe), SAVE, probe)
