# SPDX-License-Identifier: Apache-2.0
"""The `response_template` of a tokenizer_config.json describes how the output of a model is read.

Transformers (5.13 and later) reads outputs with it. A template has fields. A field is a region of the output between
two delimiters: the answer, the reasoning, or tool calls. The format is described in
https://huggingface.co/docs/transformers/chat_response_parsing.

A template comes from the model's files. Its delimiters may be regular expressions, and some regular expressions take
exponential time. So the length and the syntax of the expressions are limited, and so is the time of each search and of
all searches in one output. The package `regex`, which transformers requires, can stop a search after a given time.

The parser of transformers is not used. It has no such limits, returns a call only at the end of its region, fails
completely on a call that can't be read, and keeps only the last text if there are several.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ...errors import GenerationError

Kind: TypeAlias = Literal["text", "reasoning", "tool_call"]

# Maximum number of characters of a delimiter in an output, of a pattern, and of the end of a prompt that is searched.
DELIMITER_LIMIT = 512
_PATTERN_LIMIT = 500
_PROMPT_END = 4096
_MAX_FIELDS = 32
# Maximum seconds of one search, of one search in the text of a call, and of all searches in one output.
_SEARCH_SECONDS = 0.02
_BODY_SECONDS = 0.1
_OUTPUT_SECONDS = 1.0

_TEMPLATE_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_FIELD_KEYS = {"open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats", "join"}
_FIELD_KEYS |= {"optional", "transform", "transform_each"}
_CALL_PARSERS = ("json", "xml-inline", "kv-lines", "python-call-list")
_TEXT_PARSERS = ("text", "int", "float", "bool")
_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")

# One step of a regular expression: an escape, a class of characters, a group's beginning, a repeat, a character.
_STEP = re.compile(r"\\(?P<escape>.)|(?P<set>\[\^?\]?(?:\\.|[^\\\]])*\])|\(\?(?P<group>.{0,2})|(?P<other>.)", re.DOTALL)
_REPEAT = re.compile(r"\{(\d{0,3})(,\d{0,3})?\}")
_ESCAPES = frozenset("dDsSwWnrtfvxuUZ")


class ResponseTemplateError(ValueError):
    """A response template is not valid, or uses a feature that is not supported."""


@dataclass(frozen=True, slots=True)
class Delimiter:
    """The beginning or the end of a field.

    Args:
        pattern: The compiled expression.
        literals: The texts that it matches; empty if the template has a regular expression.
        grows: Whether a match at the end of the text may become longer with more text.
    """

    pattern: Any
    literals: tuple[str, ...]
    grows: bool


@dataclass(frozen=True, slots=True)
class Field:
    """A region of the output.

    Args:
        kind: The kind of its text.
        opens: The delimiter at its beginning. None: all text outside the other fields belongs to it.
        closes: The delimiter at its end. None: it ends with the output; without `opens`, where another field begins.
        strip: Whether white space at both ends is removed.
        content: The name of the parser of its text.
        content_args: The arguments of the parser.
        transform: The form into which the result of the parser is put. None: it is not changed.
        each: Whether the result is a list, and the transform applies to each item.
    """

    kind: Kind
    opens: Delimiter | None
    closes: Delimiter | None
    strip: bool
    content: str
    content_args: Mapping[str, Any]
    transform: Any
    each: bool


@dataclass(frozen=True, slots=True, eq=False)
class ResponseTemplate:
    """A checked response template.

    Args:
        fields: The fields that begin with a delimiter.
        implicit: The field of the text outside the other fields, if the template has one.
        anchor: The delimiter before the output in a prompt.
    """

    fields: tuple[Field, ...]
    implicit: Field | None
    anchor: Delimiter

    @property
    def thinking(self) -> tuple[str, str] | None:
        """The tags around reasoning. None if the template has none, or has regular expressions for them."""
        for field in self.fields:
            if field.kind == "reasoning" and field.opens is not None and field.closes is not None:
                opens, closes = field.opens.literals, field.closes.literals
                return (opens[0], closes[0]) if opens and closes else None
        return None

    def beginning(self, prompt: str) -> str:
        """Return the beginning of the output, if the prompt already contains it, such as a tag before reasoning."""
        end = prompt[-_PROMPT_END:]
        if self.anchor.literals:
            places = [end.rfind(literal) + len(literal) for literal in self.anchor.literals if literal in end]
            return end[max(places) :] if places else ""
        at, clock = -1, Clock()
        while (match := clock.search(self.anchor.pattern, end, max(at, 0))) is not None and match.end() > at:
            at = match.end()
        return end[at:] if at >= 0 else ""


class Clock:
    """Limits the processor time of the searches in one output.

    The time for which the thread waits for a processor does not count. Otherwise answers would fail on a busy machine.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def search(self, pattern: Any, text: str, at: int, partial: bool = False) -> Any:
        """Return the first match after `at`. With `partial`, the match may be cut off by the end of the text.

        Raises:
            GenerationError: The search, or all searches together, took too long.
        """
        begun = time.thread_time()
        try:
            return pattern.search(text, at, partial=partial, timeout=_SEARCH_SECONDS)
        except TimeoutError:
            raise _too_long() from None
        finally:
            self._add(begun)

    def all(self, pattern: Any, text: str) -> list[Any]:
        """Return all matches in a text. Raises GenerationError as `search` does."""
        begun = time.thread_time()
        try:
            return list(pattern.finditer(text, timeout=_BODY_SECONDS))
        except TimeoutError:
            raise _too_long() from None
        finally:
            self._add(begun)

    def _add(self, begun: float) -> None:
        self._seconds += time.thread_time() - begun
        if self._seconds > _OUTPUT_SECONDS:
            raise _too_long()


