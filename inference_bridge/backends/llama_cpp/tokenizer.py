# SPDX-License-Identifier: Apache-2.0
"""Tokenizing with llama.cpp in linear time: special tokens are found here, and llama.cpp tokenizes the other text.

llama.cpp also splits a text at its special tokens first, and then tokenizes each piece separately. Its split takes
quadratic time in their number: 25 s for 1 MB of special tokens. The split here gives the same ids, and the work can be
aborted between two pieces.

A SentencePiece vocabulary (`LLAMA_VOCAB_TYPE_SPM`) spells a character that it does not have as bytes. At each such
character llama.cpp copies all ids so far: 14 s for 1 MB. So a long text is split before such a character, which no
token can contain.
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
from ...engine.special_tokens import Names, no_check, unmarked
from .library import lib

SHORT = 4096
"""Maximum number of characters of a text that is not split here: llama.cpp then takes less than a millisecond."""

_SMALL = 64
"""Maximum number of characters of a piece whose token ids are reused if the piece occurs again in the text."""

_RUN = 8192
"""Minimum number of characters of a part into which a text is split for a SentencePiece vocabulary."""

_AT_ONCE = 1 << 16
"""Number of token ids that are converted to Python's integers in one call, which takes about a millisecond."""

_CONTROL = int(lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN)
_CUT_AT = int(_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED)
_LEFT, _RIGHT = int(lib.LLAMA_TOKEN_ATTR_LSTRIP), int(lib.LLAMA_TOKEN_ATTR_RSTRIP)
_BYTE = re.compile(rb"<0x[0-9A-F]{2}>")
"""The text of a token that stands for a byte."""

_SPACE = frozenset(" \t\n\v\f\r")  # isspace in C

_KEEPS_EVERY_BYTE = frozenset({lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_RWKV})
"""Types of vocabularies that keep every byte of a text, except for spaces and for bytes that have no token."""


class Special(NamedTuple):
    """A token that is found by its name.

    Attributes:
        name: Its name in a text.
        id: Its token id.
        control: Whether it controls the model instead of standing for text.
        left: Whether it includes the white space before it.
        right: Whether it includes the white space after it.
    """

    name: str
    id: int
    control: bool
    left: bool
    right: bool


class Cutter:
    """Splits texts at special tokens in the same way as llama.cpp: the longest names of the whole text first."""

    def __init__(self, special: Iterable[Special]) -> None:
        ordered = sorted(special, key=lambda one: -len(one.name.encode("utf-8", "surrogateescape")))
        self._rank: dict[str, int] = {}
        for rank, one in enumerate(ordered):
            self._rank.setdefault(one.name, rank)
        self._special = ordered
        self._names = Names(self._rank)

    def cut(self, text: str, check: Callable[[], None] = no_check) -> list[str | int]:
        """Split a text.

        Args:
            text: The text.
            check: Called between two parts of the work. It may raise to abort it.

        Returns:
            Pieces of text, none of them empty, and ids of special tokens, in order.
        """
        # Lists of integers instead of tuples: the garbage collector scans tuples while it holds the interpreter's lock.
        begins: list[int] = []
        ranks: list[int] = []
        for at, name in self._names.find(text, check):
            begins.append(at)
            ranks.append(self._rank[name])
        ends = self._ends(text, begins, ranks, check)
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

    def _ends(self, text: str, begins: list[int], ranks: list[int], check: Callable[[], None]) -> list[int]:
        """Return where each name ends, including the white space after it that belongs to its token.

        The end is 0 for a name that overlaps one of a lower rank, which takes precedence. `begins` are changed to
        include the white space before a name.
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
    """The vocabulary of a model. Thread-safe. Its methods raise ModelClosedError after the model's gate is closed."""

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
        self, text: str, *, add_special: bool, parse_special: bool, mark: str = "", check: Callable[[], None] = no_check
    ) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text.
            add_special: Whether to add the tokens that the model expects around a text, such as BOS.
            parse_special: Whether names of special tokens in the text become these tokens. A name with `mark` in it
                does not.
            mark: A character that is removed from the text: see `engine.special_tokens`. "": there is none.
            check: Called between two parts of the work. It may raise to abort it.

        Raises:
            ModelClosedError: The model is closed.
            ValueError: The text is too long.
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
        """Yield the token ids of a long text, in parts. All but the first begin with a character without token."""
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
        # llama.cpp may add a space before a text. Before a character without token that space is a separate token,
        # which is removed here: one such character gives it once, and so do two of them.
        once, twice = (len(self._native(text[0] * times, False, False)) for times in (1, 2))
        return ids[2 * once - twice :]

    @cached_property
    def _unknown(self) -> re.Pattern[str] | None:
        """Finds a character without token, which is spelt as bytes. None: the vocabulary is not of type SPM."""
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
        """The token ids that the model expects before a text, and those after it."""
        plain, complete = self._native("a", False, False), self._native("a", True, False)
        extra = len(complete) - len(plain)
        begin = next(at for at in range(extra + 1) if complete[at : at + len(plain)] == plain)
        return complete[:begin], complete[begin + len(plain) :]

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
        """The names of tokens that control the model. Text of users must not become these tokens."""
        return [one.name for one in self._specials if one.control]

    def fewest(self, text: str) -> int:
        """Return a lower bound of the number of tokens of a text, computed from its length. 0: no bound is known."""
        longest, dropped = self._coverage
        return -(-len(text.encode("utf-8", "surrogatepass").translate(None, dropped)) // longest) if longest else 0

    @cached_property
    def _coverage(self) -> tuple[int, bytes]:
        """The maximum number of bytes of a text that one token covers, and the bytes that have no token.

        Bytes without a token may be dropped. The number is 0 if no maximum is known.
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
        """Return whether the text is exactly one token, possibly a special one."""
        ids = self._native(text, False, True)
        return len(ids) == 1 and self.text_of(ids[0]) == text

    def truncated(self, tokens: list[int], length: int) -> list[int]:
        """Shorten a text to a number of tokens.

        Args:
            tokens: The token ids of the text, with those that the model expects around a text.
            length: Maximum number of token ids.

        Returns:
            The first token ids of the text, and after them those that the model expects at the end.
        """
        if len(tokens) <= length:
            return tokens
        tail = self._around[1][-length:]
        return tokens[: length - len(tail)] + tail

    # ------------------------------------------------ from ids to text

    def is_end(self, token: int) -> bool:
        """Return whether the model ends its text or its turn with this token."""
        known = self._ends.get(token)
        if known is None:
            with self._gate:
                known = self._ends[token] = bool(lib.llama_vocab_is_eog(self._vocab, token))
        return known

    def text_of(self, token: int | None) -> str:
        """Return the text of a token, also of a special one. It is empty for None."""
        return "" if token is None else self.piece(token, True).decode("utf-8", "replace")

    def piece(self, token: int, special: bool) -> bytes:
        """Return the bytes of a token. A special token has none unless `special`."""
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
