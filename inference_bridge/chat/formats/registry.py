# SPDX-License-Identifier: Apache-2.0
"""How model families mark reasoning and tool calls, and which families a chat template belongs to.

A `ChatFamily` states the texts that identify its chat templates, and the notation of its models:
reasoning tags, tags around the answer, and for each text that opens a tool call the
function that reads the call after it. `detect_format` combines the families that a template
contains into the `ChatFormat` of one model.

The families of `builtin` are registered with the same `register_chat_format` that other
packages use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ...types import Tool
from ..reader import Reader, Steps, ValueStyle
from .response_template import ResponseTemplate

CallReader: TypeAlias = Callable[[Reader], Steps[None]]
"""Reads the text after an opener: begins the calls and emits their arguments, or raises NoCallError."""

OutputReader: TypeAlias = Callable[[Iterable[Tool]], Reader]
"""Makes the parser of a whole output from the tools that may be called."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags around reasoning.

    Args:
        opens: The tag that begins it.
        closes: The tag that ends it.
        anywhere: Whether the tags count in every place, not only before the answer. Set it
            if they are control tokens, which an answer never quotes.
        implied: Whether the output begins inside reasoning, without the opening tag.
        others: Further pairs of tags (opens, closes) around reasoning, such as one for each level of it.
    """

    opens: str
    closes: str
    anywhere: bool = False
    implied: bool = False
    others: tuple[tuple[str, str], ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs of tags, `opens` and `closes` first."""
        return ((self.opens, self.closes), *self.others)

    def begun_in(self, prompt: str) -> Thinking:
        """Return the same tags, with the pair first whose opening tag is at the end of a prompt.

        Args:
            prompt: The prompt, as the chat template has rendered it.
        """
        for opens, closes in self.others:
            if prompt.endswith(opens):
                rest = tuple(pair for pair in self.pairs if pair != (opens, closes))
                return replace(self, opens=opens, closes=closes, others=rest)
        return self


@dataclass(frozen=True, slots=True)
class AnswerTags:
    """Tags around an answer, which are not shown.

    Args:
        opens: The tag before the answer.
        closes: The tag after the answer; "" if there is none.
        anywhere: Whether they are control tokens, which are hidden in every place. Otherwise
            `opens` counts only at the beginning of the answer, and `closes` only after `opens`.
    """

    opens: str
    closes: str = ""
    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class ChatFamily:
    """The notation of the models of one family.

    Args:
        name: The family's name, unique among the families.
        marks: Sets of texts that identify the family. One set is enough: all its texts must be in the
            chat template, or with `vocabulary` among the model's tokens.
        thinking: The tags around reasoning.
        answer: The tags around the answer.
        calls: For each text that opens a tool call, the reader of the call after it.
        bare: Whether the answer may also begin with a call as plain JSON without an opener.
        short_ids: Whether the id of a call must be nine letters and digits.
        output: The parser of the whole output, for families whose output consists of messages
            with headers. The other notations are then ignored.
        vocabulary: Whether to search for `marks` among the model's tokens too.
    """

    name: str
    marks: Sequence[Sequence[str]]
    thinking: Thinking | None = None
    answer: Sequence[AnswerTags] = ()
    calls: Mapping[str, CallReader] = field(default_factory=dict)
    bare: bool = False
    short_ids: bool = False
    output: OutputReader | None = None
    vocabulary: bool = False


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How one model marks reasoning and tool calls: the notations of its families together.

    Args:
        thinking: The tags around reasoning.
        openers: The texts that begin tool calls.
        bare: Whether the answer may also begin with a call without an opener, as JSON or in Python's notation.
        short_ids: Whether a call's id must be nine letters and digits.
        harmony: Whether the whole output is in Harmony. The other notations are then ignored.
        answer: The tags around the answer.
        output: The name of the family whose parser reads the whole output; "" for none.
        values: How the template writes values between tags.
        response: The response template of the model. If it is set, it reads the output.
        beginning: The part of the output that the prompt already contains, for `response`.
    """

    thinking: Thinking | None = None
    openers: tuple[str, ...] = ()
    bare: bool = False
    short_ids: bool = False
    harmony: bool = False
    answer: tuple[AnswerTags, ...] = ()
    output: str = ""
    values: ValueStyle = ""
    response: ResponseTemplate | None = None
    beginning: str = ""


# The openers of models that were shown tools by the generic prompt (see generic_tools).
GENERIC_OPENERS = ("<tool_call>", "```json", "```tool_call", "```tool_code")

FAMILIES: dict[str, ChatFamily] = {}
"""The families by name, in the order in which they are tried."""

OPENERS: dict[str, CallReader] = {}
"""The reader of each text that opens a tool call."""

SUFFIXED: list[tuple[re.Pattern[str], Callable[[str], Iterable[ChatFamily]]]] = []
"""Families whose tags end in a checkpoint's suffix: the expression that finds it, and a function that makes them."""
_MAX_SUFFIXES = 4