def _too_long() -> GenerationError:
    return GenerationError(
        "an expression in the model's response_template (tokenizer_config.json) takes too long on this answer; "
        "remove the template from the file, or load the model with chat_template=, which does not use it"
    )


# ---------------------------------------------------------------- loading


def load_response_template(given: Any) -> ResponseTemplate:
    """Check a response template, and compile it.

    Args:
        given: The template, decoded from JSON.

    Returns:
        The checked template.

    Raises:
        ResponseTemplateError: It is not valid, or uses a feature that is not supported.
    """
    if not isinstance(given, Mapping):
        raise ResponseTemplateError(f"it is a {type(given).__name__}, not an object")
    version = given.get("version", 1)
    if version != 1:
        raise ResponseTemplateError(f"its version is {str(version)[:20]!r}, but only version 1 is supported")
    _known(given, _TEMPLATE_KEYS, "it")
    fields = given.get("fields")
    if not isinstance(fields, Mapping) or not 0 < len(fields) <= _MAX_FIELDS:
        raise ResponseTemplateError(f"its 'fields' are not an object of 1 to {_MAX_FIELDS} fields")
    anchor = _delimiter(given, "start_anchor", "start_anchor_pattern", "it")
    if anchor is None:
        raise ResponseTemplateError("it has no start_anchor")
    made = [_field(str(name), field) for name, field in fields.items()]
    implicit = [field for field in made if field.opens is None]
    if len(implicit) > 1 or any(field.kind == "tool_call" for field in implicit):
        raise ResponseTemplateError("only one field may have no 'open', and this field can't be the tool calls")
    return ResponseTemplate(tuple(f for f in made if f.opens is not None), next(iter(implicit), None), anchor)


def _field(name: str, given: Any) -> Field:
    where = f"its field {name[:40]!r}"
    if not isinstance(given, Mapping):
        raise ResponseTemplateError(f"{where} is not an object")
    _known(given, _FIELD_KEYS, where)
    kind: Kind = "tool_call" if name == "tool_calls" else "text" if name == "content" else "reasoning"
    content, arguments = given.get("content", "text"), given.get("content_args", {})
    if content not in (_CALL_PARSERS if kind == "tool_call" else _TEXT_PARSERS) or not isinstance(arguments, Mapping):
        raise ResponseTemplateError(f"{where} has the content parser {str(content)[:40]!r}, which is not supported")
    if kind == "tool_call":
        arguments = _checked_content(content, arguments, where)
        _check_transform(given.get("transform"), where)
    return Field(
        kind,
        _delimiter(given, "open", "open_pattern", where),
        _delimiter(given, "close", "close_pattern", where),
        arguments.get("strip", True) is not False,
        content,
        dict(arguments),
        given.get("transform"),
        given.get("transform_each") is True,
    )


