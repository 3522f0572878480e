# SPDX-License-Identifier: Apache-2.0
"""Finds the names of special tokens in a text, and keeps text of users from becoming special tokens.

A chat template writes special tokens by their names. Text of a user, a tool or a document may contain the same names,
but must not become these tokens. So before the template is rendered, a mark is inserted into each name in such text: a
character that occurs in none of the texts. The tokenizer reads the template's own names as special tokens. It removes
the marks, and reads a name that had a mark as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..types import Message, Tool, ToolCall

_WINDOW = 1 << 16
"""Characters that are searched in one call, which holds the interpreter's lock for about 1 ms."""

_OFTEN = 1024
"""`check` is called once for this number of texts."""

_MARKS = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF8FF))]
"""Noncharacters of Unicode, followed by characters for private use."""

USUAL_MARK = _MARKS[0]
"""The mark, unless a text already contains it."""


def no_check() -> None:
    """Do nothing: the default of `check`, which is called between two parts of the work and may raise to abort it."""


class Names:
    """Finds a set of names in a text, in time linear in the length of any text."""

    def __init__(self, names: Iterable[str]) -> None:
        self._known = frozenset(filter(None, names))
        self._longest = max(map(len, self._known), default=0)
        self._pattern = re.compile(_expression(self._known), re.DOTALL) if self._known else None
        self._within = {name: self._beginnings(name) for name in self._known}
        self._parts = frozenset(name[:end] for name in self._known for end in range(1, len(name)))
        self._ends = frozenset(part[-1] for part in self._parts)

    def _beginnings(self, name: str) -> tuple[str, ...]:
        return tuple(name[:end] for end in range(1, len(name) + 1) if name[:end] in self._known)

    def find(self, text: str, check: Callable[[], None] = no_check) -> Iterator[tuple[int, str]]:
        """Yield every occurrence of a name, also overlapping ones, in the order of the text.

        Args:
            text: The text.
            check: Called between two parts of the work. It may raise to abort it.

        Yields:
            The index at which the name begins, and the name.
        """
        if self._pattern is None:
            return
        search = self._pattern.search
        for start in range(0, len(text), _WINDOW):
            check()
            at, end = start, min(start + _WINDOW, len(text))
            while at < end and (found := search(text, at, end + self._longest)) and found.start() < end:
                for name in self._within[found[0]]:
                    yield found.start(), name
                at = found.start() + 1

    def shielded(self, text: str, mark: str) -> str:
        """Return the text with `mark` in each name. If a name may begin at the end of the text, a mark is appended."""
        places = {at + 1 for at, _ in self.find(text)}
        if self._begins_at_end(text):
            places.add(len(text))
        if not places:
            return text
        cuts = [0, *sorted(places), len(text)]
        return mark.join(text[begin:end] for begin, end in pairwise(cuts))

    def touch(self, text: str, check: Callable[[], None] | None = None) -> bool:
        """Return whether `shielded` would change the text. `check` is as for `find`."""
        found = next(self.find(text, check or no_check), None)
        return found is not None or self._begins_at_end(text)

    def _begins_at_end(self, text: str) -> bool:
        if text[-1:] not in self._ends:
            return False
        return any(text[-length:] in self._parts for length in range(1, min(self._longest, len(text) + 1)))


def _expression(names: Iterable[str]) -> str:
    """Return a regular expression for the longest name. Names share their prefixes, which limits backtracking."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    try:
        return _branch(tree)
    except RecursionError:  # a name of hundreds of characters
        return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _branch(node: Mapping[str, Any]) -> str:
    branches = [re.escape(character) + _branch(rest) for character, rest in sorted(node.items()) if character]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return f"{body}?" if "" in node else body


class Shield:
    """Inserts a mark into names of special tokens in text of users, tools and documents."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = Names(name for name in names if len(name) > 1)

    def mark_for(self, *values: Any, check: Callable[[], None] = no_check) -> str:
        """Find a character that none of the texts contains, neither as itself nor as JSON escapes it.

        Args:
            values: Messages, tools, texts, and lists and mappings of these.
            check: Called between two parts of the work. It may raise to abort it.

        Returns:
            The character; "" if none of the texts needs one.
        """
        texts: set[str] = set()
        for number, text in enumerate(_texts(values)):
            if number % _OFTEN == 0:
                check()
            texts.add(text)
        if not any(
            self._names.touch(text, check if number % _OFTEN == 0 else None) for number, text in enumerate(texts)
        ):
            return ""
        return next(mark for mark in _MARKS if not any(mark in text or _escaped(mark) in text for text in texts))

    def messages(self, messages: Sequence[Message], mark: str) -> Sequence[Message]:
        """Return the messages with `mark` in each name of a special token in their texts."""
        return [
            replace(
                message,
                role=self.plain(message.role, mark),
                content=self.plain(message.content, mark),
                tool_calls=[
                    replace(
                        call,
                        id=self.plain(call.id, mark),
                        name=self.plain(call.name, mark),
                        arguments=self.plain(call.arguments, mark),
                    )
                    for call in message.tool_calls
                ],
                tool_call_id=self.plain(message.tool_call_id, mark),
                name=self.plain(message.name, mark),
                reasoning=self.plain(message.reasoning, mark),
            )
            for message in messages
        ]

    def tools(self, tools: Sequence[Tool], mark: str) -> Sequence[Tool]:
        """Return the tools with `mark` in each name of a special token in their texts."""
        return [
            Tool(*(self.plain(part, mark) for part in (tool.name, tool.description, tool.parameters))) for tool in tools
        ]

    def plain(self, value: Any, mark: str) -> Any:
        """Return a JSON value with `mark` in each name of a special token in its texts."""
        if isinstance(value, str):
            return self._names.shielded(value, mark)
        if isinstance(value, Mapping):
            return {self.plain(key, mark): self.plain(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item, mark) for item in value]
        return value


def unmarked(text: str, mark: str) -> str:
    """Return the text without marks, also without those that the template wrote as a JSON escape."""
    return text.replace(mark, "").replace(_escaped(mark), "")


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield value.role
        yield from (part for part in value.parts if isinstance(part, str))
        if value.tool_calls:
            yield from _texts(value.tool_calls)
        yield from (text for text in (value.tool_call_id, value.name, value.reasoning) if text)
    elif isinstance(value, ToolCall):
        yield from _texts((value.id, value.name, value.arguments))
    elif isinstance(value, Tool):
        yield from _texts((value.name, value.description, value.parameters))
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
