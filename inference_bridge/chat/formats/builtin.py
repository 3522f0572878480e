# SPDX-License-Identifier: Apache-2.0
"""The built-in model families. They are registered with the function that other packages use too.

The notations are those of the models' own chat templates; the results agree with mlx-lm's
`tool_parsers`, except that a "null" for a parameter of type string stays a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from ...types import Tool
from ..reader import Reader, Steps
from .gemma_calls import gemma_calls
from .inkling import InklingReader
from .json_calls import DEEPSEEK, PLAMO, deepseek, functools, json_calls, keyed, kimi, mistral, plamo, solar
from .messages import FunctionaryReader, HarmonyReader, MuseReader
from .nested_calls import M3, kimi_k3, minimax_m3
from .python_calls import python_calls, python_or_json
from .registry import (
    SUFFIXED,
    AnswerTags,
    CallReader,
    ChatFamily,
    Thinking,
    register_chat_format,
)
from .tagged_calls import (
    STEP,
    invoke,
    key_value_calls,
    key_value_tags,
    lone_function,
    named_function,
    seed_call,
    step,
    tool_call,
)


def _with(read: Callable[..., Steps[None]], *arguments: Any, **options: Any) -> CallReader:
    def call(reader: Reader) -> Steps[None]:
        return read(reader, *arguments, **options)

    return call


def _family(name: str, *marks: str | tuple[str, ...], **parts: Any) -> ChatFamily:
    return ChatFamily(name, tuple((mark,) if isinstance(mark, str) else mark for mark in marks), **parts)


def _whole(name: str, mark: tuple[str, ...], output: Callable[[Iterable[Tool]], Reader]) -> ChatFamily:
    return ChatFamily(name, (mark,), output=output)


def _tags(
    name: str,
    opens: str,
    closes: str,
    *marks: str,
    anywhere: bool = False,
    implied: bool = False,
    others: tuple[tuple[str, str], ...] = (),
) -> ChatFamily:
    """Return a family that defines only the tags around reasoning."""
    thinking = Thinking(opens, closes, anywhere, implied, others)
    return _family(name, *(marks or (closes,)), thinking=thinking, vocabulary=not implied)


def _calls(name: str, opener: str, read: CallReader, *marks: str | tuple[str, ...], **parts: Any) -> ChatFamily:
    """Return a family with one opener. Without other `marks`, the opener identifies the family."""
    return _family(name, *(marks or (opener,)), calls={opener: read}, **parts)


_DSML = "\uff5cDSML\uff5c"
_OPEN_SOURCE = ":opensource"


def _hy_think(suffix: str) -> ChatFamily:
    return _tags(f"think{suffix}", f"<think{suffix}>", f"</think{suffix}>")


def _hy_calls(suffix: str) -> ChatFamily:
    """Return the family of Hy 3 and 4: Hunyuan's tags, each with a suffix that differs by checkpoint."""
    opener = f"<tool_calls{suffix}>"
    return _calls(f"hy{suffix}", opener, _with(key_value_calls, "", suffix), vocabulary=True)


# The marks of one family may be part of another's marks, so the more specific family comes first.
_OUTPUTS = (
    _whole("muse", ("<atem:function_calls>", "<|message|>"), MuseReader),
    _whole("harmony", ("<|channel|>", "<|message|>"), HarmonyReader),
    _whole("functionary-3.2", (">>>all",), FunctionaryReader),
    _whole("inkling", ("<|message_model|>", "<|content_text|>"), InklingReader),
)

