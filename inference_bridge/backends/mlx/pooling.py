# SPDX-License-Identifier: Apache-2.0
"""Vectors of texts on MLX: the hidden states of a text's tokens are pooled as the model's files say.

The package mlx-embeddings is not used: its licence is GPL-3.0, and it depends on a package for vision models.
Everything here runs in the one thread that uses MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.activations import gelu, relu
from mlx_lm.models.cache import make_prompt_cache

from ...catalog.headers.sentence_transformers import Recipe
from ...errors import GenerationError, ModelClosedError
from .encoder import Encoder
from .engine import memory

MAX_TEXTS = 32
MAX_TOKENS = 2048
"""Maximum number of tokens of all texts in a batch. A single text may have more, up to the model's context length."""

ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "Identity": lambda vector: vector,
    "Tanh": mx.tanh,
    "ReLU": relu,
    "GELU": gelu,
}

Hidden = Callable[[mx.array, mx.array, Callable[[], None]], mx.array]
"""A function of token ids [texts, tokens], where shorter texts are padded at their end, of the texts' lengths, and of a
function that raises when the model is being closed. It returns hidden states [texts, tokens, width]."""


class DenseLayer(NamedTuple):
    """A dense layer after the pooling.

    Attributes:
        weight: [out, in].
        bias: [out], or None.
        activation: A name in ACTIVATIONS.
    """

    weight: mx.array
    bias: mx.array | None
    activation: str

    def __call__(self, vectors: mx.array) -> mx.array:
        out = vectors @ self.weight.T
        return ACTIVATIONS[self.activation](out if self.bias is None else out + self.bias)