def register_chat_format(family: ChatFamily, *, first: bool = True) -> None:
    """Add a model family, or replace the one with the same name.

    It is used for models that are loaded afterwards. If another family has the same opener, this family's
    reader replaces the other one.

    Args:
        family: The family.
        first: Whether to try it before the other families; otherwise after them.

    Raises:
        ValueError: The name, a mark, an opener or a tag is empty.
    """
    tags = [closes for _, closes in family.thinking.pairs] if family.thinking is not None else []
    tags += [tag.opens for tag in family.answer]
    if (
        not family.name
        or not all(family.marks)
        or not all((*family.calls, *tags, *(m for s in family.marks for m in s)))
    ):
        raise ValueError(f"chat format {family.name!r}: the name, its marks, openers and tags must not be empty")
    others = {name: other for name, other in FAMILIES.items() if name != family.name}
    FAMILIES.clear()
    FAMILIES.update({family.name: family, **others} if first else {**others, family.name: family})
    OPENERS.update(family.calls)


def detect_format(template: str, vocabulary: Container[str] = ()) -> ChatFormat:
    """Return the format of the models that use this chat template.

    Args:
        template: The source of the chat template.
        vocabulary: The texts of the model's tokens. They show reasoning tags and tool-call
            tags that the template doesn't contain.

    Returns:
        The format. If neither contains the tags of tool calls, the openers are GENERIC_OPENERS.
    """
    named: list[ChatFamily] = []
    known: list[ChatFamily] = []
    named += _suffixed(template)
    for family in FAMILIES.values():
        if any(all(mark in template for mark in marks) for marks in family.marks):
            named.append(family)
        elif family.vocabulary and any(all(mark in vocabulary for mark in marks) for marks in family.marks):
            known.append(family)
    whole = next((family for family in named if family.output is not None), None)
    if whole is not None:
        return ChatFormat(harmony=True) if whole.name == "harmony" else ChatFormat(output=whole.name)
    found = [*named, *known]
    thinking = next((family.thinking for family in found if family.thinking is not None), None)
    # The vocabulary's openers are used only if the template contains none.
    openers = dict.fromkeys(opener for family in named for opener in family.calls)
    openers = openers or dict.fromkeys(opener for family in known for opener in family.calls)
    return ChatFormat(
        thinking,
        tuple(openers) or GENERIC_OPENERS,
        bare=any(family.bare for family in named) or not openers,
        short_ids=any(family.short_ids for family in named),
        answer=tuple(dict.fromkeys(tags for family in named for tags in family.answer)),
    )


def _suffixed(template: str) -> list[ChatFamily]:
    """Return the families whose tags this template contains with a suffix."""
    found: list[ChatFamily] = []
    for pattern, make in SUFFIXED:
        for suffix in sorted(set(pattern.findall(template)))[:_MAX_SUFFIXES]:
            found += make(suffix)
    for family in found:
        OPENERS.update(family.calls)
    return found