# anywhere=True: the tags are control tokens, which an answer never quotes, so they are tags in every place.
_REASONING = (
    _tags("think", "<think>", "</think>"),
    # Gemma 4 now and then repeats the beginning of the tag.
    _tags(
        "gemma-thought",
        "<|channel>thought",
        "<channel|>",
        anywhere=True,
        others=(("<|channel><|channel>thought", "<channel|>"),),
    ),
    _tags("think-start", "<|think:start|>", "<|think:end|>", anywhere=True),
    _tags("mistral-think", "[THINK]", "[/THINK]", anywhere=True),
    _tags("seed-think", "<seed:think>", "</seed:think>"),
    _tags("longcat-think", "<longcat_think>", "</longcat_think>"),
    _tags("minimax-m3-think", "<mm:think>", "</mm:think>"),
    _tags("cohere-think", "<|START_THINKING|>", "<|END_THINKING|>", anywhere=True),
    _tags("apertus-think", "<|inner_prefix|>", "<|inner_suffix|>", anywhere=True),
    _tags("kimi-vl-think", "◁think▷", "◁/think▷"),
    _tags("thinking", "<thinking>", "</thinking>"),
    _hy_think(_OPEN_SOURCE),
    _tags(
        "plamo-think",
        PLAMO.format("begin_think"),
        PLAMO.format("end_think"),
        PLAMO.format("begin_think"),
        anywhere=True,
    ),
    # A pair of tags for each level of reasoning.
    _tags(
        "k2-horizon-think",
        "<ifm|think>",
        "</ifm|think>",
        "<ifm|think",
        others=tuple((f"<ifm|{tag}>", f"</ifm|{tag}>") for tag in ("think_fast", "think_faster")),
    ),
    # Quantized models contract the words.
    _tags(
        "granite-3.2",
        "Here is my thought process:",
        "Here is my response:",
        others=(("Here's my thought process:", "Here's my response:"),),
    ),
)

_ANSWERS = (
    _family(
        "apriel",
        "[BEGIN FINAL RESPONSE]",
        thinking=Thinking("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", implied=True),
        answer=(AnswerTags("[END FINAL RESPONSE]", anywhere=True),),
    ),
    _family(
        "cohere-answer",
        "<|START_RESPONSE|>",
        "<|START_TEXT|>",
        answer=(
            AnswerTags("<|START_RESPONSE|>", "<|END_RESPONSE|>", anywhere=True),
            AnswerTags("<|START_TEXT|>", "<|END_TEXT|>", anywhere=True),
        ),
    ),
    _family("granite-answer", "</response>", answer=(AnswerTags("<response>", "</response>"),)),
    _family("hunyuan-answer", "</answer>", answer=(AnswerTags("<answer>", "</answer>"),)),
)

