# SPDX-License-Identifier: Apache-2.0
"""Tokenizing with llama.cpp in linear time: special tokens are found here, and what stands between them there.

llama.cpp cuts a text at its special tokens first, and then tokenizes each piece by itself. Its
cutting is quadratic in their number: 25 s for 1 MB of them. Done here it gives the same ids, and
between two pieces the work can be given up.

A SentencePiece vocabulary (`LLAMA_VOCAB_TYPE_SPM`) spells a character that it does not have as bytes. llama.cpp copies
the ids so far at each of them: 14 s for 1 MB. So a long text is cut there, where no token can reach across.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

from ..._concurrency.background import waiting
from ..._concurrency.gate import Gate
from ...engine.special_tokens import Names, unmarked
from .library import lib

SHORT = 4096
"""Characters of a text that llama.cpp tokenizes in one call: its own cutting takes less than a millisecond then."""

_SMALL = 64
"""Characters of a piece of text whose token ids are kept while the rest of the text is tokenized."""

_RUN = 8192
"""Characters of a text of a SentencePiece vocabulary from which on it is cut."""

_AT_ONCE = 1 << 16
"""Token ids that are converted to Python's integers in one call, which takes about a millisecond."""

_CONTROL = int(lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN)
_CUT_AT = int(_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED)
_LEFT, _RIGHT = int(lib.LLAMA_TOKEN_ATTR_LSTRIP), int(lib.LLAMA_TOKEN_ATTR_RSTRIP)
_BYTE = re.compile(rb"<0x[0-9A-F]{2}>")
"""The text of a token that stands for a byte."""

_SPACE = frozenset(" \t\n\v\f\r")  # isspace in C

_KEEPS_EVERY_BYTE = frozenset({lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_RWKV})
"""Kinds of tokenizers that change nothing of a text but spaces, and drop nothing but bytes that have no token."""


class Special(NamedTuple):
    """A token that is found by its name. `left`, `right`: it takes in the white space before, or behind it."""

    name: str
    id: int
    control: bool
    left: bool
    right: bool


def nothing() -> None:
    """For work that nobody gives up."""


class Cutter:
    """Cuts texts at special tokens, as llama.cpp does: the longest names first, wherever they stand."""

    def __init__(self, special: Iterable[Special]) -> None:
        ordered = sorted(special, key=lambda one: -len(one.name.encode("utf-8", "surrogateescape")))
        self._rank: dict[str, int] = {}
        for rank, one in enumerate(ordered):
            self._rank.setdefault(one.name, rank)
        self._special = ordered
        self._names = Names(self._rank)

    def cut(self, text: str, check: Callable[[], None] = nothing) -> list[str | int]:
        """Pieces of text, none of them empty, and ids of tokens, in order."""
        # Lists of integers, not of tuples: the garbage collector would go through those, with the interpreter's lock.
        begins: list[int] = []
        ranks: list[int] = []
        for at, name in self._names.find(text, check):
            begins.append(at)
            ranks.append(self._rank[name])
        ends = self._apart(text, begins, ranks, check)
        pieces: list[str | int] = []
        done = 0
        for begin, end, rank in zip(begins, ends, ranks, strict=True):
            if not end:
                continue
            if begin > done:
                pieces.append(text[done:begin])
            pieces.append(self._special[rank].id)
            done = end
        if done < len(text):
            pieces.append(text[done:])
        return pieces

    def _apart(self, text: str, begins: list[int], ranks: list[int], check: Callable[[], None]) -> list[int]:
        """Where each name ends, with the white space that its token takes in; 0 for one in the place of another.

        The names of lower ranks come first. `begins` are moved to where the white space before a name begins.
        """
        found: dict[int, list[int]] = {}
        for index, rank in enumerate(ranks):
            found.setdefault(rank, []).append(index)
        used = bytearray(len(text) if found else 0)
        ends = [0] * len(begins)
        for rank in sorted(found):
            check()
            one = self._special[rank]
            length = len(one.name)
            for index in found[rank]:
                left = begins[index]
                right = left + length
                if any(used[left:right]):
                    continue
                while one.left and left > 0 and text[left - 1] in _SPACE and not used[left - 1]:
                    left -= 1
                while one.right and right < len(text) and text[right] in _SPACE and not used[right]:
                    right += 1
                used[left:right] = b"\1" * (right - left)
                begins[index], ends[index] = left, right
        return ends


