# SPDX-License-Identifier: Apache-2.0
"""How model families mark what isn't their answer, and which family a chat template belongs to.

A `ChatFamily` names the text by which its chat templates are known, and what its models
write: reasoning tags, tags around the answer, and for each text that opens a tool call the
function that reads what follows. `detect_format` combines the families that a template
names into the `ChatFormat` of one model.

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
"""Reads what follows an opener: begins the calls and hands on their arguments, or raises NoCallError."""

OutputReader: TypeAlias = Callable[[Iterable[Tool]], Reader]
"""Makes the parser of a whole output from the tools that may be called."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags around reasoning.

    Args:
        opens: The tag that begins it.
        closes: The tag that ends it.
        anywhere: The tags are read wherever they stand, not only before the answer. Set it
            where they are control tokens that no answer quotes.
        implied: The answer begins inside reasoning, without the tag.
        others: Further pairs of tags (opens, closes) around reasoning, such as one for each degree of it.
    """

    opens: str
    closes: str
    anywhere: bool = False
    implied: bool = False
    others: tuple[tuple[str, str], ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs of tags: this one first."""
        return ((self.opens, self.closes), *self.others)

    def begun_in(self, prompt: str) -> Thinking:
        """The same tags, with the pair first whose opening tag a prompt ends with."""
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
        closes: The tag behind it; "" if there is none.
        anywhere: They are control tokens, and are not shown wherever they stand. Otherwise
            `opens` counts only at the beginning of the answer, and `closes` only behind it.
    """

    opens: str
    closes: str = ""
    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class ChatFamily:
    """What the models of one family write.

    Args:
        name: Its name, unique among the families.
        marks: The family is known by any of these sets of texts: all of a set stand in the
            chat template, or are tokens of the model where the template doesn't name them.
        thinking: The tags around reasoning.
        answer: The tags around the answer.
        calls: For each text that opens a tool call, the reader of what follows it.
        bare: A call may also stand at the start of the answer, as JSON alone.
        short_ids: The id of a call is nine letters and digits.
        output: The parser of the whole output, for families whose output is made of messages
            with headers. The rest then says nothing.
        vocabulary: Look for `marks` among the model's tokens too.
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
    """How one model marks what isn't its answer: what its families have in common.

    Args:
        thinking: The tags around reasoning.
        openers: The texts that begin tool calls.
        bare: A call may also stand at the start of the answer as JSON alone, or in Python's notation.
        short_ids: A call's id is nine letters and digits.
        harmony: The whole output is in Harmony, and the rest says nothing.
        answer: The tags around the answer.
        output: The name of the family whose parser reads the whole output; "" for none.
        values: How the template writes values between tags.
        response: The response template of the model, which then reads the output.
        beginning: What of the output is in the prompt already, for `response`.
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


# What models write that were shown tools by the generic prompt (see generic_tools).
GENERIC_OPENERS = ("<tool_call>", "```json", "```tool_call", "```tool_code")

FAMILIES: dict[str, ChatFamily] = {}
"""The families by name, the one to ask first at the front."""

OPENERS: dict[str, CallReader] = {}
"""The reader of each text that opens a tool call."""

SUFFIXED: list[tuple[re.Pattern[str], Callable[[str], Iterable[ChatFamily]]]] = []
"""Families whose tags end in a suffix of the checkpoint: what finds it in a chat template, and what makes them."""
_MOST_SUFFIXES = 4


def register_chat_format(family: ChatFamily, *, first: bool = True) -> None:
    """Teach the parsers another model family.

    It is looked for in the chat templates of the models that are loaded afterwards. A family
    of the same name is replaced. A family with an opener that another one has too replaces
    its reader.

    Args:
        family: What its models write.
        first: Ask it before the families that are there; otherwise after them.

    Raises:
        ValueError: A text to be known by, an opener or a tag is empty.
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
    """The format of the models that use this chat template.

    Args:
        template: The source of the chat template.
        vocabulary: The texts of the model's tokens. They tell of reasoning tags and tool-call
            tags that the template doesn't name.

    Returns:
        The format. A template that names no notation for calls gets the generic one.
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
    # What the vocabulary alone tells of answers and calls is taken only where the template is silent.
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
    """The families that this template names with a suffix."""
    found: list[ChatFamily] = []
    for pattern, make in SUFFIXED:
        for suffix in sorted(set(pattern.findall(template)))[:_MOST_SUFFIXES]:
            found += make(suffix)
    for family in found:
        OPENERS.update(family.calls)
    return found