def _checked_content(content: str, arguments: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the checked arguments of a content parser, with its expression compiled."""
    if content == "xml-inline":
        pattern = compiled(arguments.get("tag_pattern"), f"{where}: tag_pattern")
        if not {"key", "value"} <= set(pattern.groupindex):
            raise ResponseTemplateError(f"{where}: tag_pattern has no groups 'key' and 'value'")
        arguments = {**arguments, "tag_pattern": pattern}
    marks = arguments.get("string_delims")
    if content == "json" and marks:
        same = isinstance(marks, list) and len(marks) == 1 and isinstance(marks[0], list) and len(marks[0]) == 2
        if not same or marks[0][0] != marks[0][1] or not isinstance(marks[0][0], str) or not marks[0][0]:
            raise ResponseTemplateError(f"{where}: string_delims must be one pair of equal marks, as in [['|', '|']]")
    for name in ("line_sep", "kv_sep"):
        if content == "kv-lines" and not (isinstance(arguments.get(name, " "), str) and arguments.get(name, " ")):
            raise ResponseTemplateError(f"{where}: {name} is not a text")
    return arguments


def _check_transform(transform: Any, where: str, depth: int = 0) -> None:
    if depth > 20:
        raise ResponseTemplateError(f"{where}: its transform is too deep")
    if isinstance(transform, Mapping | list):
        for inner in transform.values() if isinstance(transform, Mapping) else transform:
            _check_transform(inner, where, depth + 1)
    elif isinstance(transform, str) and _PLACEHOLDER.search(transform) and not _PLACEHOLDER.fullmatch(transform):
        raise ResponseTemplateError(f"{where}: its transform mixes a placeholder with text: {transform[:40]!r}")


def _known(given: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    unknown = sorted(str(key)[:40] for key in set(given) - set(keys))
    if unknown:
        raise ResponseTemplateError(f"{where} has unknown keys: {', '.join(unknown)}")


def _delimiter(given: Mapping[str, Any], literal: str, pattern: str, where: str) -> Delimiter | None:
    if literal in given and pattern in given:
        raise ResponseTemplateError(f"{where} has both {literal!r} and {pattern!r}")
    if pattern in given:
        return Delimiter(compiled(given[pattern], f"{where}: {pattern}"), (), True)
    if literal not in given:
        return None
    found = given[literal]
    texts = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    if not texts or not all(isinstance(one, str) and 0 < len(one) <= DELIMITER_LIMIT for one in texts):
        raise ResponseTemplateError(
            f"{where}: {literal!r} is not a text, or a list of texts, of 1 to {DELIMITER_LIMIT} characters"
        )
    literals = tuple(dict.fromkeys(texts))
    longest = sorted(literals, key=len, reverse=True)
    grows = any(one != other and one.startswith(other) for one in literals for other in literals)
    return Delimiter(_compile("|".join(map(re.escape, longest)), where), literals, grows)


def compiled(given: Any, where: str) -> Any:
    """Check a regular expression, and compile it.

    Raises:
        ResponseTemplateError: It is not valid, too long, or uses a feature that is not supported.
    """
    if not isinstance(given, str) or not 0 < len(given) <= _PATTERN_LIMIT:
        raise ResponseTemplateError(f"{where} is not a text of 1 to {_PATTERN_LIMIT} characters")
    at = depth = 0
    while at < len(given):
        step = _STEP.match(given, at)
        assert step is not None
        at = step.end()
        escape, group, other = step["escape"], step["group"], step["other"]
        if escape is not None and escape.isalnum() and escape not in _ESCAPES:
            raise ResponseTemplateError(f"{where}: \\{escape} is not supported")
        if group is not None:
            # A lookbehind, like \b and ^, would depend on text that has already been emitted.
            if not (
                group[:1] in (":", "=", "!") or group == "P<" or (group[:1] == "<" and group[1:] not in ("=", "!"))
            ):
                raise ResponseTemplateError(f"{where}: (?{group} is not supported")
            at = step.start() + 2
        if other == "^":
            raise ResponseTemplateError(f"{where}: ^ is not supported")
        if other == "{" and not _REPEAT.match(given, step.start()):
            raise ResponseTemplateError(f"{where}: {{ must be written as \\{{")
        depth += (other == "(" or group is not None) - (other == ")")
        if depth > 20:
            raise ResponseTemplateError(f"{where}: its groups are nested too deep")
    return _compile(given, where)


def _compile(pattern: str, where: str) -> Any:
    try:
        import regex
    except ModuleNotFoundError:
        raise ResponseTemplateError("reading it needs the package regex: pip install regex") from None
    try:
        return regex.compile(pattern, regex.DOTALL | regex.VERSION0)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ResponseTemplateError(f"{where} is not valid: {error}") from None
