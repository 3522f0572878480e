# SPDX-License-Identifier: Apache-2.0
"""A bounded search for the shortest completion of a constrained text.

A matcher reports which units may come next, but not which are still required. If a pattern requires a digit, the same
bytes may follow before the digit and after it. States are therefore distinguished by the endings that complete them:

1. A traversal of the grammar, which tries every unit in turn, finds a completion. The parts of it that are not required
   are removed.
2. A breadth-first search distinguishes states by the units that may come next, and by the endings of the known
   completion that complete them. It stops when no completion can take fewer tokens.
3. If this search finds a shorter completion, it is repeated with the endings of that completion.

Every query to a matcher is a step, and the number of steps is bounded. The result is always a completion that the
grammar allows. It may not be the shortest if no ending shows a difference between two states, or if the steps run out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from .pattern_words import pattern_words
from .units import END, Cut, Units

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_UNITS = 4096
"""Maximum number of units in a completion."""

_LONG = 32
"""Number of units that count as one step when a matcher validates them."""

_WIDE = 24
"""If at most this many units may come next, each is tried. Of more units, only representatives are tried."""

_LONGER = 24
"""Maximum number of units by which a completion with fewer tokens may be longer than the known completion."""

_VARIANTS = 8
"""Maximum number of equal states that are kept because the text before them is split into tokens differently."""

_ENDINGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Lengths of the endings of a completion that distinguish states."""

_WORD_ENDS = 6
"""Maximum number of endings that come from the literal parts of patterns."""

_EACH_KIND = 64
"""The traversal takes this many representatives of the possible units, then twice as many of all, repeatedly."""

_QUOTE = ord('"')
_CLOSERS = frozenset(b'"}])>')
_FIRST = {byte: place for place, byte in enumerate(b'"}],:0')}
"""Units that are tried before the others, and their order."""


@dataclass(slots=True)
class _Node:
    """A state that the search has reached.

    A matcher takes kilobytes, and many times that after a long text of an ambiguous grammar. A state therefore releases
    its matcher when it has been expanded. `state` makes the matcher again if it is needed.

    Attributes:
        matcher: The matcher after `path`; None if it was released.
        path: The units from the start of the search to this state.
        cut: How the units of `path` are split into tokens.
        root: A matcher after the first `skipped` units of `path`.
    """

    matcher: LLMatcher | None
    path: list[int]
    cut: Cut
    root: LLMatcher
    skipped: int = 0

    def state(self) -> LLMatcher:
        """Return the matcher after `path`. It must not be changed."""
        if self.matcher is not None:
            return self.matcher
        matcher = self.root.deep_copy()
        matcher.consume_tokens(self.path[self.skipped :])
        return matcher


_Known = dict[tuple[int, bytes], tuple[_Node, dict[tuple[int, ...], list[_Node]]]]
"""The states found so far. The key is the length of the text before a state, with the units that may come next. The
value is the first such state, and all such states by their profiles, which are determined when a second one is found.
States after texts of different lengths are never treated as equal: one of them may have a shorter completion that is
not known yet, even if the same endings complete both."""


def _as_good(one: _Node, other: _Node) -> bool:
    """Return whether every ending that completes both states is certain to take no more tokens after `one` than after
    `other`.
    """
    if one.cut.whole is not None and all(one.cut.whole <= before for _, before in other.cut.open):
        return True
    tails = {bytes(one.path[start:]): before for start, before in one.cut.open}
    return all(tails.get(bytes(other.path[start:]), MAX_UNITS) <= before for start, before in other.cut.open)


