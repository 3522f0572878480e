# SPDX-License-Identifier: Apache-2.0
"""Encoders of the BERT family for MLX, which mlx-lm does not have: bert, roberta and xlm-roberta.

The architecture is that of Devlin et al. 2018 (https://arxiv.org/abs/1810.04805). In roberta and xlm-roberta the first
position is the id of the padding token plus 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.activations import gelu, gelu_approx, relu
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import LayerNorm

_ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": gelu,
    "gelu_new": gelu_approx,
    "gelu_pytorch_tanh": gelu_approx,
    "relu": relu,
}

_NAMES = (
    (r"^(bert|roberta)\.", ""),
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "types."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.", "."),
    (r"\.attention\.output\.dense\.", ".joined."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".up."),
    (r"\.output\.dense\.", ".down."),
    (r"\.output\.LayerNorm\.", ".norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
"""Replacements that turn the names of weights in files into the names here. They are applied in this order."""

_USED = re.compile(r"(words|positions|types|norm|layers)\.")


@dataclass(frozen=True, slots=True)
class EncoderArgs:
    """The fields of config.json, with the same names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> EncoderArgs:
        """Read the fields. Raises ValueError for an encoder of another architecture."""
        if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
            raise ValueError("an encoder with relative positions, or used as a decoder, is not supported")
        args = cls(**{name: config[name] for name in cls.__slots__ if config.get(name) is not None})
        if args.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"the activation {args.hidden_act!r} is not known")
        return args

    @property
    def first_position(self) -> int:
        """The row of the first token in the table of positions."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a text."""
        return self.max_position_embeddings - self.first_position


class Encoder(Module):
    """Computes a vector for each token of a text, with bidirectional attention."""

    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.args = args
        self.words = Embedding(args.vocab_size, args.hidden_size)
        self.positions = Embedding(args.max_position_embeddings, args.hidden_size)
        self.types = Embedding(args.type_vocab_size, args.hidden_size)
        self.norm = LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.layers = [_Layer(args) for _ in range(args.num_hidden_layers)]

    def __call__(self, tokens: mx.array, mask: mx.array | None = None) -> mx.array:
        """Evaluate texts.

        Args:
            tokens: [texts, tokens] ids.
            mask: [texts, 1, 1, tokens], False for padding. None: no text is padded.

        Returns:
            [texts, tokens, hidden_size] vectors.
        """
        first = self.args.first_position
        hidden: mx.array = self.words(tokens) + self.positions(mx.arange(first, first + tokens.shape[1]))
        hidden = self.norm(hidden + self.types(mx.array(0)))
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights by their names here, without those for other tasks. mlx-lm calls this."""
        renamed = {}
        for name, value in weights.items():
            for pattern, replacement in _NAMES:
                name = re.sub(pattern, replacement, name)
            if _USED.match(name):
                renamed[name] = value
        return renamed


class _Layer(Module):
    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        width = args.hidden_size
        self.heads = args.num_attention_heads
        self.activation = _ACTIVATIONS[args.hidden_act]
        self.query, self.key, self.value, self.joined = (Linear(width, width) for _ in range(4))
        self.attention_norm = LayerNorm(width, eps=args.layer_norm_eps)
        self.up = Linear(width, args.intermediate_size)
        self.down = Linear(args.intermediate_size, width)
        self.norm = LayerNorm(width, eps=args.layer_norm_eps)

    def __call__(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        texts, length, width = hidden.shape
        size = width // self.heads

        def split(projected: mx.array) -> mx.array:
            return projected.reshape(texts, length, self.heads, size).transpose(0, 2, 1, 3)

        attended = mx.fast.scaled_dot_product_attention(
            split(self.query(hidden)),
            split(self.key(hidden)),
            split(self.value(hidden)),
            scale=1 / math.sqrt(size),
            mask=mask,
        )
        joined = self.joined(attended.transpose(0, 2, 1, 3).reshape(texts, length, width))
        hidden = self.attention_norm(hidden + joined)
        out: mx.array = self.norm(hidden + self.down(self.activation(self.up(hidden))))
        return out