_CALLS = (
    _calls("minimax-m3", f"{M3}<tool_call>", minimax_m3, M3),
    _calls("hermes", "<tool_call>", _with(tool_call, "</tool_call>")),
    _calls("seed-oss", "<seed:tool_call>", seed_call),
    _calls("qwen3-coder", "<function=", lone_function),
    _calls("minicpm5", "<function name=", named_function),
    _calls("hunyuan", "<tool_calls>", _with(key_value_calls, "", "")),
    _hy_calls(_OPEN_SOURCE),
    _calls("k2-horizon", "<ifm|tool_calls>", _with(key_value_calls, "ifm|", "")),
    _calls(
        "longcat",
        "<longcat_tool_call>",
        _with(tool_call, "</longcat_tool_call>", key_value_tags("longcat_")),
    ),
    _calls("minimax-m2", "<minimax:tool_call>", _with(invoke, "", "minimax:tool_call")),
    _calls("muse-calls", "<atem:function_calls>", _with(invoke, "atem:", "function_calls")),
    # The tags of DeepSeek V3.2 and V4 are put together from pieces in the template.
    _calls("deepseek-3.2", f"<{_DSML}function_calls>", _with(invoke, _DSML, "function_calls"), _DSML),
    _family(
        "deepseek-4",
        _DSML,
        calls={
            f"<{_DSML}{name}>": _with(invoke, _DSML, name)
            for name in ("tool_calls", "toolcalls", "tool")  # the model's own variants of the first
        },
    ),
    _calls("deepseek-4.1", f"<{_DSML} calls>", _with(invoke, f"{_DSML} ", "calls"), _DSML),
    _calls("mistral", "[TOOL_CALLS]", mistral, short_ids=True),
    _calls("nemotron", "<TOOLCALL>", _with(json_calls, "</TOOLCALL>")),
    _family(
        "gigachat-3",
        "<|function_call|>",
        ("function call", "<|role_sep|>"),
        calls={
            "<|function_call|>": _with(json_calls, "<|message_sep|>"),
            "function call<|role_sep|>": _with(json_calls, "<|message_sep|>"),
        },
        answer=(AnswerTags("<|message_sep|>", anywhere=True),),
    ),
    _calls("granite-3.3", "<|tool_call|>", _with(json_calls, "<|/tool_call|>"), "<|tool_call|>", vocabulary=True),
    _calls("granite-20b", "<function_call>", _with(json_calls, "</function_call>")),
    _calls(
        "internlm", "<|action_start|><|plugin|>", _with(json_calls, "<|action_end|>"), "<|plugin|>", vocabulary=True
    ),
    _calls("dots", "<dots_function_call>", _with(invoke, "", "dots_function_call")),
    _calls("phi-4-mini", "functools[", functools),
    _calls("cohere", "<|START_ACTION|>", _with(json_calls, "<|END_ACTION|>")),
    _calls("step-3", STEP.format("calls_begin"), step),
    _family(
        "plamo-3",
        PLAMO.format("begin_tool_requests"),
        calls={PLAMO.format("begin_tool_requests"): plamo},
        answer=(AnswerTags("<|plamo:tag|>", anywhere=True),),
    ),
    _calls("deepseek", DEEPSEEK.format("calls\u2581begin"), deepseek),
    _family(
        "kimi-k2",
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        calls={"<|tool_calls_section_begin|>": kimi, "<|tool_call_begin|>": _with(kimi, begun=True)},
    ),
    _family(
        "kimi-k3",
        ("<|open|>", "<|sep|>", "<|close|>"),
        thinking=Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>", anywhere=True),
        answer=(
            AnswerTags("<|open|>response<|sep|>", "<|close|>response<|sep|>", anywhere=True),
            AnswerTags("<|close|>message<|sep|>", "<|close|>tools<|sep|>", anywhere=True),
        ),
        calls={"<|open|>tools<|sep|>": kimi_k3, "<|open|>call ": _with(kimi_k3, begun=True)},
    ),
    _calls("apertus", "<|tools_prefix|>", _with(keyed, "<|tools_suffix|>")),
    _family(
        "solar-open",
        ("<|think|>", "<|content|>"),
        thinking=Thinking("<|think|>", "<|end|>", anywhere=True),
        answer=(
            AnswerTags("<|begin|>assistant", "<|flush|>", anywhere=True),
            AnswerTags("<|content|>", "<|end|>", anywhere=True),
        ),
        calls={"<|tool_calls|>": solar},
    ),
    _calls("gemma-4", "<|tool_call>", _with(gemma_calls, '<|"|>', "<tool_call|>")),
    _calls("function-gemma", "<start_function_call>", _with(gemma_calls, "<escape>", "<end_function_call>")),
    # LFM2's template names the list of tools, not the calls.
    _calls(
        "lfm2",
        "<|tool_call_start|>",
        _with(python_or_json, "<|tool_call_end|>"),
        "<|tool_call_start|>",
        "<|tool_list_start|>",
        vocabulary=True,
    ),
    _calls(
        "llama-4",
        "<|python_start|>",
        _with(python_or_json, "<|python_end|>"),
        ("<|header_start|>", "ipython"),
        "<|python_start|>",
        bare=True,
    ),
    _calls("llama-3-tag", "<|python_tag|>", python_or_json),
    _calls(
        "llama-3",
        "<|python_tag|>",
        python_or_json,
        ("<|start_header_id|>", "ipython"),
        ("<|start_header_id|>", "[func_name1("),
        bare=True,
    ),
    _calls("olmo-3", "<function_calls>", _with(python_calls, "</function_calls>")),
)

# The calls of models that were shown tools by the generic prompt. No template is detected by these marks.
_GENERIC = ChatFamily(
    "generic",
    (),
    calls={
        "```json": _with(json_calls, "```", bare=True),
        "```tool_call": _with(json_calls, "```", bare=True),
        "```tool_code": _with(python_or_json, "```", known=True),
    },
)


# Hy's template puts its tags together from a variable.
_SUFFIX = re.compile(r"""(?:</?(?:tool_calls|think)|\bset HYTK = ["'])(:[\w.-]{1,40})[>"']""")
SUFFIXED.append((_SUFFIX, lambda suffix: (_hy_think(suffix), _hy_calls(suffix))))

for _one in (*_OUTPUTS, *_REASONING, *_ANSWERS, *_CALLS, _GENERIC):
    register_chat_format(_one, first=False)

THINKING = tuple(family.thinking for family in _REASONING if family.thinking is not None)
"""The tags around reasoning that are known."""