class Search:
    """Finds completions in one grammar. Not thread-safe.

    Args:
        units: The model's tokens as units.
        grammar: The source of the matchers.
        marks: Texts that end unconstrained text, such as reasoning.
        is_json: Whether the grammar describes JSON.
    """

    def __init__(self, units: Units, grammar: str, marks: Sequence[str], *, is_json: bool) -> None:
        import numpy as np

        self._units = units
        self._marks = [mark.encode() for mark in marks if mark]
        self._is_json = is_json
        self._words = [list(word.encode()) for word in pattern_words(grammar)]
        ends = {tuple(word[-length:]) for word in self._words for length in (1, 2) if length < len(word)}
        self._word_ends = [list(end) for end in sorted(ends)[:_WORD_ENDS]]
        self._bits = np.zeros((units.tokenizer.vocab_size + 31) // 32, np.int32)
        self._address = self._bits.ctypes.data
        self._allowed: dict[bytes, list[int]] = {}
        self._distinct: dict[int, None] = {}
        """Units that `_apart` has found, in the order in which they were found."""
        self._endings: list[list[int]] = []
        self._steps = 0

    def completes(self, matcher: LLMatcher, units: Sequence[int]) -> bool:
        """Return whether the text may end after these units."""
        self._steps -= 1 + len(units) // _LONG
        if not units:
            return matcher.is_accepting()
        return bool(matcher.validate_tokens([*units, END]) == len(units) + 1)

    def find(self, matcher: LLMatcher, enough: int, steps: int) -> tuple[list[int] | None, int]:
        """Search for a completion of the matcher's text.

        Args:
            matcher: The state to complete. It is not changed.
            enough: The search stops at a completion of this many tokens or fewer.
            steps: Maximum number of steps.

        Returns:
            The units of the completion, or None, and the number of steps left.
        """
        self._steps = steps
        starts = self._starts(matcher)
        best = min((found for start in starts if (found := self._traversed(start))), key=self._count, default=None)
        while self._steps > 0 and (best is None or self._count(best) > enough):
            self._endings = [best[-length:] for length in _ENDINGS if length <= len(best)] if best else []
            self._endings += self._word_ends
            found = self._searched(starts, best, enough)
            if found is None:
                break
            best = self._shrunk(matcher, found)
        return best, self._steps

    def _count(self, path: Sequence[int]) -> int:
        """Return the number of tokens of a text, or a larger number if the model has no tokens for it."""
        tokens = self._units.fewest(path)
        return len(path) * 2 + 1 if tokens is None else len(tokens)

    def _starts(self, matcher: LLMatcher) -> list[_Node]:
        """Return the state itself, and the state after each mark that changes what may follow."""
        root = matcher.deep_copy()
        found = [_Node(root, [], Cut(), root)]
        before = self._mask(matcher)
        for mark in self._marks:
            state = matcher.deep_copy()
            if state.try_consume_tokens(list(mark)) == len(mark) and self._mask(state) != before:
                cut: Cut | None = Cut()
                for at, unit in enumerate(mark):
                    cut = self._units.extend(cut, list(mark[:at]), unit) if cut is not None else None
                if cut is not None:
                    found.append(_Node(state, list(mark), cut, state, len(mark)))
        return found

    # ------------------------------------------------ a completion

    def _traversed(self, start: _Node) -> list[int] | None:
        """Return a completion that a traversal finds, without the parts that are not required. None: it found none."""
        for closers_first in (True, False):
            state = start.root.deep_copy()
            path = list(start.path)
            used: dict[bytes, Counter[int]] = {}
            budget = self._steps // 4
            until = self._steps - budget
            while self._steps > until and len(path) < MAX_UNITS:
                if state.is_accepting():
                    rest = self._shrunk(start.root, path[len(start.path) :])
                    return start.path + rest if self._units.fewest(start.path + rest) is not None else None
                ahead = self._next_units(state, used, closers_first)
                self._steps -= 1
                if not ahead or not state.consume_tokens(ahead):
                    break
                path += ahead
        return None

    def _next_units(self, state: LLMatcher, used: dict[bytes, Counter[int]], closers_first: bool) -> list[int]:
        """Return the next units of the traversal.

        They are the units that the grammar forces, the literal part of a pattern, or the unit that was taken least
        often in states with the same possible units.
        """
        if forced := state.compute_ff_bytes():
            return list(forced)
        mask = self._mask(state)
        plain, special = self._split(mask)
        taken = used.setdefault(mask, Counter())
        if len(plain) > _WIDE and not (closers_first and _QUOTE in plain):
            for index, word in enumerate(self._words):
                if not taken[-1 - index]:
                    self._steps -= 1
                    if state.validate_tokens(word) == len(word):
                        taken[-1 - index] += 1
                        return word
            # At first only representatives of each kind of character, then all characters, then representatives again.
            plain = _kinds(plain) if taken.total() % (3 * _EACH_KIND) < _EACH_KIND else plain

        def order(unit: int) -> tuple[int, int]:
            # Closing brackets are taken eight times as often as others, which are needed inside a string.
            often = closers_first and unit in _CLOSERS
            return taken[unit] // 8 if often else taken[unit] + closers_first, _FIRST.get(unit, len(_FIRST))

        chosen = min([*special, *plain], key=order, default=None)
        if chosen is None:
            return []
        taken[chosen] += 1
        return [chosen]

    def _shrunk(self, matcher: LLMatcher, path: list[int]) -> list[int]:
        """Return the completion without the parts that are not required."""
        until = self._steps - self._steps // 4
        size = len(path) // 2
        while size > 0 and self._steps > until:
            at = 0
            while at + size <= len(path) and self._steps > until:
                less = path[:at] + path[at + size :]
                if self.completes(matcher, less):
                    path = less
                else:
                    at += 1
            size = size // 2 if size > 16 else size - 1
        return path

    # ------------------------------------------------ the search

    def _searched(self, starts: list[_Node], best: list[int] | None, enough: int) -> list[int] | None:
        """Return a completion with fewer tokens than `best`, or None."""
        better: list[int] | None = None
        fewest = self._count(best) if best is not None else None
        longest = len(best) + _LONGER if best is not None else MAX_UNITS
        known: _Known = {}
        order = 0
        queue: list[tuple[int, int, _Node]] = []
        for start in starts:
            heappush(queue, (len(start.path), order := order + 1, start))
        while queue and self._steps > 0:
            length, _, node = heappop(queue)
            if length > longest or (fewest is not None and fewest <= enough):
                break
            if fewest is not None and node.cut.least >= fewest:
                continue
            if node.state().is_accepting() and node.cut.whole is not None:
                better, fewest = node.path, node.cut.whole
                longest = min(longest, length + _LONGER)
            for child in self._children(node):
                if fewest is not None and child.cut.least >= fewest:
                    continue
                if self._is_new(child, known):
                    heappush(queue, (len(child.path), order := order + 1, child))
            node.matcher = None
        return better

    def _children(self, node: _Node) -> Iterator[_Node]:
        """Yield the states after each possible continuation of a state."""
        before = node.state()
        for ahead in self._ahead(before):
            self._steps -= 1
            state = before.deep_copy()
            if not state.consume_tokens(ahead):
                continue
            if forced := list(state.compute_ff_bytes()):  # states with a choice are easier to distinguish
                state.consume_tokens(forced)
            path: list[int] = list(node.path)
            cut: Cut | None = node.cut
            for unit in ahead + forced:
                cut = self._units.extend(cut, path, unit) if cut is not None else None
                path.append(unit)
            if cut is not None:
                yield _Node(state, path, cut, node.root, node.skipped)

    def _ahead(self, state: LLMatcher) -> list[list[int]]:
        """Return the continuations to try: each unit that may come next.

        If many units may come next, return representatives of them, and the literal parts of patterns.
        """
        if forced := state.compute_ff_bytes():
            return [list(forced)]
        mask = self._mask(state)
        plain, special = self._split(mask)
        if len(plain) <= _WIDE:
            return [[unit] for unit in special + plain]
        if self._is_json and _QUOTE in plain:
            return [[unit] for unit in [*special, _QUOTE]]  # ending a string costs less than continuing it
        words = []
        for word in self._words:
            for at in range(len(word) - 1, -1, -1):
                self._steps -= 1
                if state.validate_tokens(word[at:]) < len(word) - at:
                    break
                words.append(word[at:])
        with_quote = [unit for unit in plain if unit in self._units.before_quote][:1]
        representatives = dict.fromkeys([*_kinds(plain), *with_quote, *self._apart(state, plain)])
        return [[unit] for unit in (*special, *representatives)] + words

    def _apart(self, state: LLMatcher, plain: list[int]) -> list[int]:
        """Return units of `plain` after which different units may follow: one for each such set of units.

        The units that were found for earlier states are included.
        """
        if self._steps > len(plain):
            seen: set[bytes] = set()
            for unit in plain:
                self._steps -= 1
                after = state.deep_copy()
                if after.consume_token(unit) and (next_ := self._mask(after)) not in seen:
                    seen.add(next_)
                    self._distinct[unit] = None
        return [unit for unit in self._distinct if unit in plain]

    def _is_new(self, node: _Node, known: _Known) -> bool:
        """Return whether `known` has no equal state with as few tokens before it, and add the state."""
        place = (len(node.path), self._mask(node.state()))
        if place not in known:
            known[place] = (node, {})
            return True
        first, seen = known[place]
        if not seen:
            seen[self._profile(first)] = [first]
        alike = seen.setdefault(self._profile(node), [])
        if any(_as_good(other, node) for other in alike):
            return False
        if len(alike) >= _VARIANTS and all(other.cut.least <= node.cut.least for other in alike):
            return False
        alike.append(node)
        return True

    def _profile(self, node: _Node) -> tuple[int, ...]:
        """Return how many units of each known ending the state's matcher accepts."""
        self._steps -= sum(1 + len(ending) // _LONG for ending in self._endings)
        state = node.state()
        return tuple(state.validate_tokens([*ending, END]) for ending in self._endings)

    # ------------------------------------------------ what may come next

    def _mask(self, state: LLMatcher) -> bytes:
        """Return a bit for each unit that may come next, after a byte that says whether the text may end."""
        self._steps -= 1
        state.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        return bytes([state.is_accepting()]) + self._bits.tobytes()

    def _split(self, mask: bytes) -> tuple[list[int], list[int]]:
        """Return the bytes and the special units of a mask. If it has many bytes, only those of ASCII are returned."""
        import numpy as np

        allowed = self._allowed.get(mask)
        if allowed is None:
            bits = np.unpackbits(np.frombuffer(mask, "u1", offset=1), bitorder="little")
            units = np.flatnonzero(bits).tolist()
            allowed = self._allowed[mask] = [unit for unit in units if unit >= END or unit in self._units.bytes]
        plain = [unit for unit in allowed if unit < END]
        if len(plain) > _WIDE:
            plain = [unit for unit in plain if unit < 0x80] or plain
        return sorted(plain, key=lambda unit: _FIRST.get(unit, len(_FIRST))), [unit for unit in allowed if unit > END]


def _kinds(units: Sequence[int]) -> list[int]:
    """Return one unit of each kind of character that patterns commonly distinguish."""
    return list({_kind(unit): unit for unit in reversed(units)}.values())[::-1]


def _kind(unit: int) -> int:
    """Return a number for lower-case letters, upper-case letters, digits, the quotation mark, or other characters."""
    char = chr(unit)
    return 0 if char.islower() else 1 if char.isupper() else 2 if char.isdigit() else 3 if unit != _QUOTE else 4
