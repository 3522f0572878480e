# SPDX-License-Identifier: Apache-2.0
"""Checks of a GGUF model before an engine loads it: that the file is complete, and how much context fits in memory."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable

from .. import registry
from ..errors import ModelLoadError
from . import discovery
from .found import parts_of
from .headers import gguf, gguf_values

_log = logging.getLogger(__name__)

MEMORY_SHARE = 0.7
"""The fraction of the free memory that the context may take. The rest is left for other programs."""

FALLBACK_CONTEXT = 4096
"""The context length of a model that does not state the length it was trained for."""
MIN_CONTEXT = 512
BLOCK = 256
"""llama.cpp allocates the context's memory in blocks of this many tokens."""


def check(header: gguf.GGUFMetadata) -> None:
    """Raise ModelLoadError if llama.cpp would fail or crash on this model."""
    path = header.path
    if header.kind != "model":
        what = {"projector": "a projector (mmproj)", "adapter": "a LoRA adapter", "vocabulary": "a vocabulary only"}
        raise ModelLoadError(
            f"{path} is {what.get(header.kind, 'a file of another kind')}, not a model that generates text"
        )
    if header.missing_bytes:
        raise ModelLoadError(f"{path} is cut short: {header.missing_bytes} bytes are missing. Download it again")
    _check_values(header)


def check_projector(header: gguf.GGUFMetadata) -> None:
    """Raise ModelLoadError if a file is not a complete projector with possible values."""
    if header.kind != "projector":
        raise ModelLoadError(f"{header.path} is not a projector (mmproj)")
    _check_values(header)


def check_adapter(header: gguf.GGUFMetadata, model: gguf.GGUFMetadata) -> None:
    """Raise ModelLoadError if a file is not a complete LoRA adapter for `model`."""
    if header.kind != "adapter":
        raise ModelLoadError(f"{header.path} is not a LoRA adapter")
    if header.architecture != model.architecture:
        expected, found = model.architecture, header.architecture
        raise ModelLoadError(f"{header.path} is an adapter for a {found} model, and {model.path} is a {expected} model")
    if header.missing_bytes:
        raise ModelLoadError(f"{header.path} is cut short: {header.missing_bytes} bytes are missing. Download it again")
    _check_values(header)


def _check_values(header: gguf.GGUFMetadata) -> None:
    problem = gguf_values.impossible(header)
    if problem is not None:
        raise ModelLoadError(f"{header.path} can't be loaded: {problem}")


def counts_sounds(projector: gguf.GGUFMetadata) -> bool:
    """Return whether llama.cpp counts a sound's tokens correctly. It ends the process if the count is wrong.

    Whisper makes 1,500 vectors of half a minute, and some projectors combine several vectors into one token. A
    remainder makes one more token, which `clip_n_output_tokens` of tools/mtmd/clip.cpp does not count.
    """
    stacked = projector.integer("clip.audio.projector.stack_factor")
    return not stacked or 3000 // stacked // 2 == math.ceil(1500 / stacked)


def projector_of(path: str) -> str | None:
    """Return the path of the projector that discovery has assigned to the model, so that both agree on its abilities.

    None: discovery found no projector, or the model is not in a directory that discovery searches.
    """
    path = os.path.abspath(path)
    roots = discovery.default_directories(registry.model_directories())
    if not any(_lies_in(place, root) for root in roots for place in {path, os.path.realpath(path)}):
        return None
    return next((found.mmproj for found in discovery.discover() if os.path.abspath(found.path) == path), None)


def _lies_in(path: str, directory: str) -> bool:
    return any(path.startswith(os.path.join(place, "")) for place in {directory, os.path.realpath(directory)})


KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of one number in the KV cache, by type. In the quantised types 32 numbers share a scale."""


def weights_bytes(header: gguf.GGUFMetadata, beside: Iterable[str | None] = ()) -> int:
    """Return the total bytes of a model's files and of the files `beside` it, such as its projector and adapters."""
    parts = [part for part in parts_of(header.path) if part != header.path]
    return header.size_bytes + sum(os.path.getsize(path) for path in (*parts, *beside) if path and os.path.exists(path))


