# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding: a grammar, compiled by llguidance, masks the logits of tokens that may not come next.

A `Vocabulary` belongs to a loaded model, a `Grammar` to one request. `answer_grammar` describes an answer in
llguidance's Lark dialect: text that satisfies the constraint, or tool calls. If the model reasons, its reasoning comes
before. In the reasoning the grammar allows everything except the end of the text.

The grammar language: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from .._concurrency.gate import Gate
from ..chat.call_notation import Notation, notation
from ..chat.markup import ChatFormat
from ..errors import GenerationError
from ..options import is_forced
from ..types import Tool
from .completion.closing import Closing
from .completion.units import Units
from .constraints import choices_term, lark_text, regex_term
from .json_schema import json_grammar
from .number_limits import NumberLimits, NumberText

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

RESERVE = 1024
"""If at most this many tokens are left, each token is checked: it must still be possible to complete the answer."""

_MAX_REJECTED = 12
"""Maximum number of the model's choices for one position that are excluded before the known completion is used."""

MAX_CALLS = 8
"""Maximum number of tool calls in an answer, unless only one call is allowed."""


class _Names:
    """The special tokens of a vocabulary, by their names."""

    @property
    def _special(self) -> dict[str, int]:
        raise NotImplementedError

    def markup(self, text: str) -> str:
        """Return the text as a Lark expression, with names of special tokens replaced by the tokens."""
        names = [name for name in self._special if name and name in text]
        parts = re.split("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)", text)
        found = re.findall("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)", text)
        tokens = [f"<[{self._special[name]}]>" for name in found] + [""]
        return " ".join(
            piece
            for part, token in zip(parts, tokens, strict=True)
            for piece in (literal(part) if part else "", token)
            if piece
        )

    def __contains__(self, text: object) -> bool:
        """Return whether there is a special token of that name."""
        return text in self._special


class _ByteNames(_Names):
    """The special tokens as units, for a grammar of a matcher over units."""

    def __init__(self, special: dict[str, int]) -> None:
        self._units = special

    @property
    def _special(self) -> dict[str, int]:
        return self._units