class NativeTokenizer:
    """A model's vocabulary. May be used from many threads; raises ModelClosedError once the model's gate is closed."""

    def __init__(self, vocab: Any, gate: Gate) -> None:
        self._vocab = vocab
        self._gate = gate
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self._ends: dict[int, bool] = {}
        self.size = int(lib.llama_vocab_n_tokens(vocab))
        self.bos = _token(lib.llama_vocab_bos(vocab))
        self.eos = _token(lib.llama_vocab_eos(vocab))

    # ------------------------------------------------ from text to ids

    def encode(
        self, text: str, *, add_special: bool, parse_special: bool, mark: str = "", check: Callable[[], None] = nothing
    ) -> list[int]:
        """The text's token ids.

        add_special    with what the model wants around a text, such as BOS
        parse_special  names of special tokens are read as those, unless `mark` stands in them
        check          called between two pieces of the work, may raise to give it up
        """
        if len(text) <= SHORT and not mark:
            return self._native(text, add_special, parse_special)
        ids, tail = (list(part) for part in self._around) if add_special and text else ([], [])
        known: dict[str, list[int]] = {}
        for piece in (self._cutter if parse_special else self._plain_cutter).cut(text, check):
            check()
            if isinstance(piece, int):
                ids.append(piece)
            elif mark and (plain := unmarked(piece, mark)) != piece:
                ids += self.encode(plain, add_special=False, parse_special=False, check=check)
            elif len(piece) <= _SMALL:
                if piece not in known:
                    known[piece] = self._native(piece, False, False)
                ids += known[piece]
            else:
                for run in self._runs(piece):
                    check()
                    ids += run
        return ids + tail if text else self._native(text, add_special, parse_special)

    def _runs(self, text: str) -> Iterator[list[int]]:
        """The token ids of a long text, in parts. All but the first begin with a character that is in no token."""
        unknown = self._unknown if len(text) > _RUN else None
        begin = 0
        while unknown is not None and (found := unknown.search(text, begin + _RUN)):
            yield self._run(text[begin : found.start()], first=begin == 0)
            begin = found.start()
        yield self._run(text[begin:], first=begin == 0)

    def _run(self, text: str, *, first: bool) -> list[int]:
        ids = self._native(text, False, False)
        if first:
            return ids
        # A text may get a space before it, which is a token of its own before a character that is in none.
        once, twice = (len(self._native(text[0] * times, False, False)) for times in (1, 2))
        return ids[2 * once - twice :]

    @cached_property
    def _unknown(self) -> re.Pattern[str] | None:
        """Finds a character that is in no token, and so is spelt as bytes. None: the vocabulary is of another type."""
        with self._gate:
            if lib.llama_vocab_type(self._vocab) != lib.LLAMA_VOCAB_TYPE_SPM:
                return None
            texts = (lib.llama_vocab_get_text(self._vocab, token) for token in range(self.size))
            known = set("".join(text.decode("utf-8", "ignore") for text in texts if not _BYTE.fullmatch(text)))
        known |= set(" \u2581")
        return re.compile("[^" + "".join(map(re.escape, sorted(known))) + "]")

    def _native(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8
        while True:
            ids = (lib.llama_token * room)()
            with waiting() if len(data) > SHORT else nullcontext(), self._gate:
                count = lib.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                out: list[int] = []
                for at in range(0, count, _AT_ONCE):  # one long conversion would hold the interpreter's lock
                    out += ids[at : min(at + _AT_ONCE, count)]
                return out
            if count == -(2**31):
                raise ValueError("the text is too long to tokenize")
            room = -count

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the model puts before a text, and behind it."""
        alone, dressed = self._native("a", False, False), self._native("a", True, False)
        extra = len(dressed) - len(alone)
        begin = next(at for at in range(extra + 1) if dressed[at : at + len(alone)] == alone)
        return dressed[:begin], dressed[begin + len(alone) :]

    @cached_property
    def _specials(self) -> list[Special]:
        out = []
        with self._gate:
            for token in range(self.size):
                kind = int(lib.llama_vocab_get_attr(self._vocab, token))
                if kind & _CUT_AT:
                    name = lib.llama_vocab_get_text(self._vocab, token).decode("utf-8", "surrogateescape")
                    if name:
                        out.append(Special(name, token, bool(kind & _CONTROL), bool(kind & _LEFT), bool(kind & _RIGHT)))
        return out

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._specials)

    @cached_property
    def _plain_cutter(self) -> Cutter:
        return Cutter(one for one in self._specials if not one.control)

    @property
    def control_names(self) -> list[str]:
        """The names that stand for something else than text, and that a user must not be able to write."""
        return [one.name for one in self._specials if one.control]

    def fewest(self, text: str) -> int:
        """The number of tokens that the text has at least, computed from its length. 0 if there is no such bound."""
        longest, dropped = self._coverage
        return -(-len(text.encode("utf-8", "surrogatepass").translate(None, dropped)) // longest) if longest else 0

    @cached_property
    def _coverage(self) -> tuple[int, bytes]:
        """(bytes of a text that one token covers at most, the bytes that have no token and may be dropped).

        The first is 0 where there is no such bound.
        """
        with self._gate:
            kind = lib.llama_vocab_type(self._vocab)
        if kind not in _KEEPS_EVERY_BYTE or any(one.left or one.right for one in self._specials):
            return 0, b""
        names = {one.id: one.name for one in self._specials}
        pieces = {self.piece(token, True) for token in range(self.size) if token not in names}
        pieces |= {name.encode("utf-8", "surrogateescape") for name in names.values()}
        dropped = bytes(byte for byte in range(256) if bytes([byte]) not in pieces)
        return max(map(len, pieces), default=0), dropped

    def contains(self, text: str) -> bool:
        """Whether the text is a token by itself, a special one perhaps."""
        ids = self._native(text, False, True)
        return len(ids) == 1 and self.text_of(ids[0]) == text

    def truncated(self, tokens: list[int], length: int) -> list[int]:
        """The first of the token ids of a text, with what the model wants behind a text: at most `length` in all."""
        if len(tokens) <= length:
            return tokens
        tail = self._around[1][-length:]
        return tokens[: length - len(tail)] + tail

    # ------------------------------------------------ from ids to text

    def is_end(self, token: int) -> bool:
        """Whether the model ends its text, or its turn, with this token."""
        known = self._ends.get(token)
        if known is None:
            with self._gate:
                known = self._ends[token] = bool(lib.llama_vocab_is_eog(self._vocab, token))
        return known

    def text_of(self, token: int | None) -> str:
        return "" if token is None else self.piece(token, True).decode("utf-8", "replace")

    def piece(self, token: int, special: bool) -> bytes:
        """The bytes of a token; `special`: those of special tokens too, which have none otherwise."""
        known = self._pieces[special]
        piece = known.get(token)
        if piece is None:
            room = 64
            while True:
                buffer = ctypes.create_string_buffer(room)
                with self._gate:
                    count = lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
                if count >= 0:
                    break
                room = -count
            piece = known[token] = buffer.raw[:count]
        return piece


def _token(value: int) -> int | None:
    return None if value < 0 else int(value)
