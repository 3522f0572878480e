# SPDX-License-Identifier: Apache-2.0
"""Checks values in a GGUF header on which llama.cpp would end the process with a failed assertion.

The rules are those of `llama_model_base::load_hparams` (src/llama-model.cpp), `llama_vocab::impl::load`
(src/llama-vocab.cpp), the graphs (src/llama-graph.cpp, src/models) and `clip_model_loader::load_hparams`
(tools/mtmd/clip.cpp). Only values are checked, which is fast enough for discovery. Problems of the weights or the
vocabulary are found by a trial load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from . import gguf

MAX_LAYERS = 512
MAX_EXPERTS = 1024
"""LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS in src/llama-hparams.h."""

MAX_COUNT = 1 << 24
"""Larger than any count or size of a real model, and so small that the product of two fits into 64 bits."""

_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_LENGTHS = ("context_length", "original_context_length", "vocab_size", "sliding_window")
"""Ends of keys whose value may exceed MAX_COUNT: other checks come before it determines the size of anything."""


def impossible(header: gguf.GGUFMetadata) -> str | None:
    """Return what is wrong with the values of a model or a projector. None: nothing is."""
    checks = _projector(header) if header.kind == "projector" else _model(header)
    return next(checks, None)


def _model(header: gguf.GGUFMetadata) -> Iterator[str]:
    arch = header.architecture
    if not arch:
        return
    yield from _numbers(header, f"{arch}.")
    layers = header.values.get(f"{arch}.block_count")
    if layers is not None:
        yield from _outside(f"{arch}.block_count", layers, 1, MAX_LAYERS)
        predicted = header.values.get(f"{arch}.nextn_predict_layers")
        if predicted is not None:
            yield from _outside(f"{arch}.nextn_predict_layers", predicted, 0, layers)
    yield from _experts(header)
    scaling = header.values.get(f"{arch}.rope.scaling.type")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
        yield f"{arch}.rope.scaling.type is {scaling!r}, not one of {', '.join(_ROPE_SCALINGS)}"
    if header.text("tokenizer.ggml.model") in ("none", "no_vocab"):
        yield "tokenizer.ggml.model is 'none': without a tokenizer it can't read a text"


def _experts(header: gguf.GGUFMetadata) -> Iterator[str]:
    arch = header.architecture
    experts = header.values.get(f"{arch}.expert_count", 0)
    if type(experts) is not int:
        return
    yield from _outside(f"{arch}.expert_count", experts, 0, MAX_EXPERTS)
    stated = header.values.get(f"{arch}.expert_used_count", 0)
    most = max((one for one in stated if type(one) is int), default=0) if isinstance(stated, tuple) else stated
    if arch not in ("hunyuan-dense", "hunyuan_vl"):  # for which llama.cpp ignores both
        yield from _outside(f"{arch}.expert_used_count", most, 1 if experts else 0, experts)
    groups = header.values.get(f"{arch}.expert_group_count", 0)
    if groups:
        if type(groups) is not int or not 0 < groups < experts:
            yield f"{arch}.expert_group_count is {groups!r}, with {experts} experts"
        elif groups > 1:
            if experts % groups:
                yield f"{arch}.expert_group_count is {groups}, which does not divide {experts} experts"
            used = header.values.get(f"{arch}.expert_group_used_count", 0)
            yield from _outside(f"{arch}.expert_group_used_count", used, 1, groups - 1)


def _projector(header: gguf.GGUFMetadata) -> Iterator[str]:
    yield from _numbers(header, "clip.")
    for part in ("vision", "audio"):
        sizes = {
            name: header.values.get(f"clip.{part}.{name}")
            for name in ("patch_size", "image_size", "embedding_length", "attention.head_count", "block_count")
        }
        for name, value in sizes.items():
            if value is not None and not isinstance(value, tuple):
                yield from _outside(f"clip.{part}.{name}", value, 0 if name == "block_count" else 1, MAX_COUNT)
        patch, image = sizes["patch_size"], sizes["image_size"]
        if type(patch) is int and type(image) is int and not patch <= image <= 1 << 16:
            yield f"clip.{part}.image_size is {image}, with patches of {patch}"


def _numbers(header: gguf.GGUFMetadata, prefix: str) -> Iterator[str]:
    """Return the first number that is NaN, an epsilon out of range, or a count larger than MAX_COUNT."""
    for key, value in header.values.items():
        if not key.startswith(prefix):
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                if math.isnan(number):
                    yield f"{key} is not a number (NaN)"
                elif "epsilon" in key and not 0 <= number < 1:
                    yield f"{key} is {number}, not a number from 0 to 1"
            elif type(number) is int and number > MAX_COUNT and not key.endswith(_LENGTHS):
                yield f"{key} is {number:,}, more than any model has"


def _outside(key: str, value: Any, low: int, high: Any) -> Iterator[str]:
    """Return a problem if `value` is an integer outside [low, high]. llama.cpp itself refuses other types."""
    if type(value) is int and type(high) is int and not low <= value <= high:
        yield f"{key} is {value}, not {f'{low} to {high}' if low < high else low}"