class PoolingEngine:
    """Evaluates texts and pools each one's hidden states into one vector.

    Args:
        hidden: Computes the hidden states.
        recipe: How to pool.
        dense: The dense layers that the recipe names.
        stream: The MLX stream to compute on.
    """

    max_texts = MAX_TEXTS
    max_tokens = MAX_TOKENS
    memory = staticmethod(memory)

    def __init__(self, hidden: Hidden, recipe: Recipe, dense: Sequence[DenseLayer], stream: Any) -> None:
        self._hidden: Hidden | None = hidden
        self._recipe = recipe
        self._dense = dense
        self._stream = stream
        self._closing = False

    def evaluate(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """Return one vector for each text, which is given as token ids.

        Raises:
            ModelClosedError: The model is closed.
            GenerationError: A vector has a value that is not a finite number.
        """
        if self._hidden is None:
            raise ModelClosedError("the model is closed: load it again")
        mx.reset_peak_memory()
        out: dict[int, list[float]] = {}
        with mx.stream(self._stream):
            for places in _batches(texts):
                lengths = mx.array([len(texts[place]) for place in places])
                longest = max(len(texts[place]) for place in places)
                padded = [texts[place] + [0] * (longest - len(texts[place])) for place in places]
                vectors: Any = self._pooled(self._hidden(mx.array(padded), lengths, self._check), lengths).tolist()
                out |= zip(places, vectors, strict=True)
        if not all(map(_finite, out.values())):
            raise GenerationError("the model's vectors hold values that are not numbers: its weights may be damaged")
        return [out[place] for place in range(len(texts))]

    def _pooled(self, hidden: mx.array, lengths: mx.array) -> mx.array:
        hidden = hidden.astype(mx.float32)
        vectors = mx.concatenate([_pool(way, hidden, lengths) for way in self._recipe.pooling], axis=-1)
        for layer in self._dense:
            vectors = layer(vectors)
        if self._recipe.normalize:
            norm = mx.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / mx.maximum(norm, 1e-12)  # the same minimum as in torch.nn.functional.normalize
        return vectors

    def _check(self) -> None:
        if self._closing:
            raise ModelClosedError("the model was closed meanwhile")

    # ------------------------------------------------ a Loop of the worker, whose turns do nothing

    def turn(self) -> bool:
        return False

    def interrupt(self) -> None:
        self._closing = True

    def close(self, exiting: bool) -> None:
        self._hidden = None
        self._dense = ()
        mx.clear_cache()


def _finite(vector: list[float]) -> bool:
    return all(value - value == 0 for value in vector)


def _batches(texts: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield batches of texts of similar length, as lists of their indices.

    A batch has at most MAX_TOKENS tokens including padding, unless it is a single text.
    """
    batch: list[int] = []
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        if batch and len(texts[place]) * (len(batch) + 1) > MAX_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _pool(way: str, hidden: mx.array, lengths: mx.array) -> mx.array:
    """Pool hidden states.

    Args:
        way: A name in `sentence_transformers.POOLING`.
        hidden: [texts, tokens, width].
        lengths: [texts], the number of tokens of each text.

    Returns:
        Vectors, [texts, width].
    """
    if way == "cls":
        return hidden[:, 0]
    if way == "last":
        return mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    inside = (mx.arange(hidden.shape[1]) < lengths[:, None])[:, :, None]
    if way == "max":
        return mx.where(inside, hidden, -mx.inf).max(axis=1)
    weights = inside.astype(mx.float32)
    if way == "weightedmean":
        weights = weights * mx.arange(1, hidden.shape[1] + 1)[:, None]
    total = weights.sum(axis=1)
    # The hidden states of padding may be any value, also NaN, so they are replaced instead of multiplied by 0.
    summed = (mx.where(inside, hidden, 0) * weights).sum(axis=1)
    return summed / (mx.sqrt(total) if way == "mean_sqrt_len" else total)


# ---------------------------------------------------------------- hidden states


def of_encoder(encoder: Encoder) -> Hidden:
    """Return the function that computes the hidden states of an encoder, which evaluates a text as a whole."""

    def hidden(tokens: mx.array, lengths: mx.array, check: Callable[[], None]) -> mx.array:
        check()
        return encoder(tokens, _mask(tokens, lengths))

    return hidden


def of_decoder(model: Any, chunk: int) -> Hidden:
    """Return the function that computes the hidden states of a causal model of mlx-lm.

    Its tokens attend only to earlier ones, so padding at the end of a text does not change them.

    Args:
        model: The model, with its head.
        chunk: Number of tokens of each text that are evaluated in one step.
    """
    backbone = backbone_of(model)

    def hidden(tokens: mx.array, lengths: mx.array, check: Callable[[], None]) -> mx.array:
        cache = make_prompt_cache(model)
        parts = []
        for start in range(0, tokens.shape[1], chunk):
            check()
            parts.append(backbone(tokens[:, start : start + chunk], cache=cache))
            mx.eval(parts[-1], [part.state for part in cache])
        return mx.concatenate(parts, axis=1)

    return hidden


def of_both_directions(model: Any) -> Hidden:
    """Return the function that computes the hidden states of a model of mlx-lm with bidirectional attention."""
    backbone = backbone_of(model)
    layers = len(make_prompt_cache(model))

    def hidden(tokens: mx.array, lengths: mx.array, check: Callable[[], None]) -> mx.array:
        check()
        found: mx.array = backbone(tokens, cache=[_WholeText(_mask(tokens, lengths))] * layers)
        return found

    return hidden


def backbone_of(model: Any) -> Any:
    """Return the part of an mlx-lm model that computes hidden states. Raises ValueError if there is none."""
    inner = getattr(model, "language_model", model)
    backbone = getattr(inner, "model", None)
    if backbone is None:
        raise ValueError("mlx-lm has no hidden states of this architecture")
    return backbone


def _mask(tokens: mx.array, lengths: mx.array) -> mx.array:
    """Return the attention mask, [texts, 1, 1, tokens]: False for padding."""
    return (mx.arange(tokens.shape[1]) < lengths[:, None])[:, None, None]


class _WholeText:
    """Takes the place of a layer's KV cache in mlx-lm's models, and supplies the mask of bidirectional attention."""

    offset = 0

    def __init__(self, mask: mx.array) -> None:
        self._mask = mask

    def make_mask(self, length: int, window_size: int | None = None, **_: object) -> mx.array:
        if window_size is None:
            return self._mask
        # In Gemma 3 half of the window is on each side (`Gemma3TextConfig` in transformers).
        places = mx.arange(length)
        return self._mask & (mx.abs(places[:, None] - places) <= window_size // 2)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values