class Vocabulary(_Names):
    """A model's tokens in the form that llguidance needs. Thread-safe.

    Args:
        make: Builds the tokenizer when it is first needed, which takes a third of a second for 50,000 tokens. In the
            tokenizer, every token that ends a text must be an end token, and special tokens must be marked as special,
            so that they are never used to write text.
        gate: Refuses new work once the model is closed.
    """

    def __init__(self, make: Callable[[], LLTokenizer], gate: Gate | None = None) -> None:
        self._make = make
        self._lock = threading.RLock()
        self._gate = gate or Gate()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return self._make()

    @cached_property
    def _by_name(self) -> dict[str, int]:
        tokenizer = self._tokenizer
        special = (token for token in range(tokenizer.vocab_size) if tokenizer.is_special_token(token))
        return {tokenizer.decode_str([token]): token for token in special}

    @property
    def _special(self) -> dict[str, int]:
        return self._by_name

    @cached_property
    def _units(self) -> Units:
        return Units(self._tokenizer, self._by_name)

    @cached_property
    def _number_limits(self) -> NumberLimits:
        return NumberLimits(self._units.pieces)

    @cached_property
    def _ends(self) -> Any:
        """One bit for each token, in 32-bit words: 1 if the token ends a text."""
        import numpy as np

        bits = np.zeros((self._tokenizer.vocab_size + 31) // 32 * 32, np.uint8)
        bits[self._tokenizer.eos_tokens] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    @property
    def ready(self) -> bool:
        """Whether the tokenizer is built."""
        return "_tokenizer" in self.__dict__

    def prepare(self) -> None:
        """Build the tokenizer now. Raises ModelClosedError."""
        with self._gate, self._lock:
            self._number_limits  # noqa: B018

    def grammar(self, write: Callable[[_Names], str], *, is_json: bool = False, marks: Sequence[str] = ()) -> Grammar:
        """Compile the grammar that `write` returns, in Lark or in llguidance's JSON form.

        Args:
            write: Takes the names of special tokens and returns the source of the grammar.
            is_json: Whether the answer is JSON. If so, the length of its numbers is limited.
            marks: Texts after which the answer begins, if other text may come before it.

        Raises:
            GenerationError: The grammar does not compile.
            ModelClosedError: The model is closed.
        """
        from llguidance import LLMatcher

        self.prepare()
        with self._gate:
            matcher = LLMatcher(self._tokenizer, write(self), log_level=0)
            if matcher.is_error():
                raise GenerationError(f"the grammar does not compile: {_first_line(matcher)}")
            units = self._units
            text = write(_ByteNames(units.special))
            by_bytes = LLMatcher(units.tokenizer, text, log_level=0)
            closing = None if by_bytes.is_error() else Closing(by_bytes, units, text, marks, is_json=is_json)
            numbers = NumberText(self._number_limits, units.piece, marks) if is_json else None
            return Grammar(matcher, self._ends, closing, numbers)

    def close(self) -> None:
        """Refuse to compile further grammars."""
        self._gate.close()


class Grammar:
    """Applies a compiled grammar to one sequence. Not thread-safe."""

    def __init__(
        self, matcher: LLMatcher, ends: Any, closing: Closing | None = None, numbers: NumberText | None = None
    ) -> None:
        self.shortened = False
        """Whether the limit excluded a token that the model would have chosen."""
        self._matcher = matcher
        self._ends = ends
        self._bits = ends.copy()
        self._bytes = self._bits.view("u1")
        self._limits: Any = None
        self._closing = closing
        self._numbers = numbers
        self._tokens: list[int] = []
        """The tokens before the search for a completion begins."""
        self._left: int | None = None
        self._begun = False
        self._rejected = 0

    @property
    def finished(self) -> bool:
        """Whether the text is complete, and only an end token may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting() and not self._matcher.is_error()

    def limit(self, tokens: int) -> None:
        """Set the number of tokens that are left for the text. `fits` checks each token against it."""
        self._left = tokens
        self._begin()

    @property
    def shortest(self) -> int | None:
        """Smallest known number of tokens that complete the text. None: no completion is known."""
        found = self._closing.tokens if self._closing is not None and self._begun else None
        return None if found is None else len(found)

    def _begin(self) -> None:
        """Begin to search for completions if few tokens are left."""
        if self._closing is not None and not self._begun and self._left is not None and self._left <= RESERVE:
            self._closing.begin(self._tokens)
            self._begun = True

    def fits(self, token: int) -> bool:
        """Return whether the text can be completed within the limit of tokens after this token.

        Every token fits if no limit is set, if more than RESERVE tokens are left, or if no completion within the limit
        is known.

        Args:
            token: A token that the mask allows.
        """
        closing, left = self._closing, self._left
        if closing is None or left is None or not self._begun or self._is_end(token):
            return True
        if left <= 0 or closing.tokens is None or len(closing.tokens) > left:
            return True
        return closing.fits(token, left - 1)

    def exclude(self, token: int, logits: Any) -> None:
        """Exclude a token that does not fit from the logits, in place.

        If many tokens were excluded at this position, or all of them, only the next token of the known completion stays
        allowed.
        """
        self.shortened = True
        self._rejected += 1
        logits[token] = -math.inf
        tokens = self._closing.tokens if self._closing is not None else None
        if tokens and (self._rejected >= _MAX_REJECTED or not math.isfinite(logits.max())):
            logits[:] = -math.inf
            logits[tokens[0]] = 0

    def _is_end(self, token: int) -> bool:
        return token < 8 * self._bytes.size and bool(self._ends.view("u1")[token >> 3] >> (token & 7) & 1)

    def mask(self, logits: Any) -> None:
        """Set the logits of all tokens that may not come next to -inf, in place.

        If the text may end here, and the grammar does not allow the most likely token, only end tokens stay allowed.
        Otherwise small models often continue such a text without end.

        Args:
            logits: float32 array with at least one entry for each token.

        Raises:
            GenerationError: No token may come next. The logits are not changed.
        """
        import numpy as np

        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        # After an error the mask allows the end tokens, and the text would end incomplete.
        if self._matcher.is_error() or not self._bits.any():
            raise GenerationError(f"the grammar can't be followed any further: {_first_line(self._matcher)}")
        if self._matcher.is_accepting() and not self._allows(int(logits.argmax())):
            self._bits[:] = self._ends
        elif self._numbers is not None and (blocked := self._numbers.blocked()) is not None:
            rest = self._bits & ~blocked
            if rest.any():  # otherwise the schema requires a longer number
                self._bits[:] = rest
        if self._limits is None or self._limits.size < logits.size:
            self._limits = np.full(max(8 * self._bytes.size, logits.size), -np.inf, np.float32)
        # A row of eight limits for each byte of the mask: ten times faster than unpacking bits.
        rows = self._limits[: 8 * self._bytes.size].reshape(-1, 8)
        np.take(_limits_of_bytes(), self._bytes, axis=0, out=rows, mode="clip")
        np.minimum(logits, self._limits[: logits.size], out=logits)

    def _allows(self, token: int) -> bool:
        return token < 8 * self._bytes.size and bool(self._bytes[token >> 3] >> (token & 7) & 1)

    def accept(self, token: int) -> None:
        """Append the chosen token. Raises GenerationError if it may not come next."""
        if not self._matcher.consume_token(token):
            raise GenerationError(f"the grammar does not allow token {token} here: {_first_line(self._matcher)}")
        self._rejected = 0
        if self._numbers is not None:
            self._numbers.accept(token)
        if self._begun and self._closing is not None:
            self._closing.accept(token)
        else:
            self._tokens.append(token)
        if self._left is not None:
            self._left -= 1
            self._begin()


@cache
def _limits_of_bytes() -> Any:
    """Return a (256, 8) float32 array: for each bit of each byte, lowest bit first, +inf if it is set, else -inf."""
    import numpy as np

    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits, np.inf, -np.inf).astype(np.float32)


def _first_line(matcher: LLMatcher) -> str:
    """Return the first line of the matcher's error."""
    return matcher.get_error().partition("\n")[0] or "no token may come next"


# ---------------------------------------------------------------- the grammar of an answer


@dataclass(frozen=True, slots=True)
class AnswerConstraint:
    """The constraint of an answer. At most one of the fields is set, as in GenerateConfig."""

    json_schema: Any = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    grammar: str | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.json_schema, self.regex, self.choices, self.grammar))

    def term(self, backend: str) -> str:
        """Return the constraint as a Lark term. The term "@answer" refers to the caller's own grammar.

        Raises:
            ValueError: The constraint is invalid.
            UnsupportedError: The constraint can't be enforced.
        """
        if self.regex is not None:
            return regex_term(self.regex, backend)
        if self.choices is not None:
            return choices_term(self.choices)
        if self.grammar is not None:
            lark_text(self.grammar)
            return "@answer"
        return json_grammar(self.json_schema, what="json_schema", backend=backend)


