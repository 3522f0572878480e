# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of an MLX model: conversion between text, token ids and bytes, and constrained decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from ..._concurrency.background import waiting
from ..._concurrency.gate import Gate
from ...engine.special_tokens import USUAL_MARK, Shield, no_check
from ...errors import ModelLoadError
from ...grammar.grammar import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_SPACE = "\u2581"
"""SentencePiece writes this for a space."""

_SHORT = 8192
"""Maximum number of characters that are tokenized with the interpreter's lock, in some milliseconds. A longer text is
tokenized in a thread of the library, without the lock."""


_NO_END = "<|inference-bridge: no end|>"


class MlxTokenizer:
    """A fast tokenizer of Hugging Face. Thread-safe.

    Args:
        tokenizer: mlx-lm's wrapper of the tokenizer.
        ends: The ids of the tokens that end a text.
        vocab_size: The number of logits, which may be larger than the number of tokens.
        directory: The model's directory, for errors.

    Raises:
        ModelLoadError: It is not a fast tokenizer.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], vocab_size: int, directory: str) -> None:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(fast, FastTokenizer):
            raise ModelLoadError(f"the tokenizer in {directory} can't be used: there is no tokenizer.json for it")
        # Copies, because the model's own tokenizer may truncate or pad, and because whether names of special tokens
        # are read is a setting of the whole object.
        plain = FastTokenizer.from_str(fast.to_str())
        plain.no_truncation()
        plain.no_padding()
        self._serialized = plain.to_str()
        self._special = self._marked(USUAL_MARK)
        self._plain = plain
        self._plain.encode_special_tokens = True
        self._gate = Gate()
        """Every use passes this gate: no thread may be inside the library when the process exits."""
        self._ends = frozenset(ends)
        self._vocab_size = vocab_size
        self.bos_token: str = tokenizer.bos_token or ""
        self.eos_token: str = tokenizer.eos_token or ""
        description = json.loads(self._serialized)
        self._pieces = _Pieces(self._special, description)
        self._keeps_every_byte = _keeps_every_byte(description)
        added = description.get("added_tokens") or ()
        self.shield = Shield(token["content"] for token in added if token["special"])
        """Prevents text of users from becoming special tokens."""

    def encode(self, text: str, *, special: bool, check: Callable[[], None] = no_check) -> list[int]:
        """See `engine.model.Tokenizer`."""
        check()
        if not special:
            return self._ids(self._plain, text, add=False)
        pristine = any(one in text for one in _spellings(USUAL_MARK))
        return self._ids(self._without_marks if pristine else self._special, text, add=True)

    def encode_whole(self, text: str, longest: int | None = None) -> list[int]:
        """Return the token ids of a text, with the special tokens that the model expects around it.

        Names of special tokens in the text are read as plain text.

        Args:
            text: The text.
            longest: Maximum number of tokens; the rest of the text is left out. None: no limit.
        """
        if longest is None:
            return self._ids(self._plain, text, add=True)
        shortening = FastTokenizer.from_str(self._serialized)
        shortening.encode_special_tokens = True
        shortening.enable_truncation(longest)
        return self._ids(shortening, text, add=True)

    def encode_rendered(self, text: str, mark: str = "", check: Callable[[], None] = no_check) -> list[int]:
        """See `engine.model.Tokenizer`."""
        check()
        if not mark:
            pristine = any(one in text for one in _spellings(USUAL_MARK))
            return self._ids(self._without_marks if pristine else self._special, text, add=False)
        # The mark is a token of this tokenizer, so a name with the mark inside is not read as a special token. The
        # marks themselves are removed.
        tokenizer = self._special if mark == USUAL_MARK else self._marked(mark)
        left_out = {tokenizer.token_to_id(one) for one in _spellings(mark)}
        return [token for token in self._ids(tokenizer, text, add=False) if token not in left_out]

    def _marked(self, mark: str) -> FastTokenizer:
        """Return a tokenizer in which the mark is a token. Creating it holds the interpreter's lock for a while."""
        tokenizer = FastTokenizer.from_str(self._serialized)
        tokenizer.add_tokens([AddedToken(one, normalized=False, special=False) for one in _spellings(mark)])
        return tokenizer

    @cached_property
    def _without_marks(self) -> FastTokenizer:
        return FastTokenizer.from_str(self._serialized)

    def _ids(self, tokenizer: FastTokenizer, text: str, *, add: bool) -> list[int]:
        text = _encodable(text)
        with self._gate:
            if len(text) <= _SHORT:
                return list(tokenizer.encode(text, add_special_tokens=add).ids)
            with waiting():
                return list(tokenizer.encode_batch_fast([text], add_special_tokens=add)[0].ids)

    def fewest(self, text: str) -> int:
        """Return a lower bound of the number of tokens of a text, computed from its length. 0: no bound is known."""
        longest, dropped = self._coverage
        return -(-len(_encodable(text).encode().translate(None, dropped)) // longest) if longest else 0

    @cached_property
    def _coverage(self) -> tuple[int, bytes]:
        """The maximum number of bytes of a text that one token covers, and the bytes that have no token.

        Bytes without a token are dropped. The number is 0 if no maximum is known.
        """
        if not self._keeps_every_byte:
            return 0, b""
        longest = max(len(self._pieces.of(token, True)) for token in range(self._special.get_vocab_size()))
        dropped = b"".join(byte for name, byte in _BYTES.items() if self._special.token_to_id(name) is None)
        return longest, dropped

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._special.token_to_id(text) is not None

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def piece(self, token: int, special: bool) -> bytes:
        """Return the bytes of a token. A special token has none unless `special`."""
        return self._pieces.of(token, special)

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary for constrained decoding."""
        return Vocabulary(self._for_grammars, self._gate)

    def _for_grammars(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        tokenizer = FastTokenizer.from_str(self._serialized)
        ends = sorted(self._ends)
        if not ends:  # llguidance needs one: this one has an id that the model can't choose
            tokenizer.add_special_tokens([_NO_END])
            ends = [tokenizer.get_vocab()[_NO_END]]
        size = max(self._vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
        # In two calls, because each call holds the interpreter's lock.
        made = LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=ends, slices=[])
        return made.with_slices(LLTokenizer.general_slices())


def _keeps_every_byte(description: Mapping[str, Any]) -> bool:
    """Return whether the tokens of a text contain all its bytes, except for bytes that have no token.

    That is so for byte-level BPE, if the text is not normalised and no token includes the white space beside it.
    """
    before = description.get("pre_tokenizer")
    kinds = set(_kinds(before))
    added = description.get("added_tokens") or ()
    return (
        description["model"].get("type") == "BPE"
        and description.get("normalizer") is None
        and "ByteLevel" in kinds
        and kinds <= {"ByteLevel", "Sequence", "Digits", "Split"}
        and '"Removed"' not in json.dumps(before)
        and not any(token.get("lstrip") or token.get("rstrip") for token in added)
    )


def _spellings(mark: str) -> tuple[str, str]:
    """Return the two forms in which a template may write the mark: the character itself, and its JSON escape."""
    return mark, f"\\u{ord(mark):04x}"


def _encodable(text: str) -> str:
    """Return the text, with "?" in place of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


class _Pieces:
    """The bytes of each token, by the type of the tokenizer's decoder: byte-level BPE, SentencePiece, or another."""

    def __init__(self, tokenizer: FastTokenizer, description: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        kinds = set(_kinds(description.get("decoder")))
        self._byte_level = "ByteLevel" in kinds
        self._sentence_piece = bool(kinds & {"Metaspace", "Replace", "ByteFallback"})
        added = description.get("added_tokens") or ()
        self._names = {token["id"]: token["content"].encode() for token in added}
        self._special = {token["id"] for token in added if token["special"]}
        self._known: dict[int, bytes] = {}

    def of(self, token: int, special: bool) -> bytes:
        """Return the bytes of a token. A special token has none unless `special`."""
        if not special and token in self._special:
            return b""
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._names[token] if token in self._names else self._bytes(token)
        return known

    def _bytes(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token)
        if text is None:  # the model's matrix is wider than the vocabulary
            return b""
        if self._byte_level:
            return b"".join(_BYTES[one] if one in _BYTES else one.encode() for one in text)
        if self._sentence_piece:
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                return bytes([int(text[3:5], 16)])
            return text.replace(_SPACE, " ").encode()
        return self._tokenizer.decode([token]).encode()


def _kinds(part: Any) -> Iterator[str]:
    """Yield the types of a decoder or pre-tokenizer and of its parts."""
    if isinstance(part, dict):
        yield part.get("type", "")
        for inner in part.get("decoders") or part.get("pretokenizers") or ():
            yield from _kinds(inner)


def _byte_names() -> dict[str, int]:
    """Return the byte for each character of byte-level BPE (`bytes_to_unicode` in GPT-2's encoder.py)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = {name: bytes([byte]) for name, byte in _byte_names().items()}
