# SPDX-License-Identifier: Apache-2.0
"""Embedding models on MLX, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalog.headers import checkpoint
from ...catalog.headers.sentence_transformers import POOLING, Recipe, read_recipe
from ...engine.pooled_models.embeddings import PooledEmbeddings
from ...engine.worker import Worker
from ...errors import GenerationError, ModelLoadError, UnsupportedError
from ...options import LoadConfig
from ...types import ModelInfo
from . import model as loading
from .vocabulary import MlxTokenizer

if TYPE_CHECKING:
    from .pooling import DenseLayer, Hidden, PoolingEngine

CHUNK_ON_GPU = 512
CHUNK_ON_CPU = 64
"""Tokens of each text that are evaluated in a step. A step can't be interrupted."""

_LOAD_OPTIONS = frozenset({"context_length", "batch_size", "device", "extra"})


@dataclass(frozen=True, slots=True)
class _Parts:
    """The objects that the worker has created from the files."""

    engine: PoolingEngine
    tokenizer: MlxTokenizer
    info: ModelInfo


def load(found: loading.Directory, config: LoadConfig, *, backend: str) -> MlxEmbeddingModel:
    """Load the embedding model in a directory.

    Raises:
        UnsupportedError: An option does not apply to such a model, or its files do not say how to pool.
        ModelLoadError: The model can't be loaded.
    """
    for name in config.set_fields():
        if name not in _LOAD_OPTIONS:
            raise UnsupportedError(f"{name} for an embedding model", backend)
    recipe = _recipe(found, config, backend)
    worker, parts = loading.opened(found, lambda _, wanted: _open(found, recipe, config, wanted))
    return MlxEmbeddingModel(parts, recipe, worker, backend)


def _recipe(found: loading.Directory, config: LoadConfig, backend: str) -> Recipe:
    """Return how to pool: as `extra` says, else as the files say. Raises ModelLoadError and UnsupportedError."""
    try:
        recipe = read_recipe(str(found.path))
    except ValueError as error:
        raise ModelLoadError(f"{found.path} can't be loaded: {error}") from None
    pooling = _pooling_of(config)
    if pooling is not None:
        return replace(recipe or Recipe(()), pooling=(pooling,))
    if recipe is None:
        why = f"the files in {found.path} do not say how: set extra={{'pooling': …}} to one of {', '.join(POOLING)}"
        raise UnsupportedError("pooling the vectors of this model", backend, why)
    return recipe


def _pooling_of(config: LoadConfig) -> str | None:
    extra = config.extra or {}
    if not isinstance(extra, Mapping):
        raise TypeError("extra must be a mapping for this backend, not a list")
    for name, value in extra.items():
        if name != "pooling":
            raise TypeError(f"extra[{name!r}] is not known for an embedding model: only 'pooling' is")
        if value not in POOLING:
            raise ValueError(f"extra['pooling'] must be one of {', '.join(POOLING)}, not {value!r}")
    return extra.get("pooling")


def _open(found: loading.Directory, recipe: Recipe, config: LoadConfig, wanted: Callable[[], bool]) -> _Parts:
    """Do the part of the load that uses MLX, in the worker's thread."""
    mx = loading.mlx()
    from .pooling import PoolingEngine

    stream = loading.stream_of(mx, config.device, found.path)
    chunk = config.batch_size or (CHUNK_ON_GPU if stream.device.type == mx.gpu else CHUNK_ON_CPU)
    with mx.stream(stream):
        model, hidden, longest = _hidden(found, chunk, wanted)
        dense = _dense(mx, found.path, recipe)
        mx.eval(model.parameters())
    engine = PoolingEngine(hidden, recipe, dense, stream)
    with loading.failing(f"{found.path} can't be run"):
        try:
            width = len(engine.evaluate([[0]])[0])
        except GenerationError as error:
            raise ModelLoadError(f"{found.path} can't be used: {error}") from None
    wanted_length = config.context_length or 0
    own = min(filter(None, (longest, recipe.max_tokens)))
    if wanted_length > longest:
        raise ModelLoadError(
            f"context_length={wanted_length} is more than the {longest} tokens that {found.path} takes"
        )
    tokenizer = loading.tokenizer_of(found)
    vocab_size = int(found.config.get("vocab_size") or tokenizer.vocab_size)
    info = loading.info_of(found, model, vocab_size, wanted_length or own)
    tokens = MlxTokenizer(tokenizer, tokenizer.eos_token_ids, vocab_size, str(found.path))
    return _Parts(engine, tokens, replace(info, hidden_size=width))