def left_for_context(
    header: gguf.GGUFMetadata, weights: int, requested: int, slots: int, limit: int, kv_cache_type: str = "f16"
) -> int | None:
    """Return the bytes that a memory limit leaves for the contexts of all slots.

    Args:
        header: The model's header.
        weights: Bytes of the files that are loaded.
        requested: Tokens for each operation; 0: as many as fit, but at least a few hundred.
        slots: Number of operations that run at once.
        limit: Maximum bytes of weights and contexts together; 0: no limit.
        kv_cache_type: The type of the numbers in the KV cache.

    Returns:
        The number of bytes; None without a limit.

    Raises:
        ModelLoadError: The weights and the contexts do not fit.
    """
    if not limit:
        return None
    per_token = bytes_per_token(header, kv_cache_type)
    wanted = round_up(requested or min(MIN_CONTEXT, header.info.context_length or MIN_CONTEXT))
    if weights + wanted * slots * per_token <= limit:
        return limit - weights
    most = max(limit - weights, 0) // (per_token * slots) // BLOCK * BLOCK if per_token else 0
    raise ModelLoadError(
        f"memory_limit={limit} is too low for {header.path}: the weights take {weights} bytes, and {slots} slots of "
        f"{wanted} tokens {wanted * slots * per_token}; there is room for {most} tokens in each slot. "
        + ("Lower context_length or parallel_slots" if most else "Raise memory_limit, or choose a smaller model")
    )


def context_length(
    header: gguf.GGUFMetadata,
    requested: int,
    slots: int,
    memory: int,
    *,
    kv_cache_type: str = "f16",
    most: int | None = None,
) -> int:
    """Return the context length for each of `slots` operations.

    It is `requested` if that is set; otherwise the model's own, reduced to the length for which there is memory.

    Args:
        header: The model's header.
        requested: Tokens for each operation; 0: as many as fit.
        slots: Number of operations that run at once.
        memory: Bytes that are free after loading the weights. If `requested` is 0, a fraction of them is used.
        kv_cache_type: The type of the numbers in the KV cache.
        most: Maximum bytes of all contexts, from `left_for_context`.

    Returns:
        The number of tokens.
    """
    own = header.info.context_length or FALLBACK_CONTEXT
    per_token = bytes_per_token(header, kv_cache_type)
    if requested:
        if requested > own:
            _log.warning("context_length=%d is more than the %d that %s was trained for", requested, own, header.path)
        needed = requested * slots * per_token
        if needed > memory:
            what = "context_length=%d in each of %d slots takes %.1f GB when it is full, and %.1f are free"
            _log.warning(what, requested, slots, needed / 1e9, memory / 1e9)
        return requested
    if not per_token:
        return own
    room = int(memory * MEMORY_SHARE)
    if most is not None:
        room = min(room, most)
    fits = room // (per_token * slots) // BLOCK * BLOCK
    if fits >= own:
        return own
    length = max(fits, MIN_CONTEXT)
    _log.info("context_length is %d, not the model's %d: that is what %d slots have memory for", length, own, slots)
    return length


def round_up(length: int) -> int:
    """Return the number of tokens for which llama.cpp allocates memory if the context has this length."""
    return -(-length // BLOCK) * BLOCK


def is_free_of_length(header: gguf.GGUFMetadata) -> bool:
    """Return whether the KV cache of a token is the same for every context length.

    It is not for a model with two sets of rotary factors (LongRoPE, https://arxiv.org/abs/2402.13753): llama.cpp uses
    one set for contexts up to the original training length, and the other set for longer ones.
    """
    return not any(tensor.name.startswith("rope_factors_long") for tensor in header.tensors)


def bytes_per_token(header: gguf.GGUFMetadata, kv_cache_type: str = "f16") -> int:
    """Return the bytes of KV cache of one token in all layers; 0 for a model without a KV cache."""
    arch = header.architecture
    heads = header.integer(f"{arch}.attention.head_count")
    width = header.integer(f"{arch}.embedding_length")
    kv_heads = header.values.get(f"{arch}.attention.head_count_kv", heads)
    if isinstance(kv_heads, tuple):  # one a layer
        in_all = sum(count for count in kv_heads if isinstance(count, int))
    else:
        in_all = (kv_heads if isinstance(kv_heads, int) else heads) * header.integer(f"{arch}.block_count")
    size = width // heads if heads else 0
    key = header.integer(f"{arch}.attention.key_length") or size
    value = header.integer(f"{arch}.attention.value_length") or size
    return math.ceil(in_all * (key + value) * KV_BYTES[kv_cache_type])
