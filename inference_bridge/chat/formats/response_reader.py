# SPDX-License-Identifier: Apache-2.0
"""Reads an output according to the model's `response_template` (see the module of that name)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ...types import Tool, ToolCallDelta, join_tool_calls
from ..reader import HOLD_LIMIT, NoCallError, Reader, Steps, call_id, short_call_id
from ..values import Dialect, ValueScanner, as_json, property_schema, schema_types, typed
from .python_calls import python_calls
from .response_template import DELIMITER_LIMIT, Clock, Delimiter, Field, ResponseTemplate

_Watched: TypeAlias = Sequence[tuple[Field | None, Delimiter]]

# Text of a call that is not part of an argument, and may be ignored: the tags around the arguments.
_IGNORED = re.compile(r"<[^<>]*>|\s+")


class _Written(str):
    """The text of a value between tags. The schema of the value says how to read it."""

    __slots__ = ()


class ResponseReader(Reader):
    """Reads the outputs that a response template describes. With `tools`, calls are read too.

    Text outside the fields is not shown, as the template requires, unless all fields of the output are empty. A call
    that can't be read becomes text, with its delimiters.

    Args:
        template: The template.
        beginning: The beginning of the output, if the prompt ends with it.
        tools: The tools that may be called.
        short_ids: Whether the ids of calls are nine letters and digits.
    """

    def __init__(
        self, template: ResponseTemplate, beginning: str = "", tools: Iterable[Tool] = (), short_ids: bool = False
    ) -> None:
        super().__init__(tools, short_call_id if short_ids else call_id)
        self._template = template
        self._clock = Clock()
        self._empty = True
        self._outside: list[str] = []
        self._outside_size = 0
        self._opening = any(field.kind == "reasoning" for field in template.fields)
        self.phase = "opening" if self._opening else "answer"
        if beginning:
            self.feed(beginning, _discard)
            self.forget()
            self._empty = True
            self._outside.clear()
            self._outside_size = 0
            self._origin = -len(self.text)

    def read(self) -> Steps[None]:
        implicit = self._template.implicit
        fields = [field for field in self._template.fields if field.kind != "tool_call" or self.schemas]
        between: list[tuple[Field | None, Delimiter]] = [(field, field.opens) for field in fields if field.opens]
        if implicit is not None and implicit.closes is not None:
            between.append((None, implicit.closes))
        while True:
            found = yield from self._region(implicit, between)
            if found is None:
                break
            field, match = found
            if field is None:
                continue
            self._opening = False
            if field.kind == "tool_call":
                yield from self._call(field, match)
            elif (yield from self._region(field, [(None, field.closes)] if field.closes else [])) is None:
                break
        if self._empty and (text := "".join(self._outside)).strip():
            self._emit("text", self._origin + self.pos - len(text), text)

    # ------------------------------------------------ text

    def _region(self, field: Field | None, watched: _Watched) -> Steps[tuple[Field | None, Any] | None]:
        """Emit the text of a field up to a delimiter, and read past the delimiter.

        Return the field that the delimiter begins (None: it ends this one), and the match. None: the output has ended.
        """
        explicit = field is not None and field.opens is not None
        self.kind = "reasoning" if field is not None and field.kind == "reasoning" else "text"
        if self.kind == "reasoning":
            self.phase = "reasoning"
        else:
            self.phase = "opening" if self._opening and not explicit else "answer"
        begun = False
        while True:
            found, end = self._scan(watched)
            begun = self._emit_text(field, end, begun, found is not None)
            if found is not None:
                self.at = found[1].end()
                self.drop()
                return found
            if self.ended and end == len(self.text):
                return None
            if not self._goes_on(end):
                self.forget()
                yield

    def _goes_on(self, end: int) -> bool:
        """Continue at `end`. Return whether the present text must be searched again before more text arrives."""
        self.at = end
        if end == len(self.text) or (len(self.text) - end <= DELIMITER_LIMIT and not self.ended):
            return False
        self.at += 1  # a delimiter that begins here would be longer than the limit
        return True

    def _emit_text(self, field: Field | None, end: int, begun: bool, closes: bool) -> bool:
        """Emit the text up to `end`, if it belongs to a field. Return whether text of the field has been emitted.

        Args:
            field: The field. None: the text is outside the fields.
            end: The end of the text.
            begun: Whether earlier text of the field has been emitted.
            closes: Whether a delimiter follows.
        """
        if field is None:
            if self._empty and self._outside_size < HOLD_LIMIT:
                self._outside.append(self.text[self.pos : end])
                self._outside_size += max(end - self.pos, 0)
            self.pos = max(self.pos, end)
            return begun
        text = self.text[self.pos : end]
        if field.strip and not begun:
            self.pos += len(text) - len(text.lstrip())
        stop = end
        if field.strip and (closes or not self.ended):
            stop = self.pos + len(self.text[self.pos : end].rstrip())
        if stop <= self.pos:
            return begun
        self._empty = False
        if self.phase == "opening":
            self.phase = "answer"
        self._opening = False
        self.give(self.kind, stop)
        return True

    def _scan(self, watched: _Watched) -> tuple[tuple[Field | None, Any] | None, int]:
        """Return the first delimiter after `at`, and the place up to which the text contains no part of a delimiter."""
        best: tuple[Field | None, Any] | None = None
        clear = len(self.text)
        for field, delimiter in watched:
            match = self._clock.search(delimiter.pattern, self.text, self.at, partial=not self.ended)
            if match is None or (match.start() == match.end() and not match.partial):
                continue
            if (
                not self.ended and (match.partial or self._grows(delimiter, match))
            ) or match.end() - match.start() > DELIMITER_LIMIT:
                clear = min(clear, match.start())
            elif best is None or (match.start(), -match.end()) < (best[1].start(), -best[1].end()):
                best = field, match
        if best is not None and best[1].start() < clear:
            return best, best[1].start()
        return None, clear

    def _grows(self, delimiter: Delimiter, match: Any) -> bool:
        """Return whether more text could change a match."""
        if match.end() == len(self.text):
            return delimiter.grows
        if delimiter.literals or "$" not in delimiter.pattern.pattern:
            return False
        # `$` also matches before a line break at the end of the present text, which more text may follow.
        longer = self._clock.search(delimiter.pattern, self.text[match.start() : match.end() + 1] + "\0", 0)
        return longer is None or longer.span() != (0, match.end() - match.start())

    # ------------------------------------------------ calls

    def _call(self, field: Field, opened: Any) -> Steps[None]:
        """Read past the calls of a field, whose opening delimiter has been read."""
        phase, self.phase, self.kind = self.phase, "call", "text"
        self.pos = opened.start()
        self.keep()
        self.pos = self.at = opened.end()
        captured = {key: value for key, value in opened.groupdict().items() if value is not None}
        watched: _Watched = [(None, field.closes)] if field.closes is not None else []
        parts: list[str] = []
        size = 0
        while True:
            found, end = self._scan(watched)
            parts.append(self.text[self.pos : end])
            size += end - self.pos
            self.pos = self.at = end
            if found is not None:
                captured |= {key: value for key, value in found[1].groupdict().items() if value is not None}
                self.at = found[1].end()
                break
            if size > HOLD_LIMIT or (self.ended and end == len(self.text)):
                break
            if not self._goes_on(end):
                self.forget()
                yield
        calls = None if size > HOLD_LIMIT else self._calls(field, "".join(parts), captured)
        self._empty = False
        self.phase = "answer"
        if calls is None:
            self.phase = phase
            self.give_back("text")
            return
        for name, id, arguments in calls:
            self.begin_call(name, id)
            self.arguments(arguments, last=True)
        self.drop()
        self.settle()

    def _calls(self, field: Field, body: str, captured: Mapping[str, Any]) -> list[tuple[str, str | None, str]] | None:
        """Return the calls in the text of a field: name, id and arguments. None if the text can't be read."""
        try:
            value = self._content(field, body)
            if field.each:
                value = [_put_together(field.transform, {**captured, **item}) for item in value]
            elif field.transform is not None:
                value = _put_together(field.transform, {**captured, "content": value})
            calls = [self._one(item) for item in (value if isinstance(value, list) else [value])]
        except (NoCallError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return calls or None

    def _one(self, item: Any) -> tuple[str, str | None, str]:
        function = item.get("function", item)
        name, arguments, id = function["name"], function.get("arguments"), item.get("id")
        if isinstance(arguments, str) and not isinstance(arguments, _Written):
            arguments = json.loads(arguments or "{}")
        if not isinstance(name, str) or not name.strip() or not isinstance(arguments, Mapping | None):
            raise NoCallError
        name = name.strip()
        schema = self.schemas.get(name, {})
        written = [f"{as_json(key)}: {_value(value, key, schema)}" for key, value in (arguments or {}).items()]
        return str(name), id if isinstance(id, str) and id else None, "{" + ", ".join(written) + "}"

    def _content(self, field: Field, body: str) -> Any:
        arguments = field.content_args
        if field.content == "json":
            marks = arguments.get("string_delims") or [[""]]
            scanner = ValueScanner(Dialect(mark=marks[0][0]))
            body = body.strip()
            written, at = scanner.read(body, 0, last=True)
            if not scanner.done or body[at:].strip():
                raise NoCallError
            return json.loads(written)
        if field.content == "python-call-list":
            return _python_list(body, self.schemas)
        pairs: list[tuple[str, str]] = []
        if field.content == "xml-inline":
            end, between = 0, []
            for match in self._clock.all(arguments["tag_pattern"], body):
                pairs.append((match["key"], match["value"] or ""))
                between.append(body[end : match.start()])
                end = match.end()
            if _IGNORED.sub("", "".join((*between, body[end:]))):
                raise NoCallError
        else:
            separator = str(arguments.get("kv_sep", ":"))
            for line in body.split(str(arguments.get("line_sep", "\n"))):
                key, found, text = line.partition(separator)
                if line.strip() and not found:
                    raise NoCallError
                if found:
                    pairs.append((key.strip(), text.strip() if field.strip else text))
        values: dict[str, Any] = {}
        for key, text in pairs:
            value = _Written(text)
            if arguments.get("merge_duplicates") and key in values:
                before = values[key]
                values[key] = [*(before if isinstance(before, list) else [before]), value]
            else:
                values[key] = value
        return values


def _value(value: Any, key: str, schema: Mapping[str, Any]) -> str:
    """Return a value of a call as JSON. The schema says how to read text between tags."""
    types = schema_types(property_schema(schema, key, schema), schema)
    if isinstance(value, _Written):
        return typed(str(value), types, False)
    if isinstance(value, list) and any(isinstance(item, _Written) for item in value):
        return f"[{', '.join(typed(str(item), types - {'array'}, False) for item in value)}]"
    return as_json(value)


def _put_together(transform: Any, scope: Mapping[str, Any]) -> Any:
    """Return a transform in which the placeholders, such as {content.name}, are replaced by their values."""
    if isinstance(transform, Mapping):
        return {key: _put_together(inner, scope) for key, inner in transform.items()}
    if isinstance(transform, list):
        return [_put_together(inner, scope) for inner in transform]
    if not isinstance(transform, str) or not re.fullmatch(r"\{\w+(\.\w+)*\}", transform):
        return transform
    value: Any = scope
    for key in transform[1:-1].split("."):
        value = value[key]
    return value


class _PythonCalls(Reader):
    def read(self) -> Steps[None]:
        yield from python_calls(self)


def _python_list(body: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    deltas: list[ToolCallDelta] = []

    def emit(kind: str, offset: int, text: str = "", tool_call: ToolCallDelta | None = None) -> None:
        if tool_call is not None:
            deltas.append(tool_call)

    reader = _PythonCalls([Tool(name, "", dict(schema)) for name, schema in schemas.items()])
    reader.feed(body.strip(), emit)
    reader.finish(emit)
    if reader.text[reader.pos :].strip():
        raise NoCallError
    return [{"name": call.name, "arguments": call.arguments} for call in join_tool_calls(deltas)]


def _discard(kind: str, offset: int, text: str = "", tool_call: ToolCallDelta | None = None) -> None:
    """Do nothing: the prompt already contains this part of the output."""