def check_answer(
    constraint: AnswerConstraint | Any = None, tools: Sequence[Tool] = (), choice: str | None = None, *, backend: str
) -> None:
    """Check the constraint of an answer, and the schemas of the tools if they are needed.

    See `answer_grammar` for the arguments.

    Raises:
        ValueError: The constraint or a schema is invalid.
        UnsupportedError: The constraint or a schema can't be enforced.
    """
    constraint = constraint if isinstance(constraint, AnswerConstraint) else AnswerConstraint(constraint)
    if constraint:
        constraint.term(backend)
    if constraint or is_forced(choice):
        for tool in _called(tools, choice):
            _arguments(tool, backend)


def answer_grammar(
    vocabulary: Vocabulary,
    constraint: AnswerConstraint | Any = None,
    tools: Sequence[Tool] = (),
    choice: str | None = None,
    *,
    format: ChatFormat | None = None,
    in_reasoning: bool = False,
    may_reason: bool = True,
    backend: str,
) -> Grammar | None:
    """Return the grammar of an answer, or None if the answer is not constrained.

    - `choice` "required": the answer is one or more tool calls, up to MAX_CALLS.
    - `choice` is the name of a tool: the answer is one call of that tool.
    - `choice` "auto" or None, with a constraint: the answer satisfies the constraint, or is tool calls.
    - `choice` "none": the answer satisfies the constraint.

    `chat_output` parses the answer. If `notation` has no notation for the format, it needs `forced_call`.

    Args:
        vocabulary: The model's tokens.
        constraint: The constraint, or a JSON Schema.
        tools: The tools that may be called.
        choice: `tool_choice` of GenerateConfig.
        format: How the model marks reasoning and tool calls in a chat; None for a plain continuation.
        in_reasoning: Whether the prompt ends inside reasoning.
        may_reason: Whether the answer may begin with reasoning.
        backend: The backend's name, for errors.

    Raises:
        ValueError: The constraint or a schema is invalid.
        UnsupportedError: The constraint or a schema can't be enforced: see `json_grammar`.
    """
    constraint = constraint if isinstance(constraint, AnswerConstraint) else AnswerConstraint(constraint)
    forced = is_forced(choice)
    if not constraint and not forced:
        return None
    called = _called(tools, choice)
    form = format or ChatFormat()
    reasons = in_reasoning or may_reason

    def write(names: _Names) -> str:
        lark = _Lark(names, form, backend)
        answers = []
        if constraint and not forced:
            answers.append(
                lark.answer(
                    constraint.term(backend), terminal=constraint.json_schema is None and constraint.grammar is None
                )
            )
        if called:
            answers.append(lark.calls(called, MAX_CALLS if choice in ("auto", "required", None) else 1))
        before = lark.reasoning(in_reasoning) if reasons else ""
        text = lark.text(f"{before} ({' | '.join(answers)})")
        if constraint.grammar is None or forced:
            return text
        own = {"name": "answer", "lark_grammar": lark_text(constraint.grammar)}
        return json.dumps({"grammars": [{"name": "main", "lark_grammar": text}, own]})

    marks = ["<|message|>"] if form.harmony else [form.thinking.closes] if reasons and form.thinking else []
    return vocabulary.grammar(write, is_json=forced or constraint.json_schema is not None, marks=marks)


