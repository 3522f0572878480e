# SPDX-License-Identifier: Apache-2.0
"""The tokens of MLX models, for each kind of tokenizer: ids, bytes, and use in grammars."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from inference_bridge import ModelLoadError
from inference_bridge.backends.mlx.vocabulary import MlxTokenizer
from inference_bridge.grammar.grammar import answer_grammar

TEXTS = ["Hello world", "  two spaces", "na\u00efve caf\u00e9", "日本語 🎉", "a\nb\tc", "123 4567", ""]
WORDS = ['hello world, the quick brown fox says hello to the lazy dog: 1 2 3 4 5 6 7 8 9 0 { } : , " a b c d e f'] * 20
SPECIAL = [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]


def byte_level() -> Tokenizer:
    """As GPT-2's, Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As in Llama 2, Mistral and Gemma: spaces are marks, and characters without a token are written as bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    learnt.train_from_iterator(WORDS, trainer)
    description = json.loads(learnt.to_str())["model"]
    names = [*(token.content for token in SPECIAL), *pieces, *description["vocab"]]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in description["merges"]]
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def words() -> Tokenizer:
    """The oldest BPE, with marks at the ends of words: its decoder is not one of the known ones."""
    vocabulary = {token.content: place for place, token in enumerate(SPECIAL)} | {"hel": 3, "lo</w>": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


KINDS = pytest.mark.parametrize("make", [byte_level, sentence_piece])


def wrapped(make: Callable[[], Tokenizer], more: int = 0, ends: tuple[int, ...] = (2,)) -> MlxTokenizer:
    """`more`: logits beyond the tokens."""
    tokenizer = make()
    of_transformers: Any = PreTrainedTokenizerFast
    fast = of_transformers(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    return MlxTokenizer(fast, ends, tokenizer.get_vocab_size() + more, "here")


@KINDS
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_the_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = wrapped(make)
    ids = tokenizer.encode(text, special=False)
    assert b"".join(tokenizer.piece(token, False) for token in ids).decode() == text
    assert ids == make().encode(text, add_special_tokens=False).ids


@KINDS
def test_special_tokens(make: Callable[[], Tokenizer]) -> None:
    tokenizer = wrapped(make)
    with_bos = [1] if make is sentence_piece else []
    assert tokenizer.encode("a</s>", special=True) == [*with_bos, *tokenizer.encode("a", special=False), 2]
    assert tokenizer.encode_rendered("<s>a")[:1] == [1]
    assert tokenizer.encode_rendered("<s>a")[1:] == tokenizer.encode("a", special=False)
    assert 2 not in tokenizer.encode("a</s>", special=False)
    assert (tokenizer.piece(2, False), tokenizer.piece(2, True)) == (b"", b"</s>")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.is_end(2)
    assert not tokenizer.is_end(1)


@KINDS
@pytest.mark.parametrize("ends", [(2,), (1, 2), ()])
def test_a_grammar_accepts_the_tokens(make: Callable[[], Tokenizer], ends: tuple[int, ...]) -> None:
    tokenizer = wrapped(make, more=5, ends=ends)
    text = "日本 🎉 hello"
    grammar = answer_grammar(tokenizer.vocabulary(), {"const": text}, backend="mlx")
    assert grammar is not None
    said = b""
    size = make().get_vocab_size() + 5
    while not grammar.finished:
        logits = np.random.default_rng(len(said)).standard_normal(size).astype(np.float32)
        grammar.mask(logits)
        token = int(logits.argmax())
        assert logits[token] > -np.inf
        assert not tokenizer.is_end(token)
        grammar.accept(token)
        said += tokenizer.piece(token, False)
    assert json.loads(said) == text


@KINDS
def test_truncation_and_padding_of_the_tokenizer_are_disabled(make: Callable[[], Tokenizer]) -> None:
    def cutting() -> Tokenizer:
        tokenizer = make()
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=50)
        return tokenizer

    text = "hello world, the quick brown fox"
    assert wrapped(cutting).encode(text, special=False) == wrapped(make).encode(text, special=False)


def test_an_unknown_decoder_is_called_for_each_token() -> None:
    tokenizer = wrapped(words)
    assert [tokenizer.piece(token, False) for token in (3, 4)] == [b"hel", b"lo"]

    def undecoded() -> Tokenizer:
        tokenizer = words()
        tokenizer.decoder = None
        return tokenizer

    assert wrapped(undecoded).piece(3, False) == b"hel"


def test_a_tokenizer_without_a_fast_implementation() -> None:
    class Slow:
        pass

    with pytest.raises(ModelLoadError, match="tokenizer.json"):
        MlxTokenizer(Slow(), (), 10, "here")