def _hidden(found: loading.Directory, chunk: int, wanted: Callable[[], bool]) -> tuple[Any, Hidden, int]:
    """Return the model, the function that computes its hidden states, and the maximum number of tokens of a text."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    from .encoder import Encoder, EncoderArgs
    from .pooling import of_both_directions, of_decoder, of_encoder

    if found.facts.model_type in checkpoint.ENCODERS:
        model = loading.weights_of(found, wanted, get_model_classes=lambda config: (Encoder, EncoderArgs))
        return model, of_encoder(model), model.args.longest
    model = loading.weights_of(found, wanted, get_model_classes=_headless, model_config={"tie_word_embeddings": True})
    longest = found.facts.context_length or loading.FALLBACK_CONTEXT
    if not _is_bidirectional(found.config):
        return model, of_decoder(model, chunk), longest
    if not all(isinstance(part, KVCache | RotatingKVCache) for part in make_prompt_cache(model)):
        why = "it has bidirectional attention, which mlx-lm does not support for its architecture"
        raise ModelLoadError(f"{found.path} can't be loaded: {why}")
    return model, of_both_directions(model), longest


def _is_bidirectional(config: Mapping[str, Any]) -> bool:
    """Return whether the model was trained with bidirectional attention: each token also attends to later ones."""
    names = config.get("architectures") or ()
    return (
        config.get("use_bidirectional_attention") is True
        or config.get("is_causal") is False
        or any("Bidirectional" in str(name) for name in names)
    )


def _headless(config: dict[str, Any]) -> tuple[type, type]:
    """Return mlx-lm's classes for the architecture, changed so that they load weights without a head.

    An embedding model needs no head. In files that were saved without one, the names of the weights lack the prefix
    `model.`.
    """
    from mlx_lm.utils import _get_classes

    whole, args = _get_classes(config)

    class Headless(whole):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
            if not hasattr(self, "lm_head"):
                weights = {name: value for name, value in weights.items() if not name.startswith("lm_head.")}
            if not any(name.startswith(("model.", "language_model.")) for name in weights):
                weights = {f"model.{name}": value for name, value in weights.items()}
            made: dict[str, Any] = super().sanitize(weights) if hasattr(whole, "sanitize") else weights
            return made

    return Headless, args


def _dense(mx: Any, path: Path, recipe: Recipe) -> Sequence[DenseLayer]:
    from .pooling import DenseLayer

    layers = []
    for stated in recipe.dense:
        with loading.failing(f"{path / stated.file} can't be read"):
            weights = mx.load(str(path / stated.file))
            layer = DenseLayer(weights["linear.weight"], weights.get("linear.bias"), stated.activation)
        mx.eval([part for part in layer[:2] if part is not None])
        layers.append(layer)
    return layers


class MlxEmbeddingModel(PooledEmbeddings):
    """An EmbeddingModel. The model's files say whether its vectors are normalised to Euclidean norm 1."""

    def __init__(self, parts: _Parts, recipe: Recipe, worker: Worker, backend: str) -> None:
        self.backend = backend
        self._tokenizer = parts.tokenizer
        self._recipe = recipe
        super().__init__(parts.info, parts.engine, worker, parts.engine)

    def count_tokens(self, text: str) -> int:
        self._check_text(text)
        self._check_open()
        return len(self._tokenizer.encode(text, special=False, check=self._check_open))

    def _ids(self, text: str) -> list[int]:
        self._check_open()
        return self._tokenizer.encode_whole(self._asked(text))

    def _shortened(self, text: str, ids: list[int]) -> list[int]:
        return self._tokenizer.encode_whole(self._asked(text), self.info.context_length)

    def _asked(self, text: str) -> str:
        """Return the text with the prompt, and in lower case, if the model's files say so."""
        return self._recipe.prompt + (text.lower() if self._recipe.lower_case else text)