def _called(tools: Sequence[Tool], choice: str | None) -> list[Tool]:
    """Return the tools that the choice allows."""
    if choice == "none":
        return []
    return [tool for tool in tools if choice in (None, "auto", "required", tool.name)]


def _arguments(tool: Tool, backend: str) -> str:
    """Return the Lark term for the arguments of a tool: a JSON object, spaced as chat templates write calls."""
    what = f"parameters of tool {tool.name!r}"
    parameters = {"type": "object", **tool.parameters}
    if parameters["type"] != "object":
        raise ValueError(f"the {what} must be of type object, not {parameters['type']!r}")
    return json_grammar(parameters, what=what, backend=backend, spaced=True)


def literal(text: str) -> str:
    """Return the text as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


_JSON_PIECES = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|[^"{}]+|"')


class _Lark:
    """Writes the rules of a grammar for the chat format of one model."""

    def __init__(self, vocabulary: _Names, format: ChatFormat, backend: str) -> None:
        self._vocabulary = vocabulary
        self._format = format
        self._backend = backend
        self._rules: list[str] = []

    def text(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])

    def _rule(self, body: str, *, name: str = "r", options: str = "") -> str:
        name = f"{name}{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def _markup(self, text: str) -> str:
        return self._vocabulary.markup(text)

    # ------------------------------------------------ before the answer

    def reasoning(self, begun: bool) -> str:
        """Return an expression for the reasoning before the answer. `begun`: the prompt ends inside the reasoning."""
        if self._format.harmony:
            thought = f"{self._markup('<|channel|>analysis<|message|>')} {self._through('<|end|>')}"
            return f"({thought} {self._markup('<|start|>assistant')})*"
        tags = self._format.thinking
        if tags is None:
            return ""
        space = self._rule(r"/[ \t\r\n]{1,8}/")
        thought = f"{self._through(tags.closes)} {space}?"
        return thought if begun else f"({self._markup(tags.opens)} {thought})?"

    def _through(self, mark: str) -> str:
        """Return an expression for any text up to the first `mark`, and the mark."""
        spelled = re.escape(mark).replace("/", "\\/")
        if mark not in self._vocabulary:
            return self._rule(f"/(?s:.*){spelled}/", options="[lazy]")
        # The mark in plain characters must not occur before: a parser of the text would end the reasoning there.
        return f"{self._rule(f'/(?s:.*)/ & ~/(?s:.*){spelled}(?s:.*)/', name='T')} {self._markup(mark)}"

    # ------------------------------------------------ the answer

    def answer(self, value: str, *, terminal: bool = False) -> str:
        """Return an expression for an answer without calls. `terminal`: `value` is a regular expression or a string."""
        body = self._rule(value, name="T" if terminal else "r")
        if not self._format.harmony:
            return body
        header = f"{self._markup('<|channel|>final')} ({self._markup(' <|constrain|>json')})?"
        return f"{header} {self._markup('<|message|>')} {body}"

    def calls(self, tools: Sequence[Tool], most: int) -> str:
        """Return an expression for one call or several, at most `most`."""
        form = notation(self._format, [tool.name for tool in tools], self._vocabulary) or Notation()
        one = self._rule(" | ".join(self._call(form, tool) for tool in tools))
        more = f" ({literal(form.between)} {one}){{0,{most - 1}}}" if form.between else f" {one}{{0,{most - 1}}}"
        if most > 1 and form.several:
            # The model may also end the last call with a line break.
            one += more + (f" {literal(form.between)}?" if form.between == "\n" else "")
        parts = [self._markup(form.opens), one, self._markup(form.closes)]
        return " ".join(part for part in parts if part)

    def _call(self, form: Notation, tool: Tool) -> str:
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1] if form.quoted else tool.name
        arguments = self._rule(_arguments(tool, self._backend))
        return f"{self._json(form.before + name + form.middle)} {arguments} {self._json(form.after)}".rstrip()

    def _json(self, text: str) -> str:
        """Return the text as separate literals, one for each string, brace and text between them.

        Otherwise the lexer would prefer a longer literal, and would reject an answer that starts with a shorter one.
        """
        return " ".join(self._markup(piece) for piece in _JSON_PIECES.findall(text))
