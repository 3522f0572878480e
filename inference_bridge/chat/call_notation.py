# SPDX-License-Identifier: Apache-2.0
"""How model families write a tool call whose arguments are JSON: constrained decoding forces this notation.

`formats` reads calls; this module describes how to write them. Families whose own notation has no
JSON in it (parameters in tags, Python, Gemma's) are forced to write JSON: within their own tags
if their reader accepts JSON there, otherwise without tags.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

from .formats import ChatFormat
from .formats.json_calls import DEEPSEEK


@dataclass(frozen=True, slots=True)
class Notation:
    """The texts around calls: `opens`, then for each call `before` name `middle` arguments `after`, then `closes`.

    `between` separates two calls. The default is a call as plain JSON without tags.

    Attributes:
        several: Whether one answer may contain several calls.
        quoted: Whether the name is part of a JSON string, and is escaped as such.
    """

    before: str = '{"name": "'
    middle: str = '", "arguments": '
    after: str = "}"
    opens: str = ""
    closes: str = ""
    between: str = "\n"
    several: bool = True
    quoted: bool = True


def _tagged(opens: str, closes: str) -> Notation:
    return Notation(before=f'{opens}\n{{"name": "', after=f"}}\n{closes}")


def _listed(opens: str, closes: str) -> Notation:
    return Notation(opens=f"{opens}[", closes=f"]{closes}", between=", ")


_NOTATIONS = {
    "<tool_call>": _tagged("<tool_call>", "</tool_call>"),
    "<seed:tool_call>": _tagged("<seed:tool_call>", "</seed:tool_call>"),
    "[TOOL_CALLS]": _listed("[TOOL_CALLS]", ""),
    "<TOOLCALL>": _listed("<TOOLCALL>", "</TOOLCALL>"),
    "<|tool_call|>": _listed("<|tool_call|>", ""),
    "functools[": _listed("functools", ""),
    "<|START_ACTION|>": Notation(
        opens="<|START_ACTION|>[\n    ",
        before='{"tool_call_id": "0", "tool_name": "',
        middle='", "parameters": ',
        closes="\n]<|END_ACTION|>",
        between=",\n    ",
    ),
    "<function=": Notation(before="<function=", middle=">", after="</function>", quoted=False),
    DEEPSEEK.format("calls\u2581begin"): Notation(
        opens=DEEPSEEK.format("calls\u2581begin"),
        before=DEEPSEEK.format("call\u2581begin") + "function" + DEEPSEEK.format("sep"),
        middle="\n```json\n",
        after="\n```" + DEEPSEEK.format("call\u2581end"),
        closes=DEEPSEEK.format("calls\u2581end"),
        quoted=False,
    ),
}

# Llama 3 writes only the calls, without tags, and separates them with "; ".
_LLAMA = Notation(middle='", "parameters": ', between="; ")

# Mistral's tokenizers since the 11th have a special token before the arguments.
_MISTRAL = Notation(before="[TOOL_CALLS]", middle="[ARGS]", after="", between="", quoted=False)

_HARMONY = Notation(
    before="<|channel|>commentary to=functions.",
    middle=" <|constrain|>json<|message|>",
    after="",
    several=False,
    quoted=False,
)


def notation(format: ChatFormat, names: Iterable[str] = (), vocabulary: Container[str] = ()) -> Notation | None:
    """Return how the models of this format write calls of tools with these names. None: their notation has no JSON.

    Args:
        format: The model's format.
        names: The names of the tools: a notation without quotes can write only some names.
        vocabulary: The texts of the model's special tokens, which distinguish the generations of a family.
    """
    plain = all(re.fullmatch(r"[\w.:/-]+", name) for name in names)
    if format.harmony:
        return _HARMONY
    for opener in format.openers:
        if opener == "<|python_tag|>" and format.bare:
            return _LLAMA
        found = _MISTRAL if opener == "[TOOL_CALLS]" and "[ARGS]" in vocabulary and plain else _NOTATIONS.get(opener)
        if opener == "<|tool_call|>" and "<|/tool_call|>" in vocabulary:
            found = _listed("<|tool_call|>", "<|/tool_call|>")
        if found is not None and (found.quoted or plain):
            return found
    return None
