# SPDX-License-Identifier: Apache-2.0
"""How model families write a tool call whose arguments are JSON, for a grammar to force.

The counterpart of `formats`, which reads them. Families whose own notation has no
JSON in it (parameters in tags, Python, Gemma's) are forced to JSON: within the same tags
where their reader takes that too, else alone.
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

    `between` stands between two calls, if `several` may be made. `quoted`: the name stands in JSON.
    The default is a call as JSON alone.
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

# Llama 3 writes calls of its own tools alone, and takes "; " between them.
_LLAMA = Notation(middle='", "parameters": ', between="; ")

# Mistral since its 11th tokenizer, which has a token for what stands before the arguments.
_MISTRAL = Notation(before="[TOOL_CALLS]", middle="[ARGS]", after="", between="", quoted=False)

_HARMONY = Notation(
    before="<|channel|>commentary to=functions.",
    middle=" <|constrain|>json<|message|>",
    after="",
    several=False,
    quoted=False,
)


def notation(format: ChatFormat, names: Iterable[str] = (), vocabulary: Container[str] = ()) -> Notation | None:
    """How the models of this format write calls of tools with these names; None if not as JSON.

    `vocabulary`, the names of the model's special tokens, tells generations of a family apart.
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
