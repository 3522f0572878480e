# SPDX-License-Identifier: Apache-2.0
"""Reads the description of a model in a directory with safetensors and a config.json, without an engine.

MLX and Transformers use the same form; mlx-lm loads both. Files are read only up to a size limit,
so that a malicious file can't use up time or memory.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_HEADER_BYTES = 32 << 20

TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")
"""The files that may contain a chat template. In the first file it is one of several values."""

MODULES_FILE = "modules.json"
"""The file that lists the modules of an embedding model, in the form of the library sentence-transformers."""

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_DATA_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,19}\s*,\s*(\d{1,19})\s*\]')
ENCODERS = frozenset({"bert", "xlm-roberta", "roberta"})
"""Architectures that can't generate text, even if their files don't say so."""

_DTYPE_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float8_e4m3fn": 8}
_METHOD = {"fp8": (8, 0), "mxfp4": (4, 32)}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The model in a directory. `files`: the names of the weight files that exist."""

    files: tuple[str, ...]
    model_type: str = ""
    quant_bits: int = 0
    quant_group: int = 0
    context_length: int = 0
    problem: str | None = None
    chat: bool = True
    embeddings: bool = False


def is_checkpoint(names: Mapping[str, object]) -> bool:
    """Return whether files of these names form a model: a config.json and weights, or the index of weights."""
    return "config.json" in names and ("model.safetensors.index.json" in names or bool(_weights(names)))


def read_checkpoint(directory: str, sizes: Mapping[str, int]) -> Checkpoint:
    """Read the model in `directory`, whose files have these `sizes` in bytes. Never raises."""
    files = _weights(sizes)
    try:
        config = read_json(os.path.join(directory, "config.json"), MAX_CONFIG_BYTES)
        files, missing = _shards(directory, sizes, files)
    except ValueError as error:
        return Checkpoint(files, problem=str(error))
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return Checkpoint(files, problem="its config.json states no model_type")
    if wrong := impossible(config):
        return Checkpoint(files, problem=f"its config.json has {wrong}")
    damaged = None
    if missing:
        total = len(files) + len(missing)
        damaged = f"{len(missing)} of its {total} weight files missing, such as {missing[0]}: fetch it again"
    else:
        damaged = next(filter(None, (_damage(os.path.join(directory, name), sizes[name]) for name in files)), None)
    bits, group = _quantisation(config)
    length = _stated(config, "max_position_embeddings")
    return Checkpoint(
        files,
        model_type="" if damaged and not missing else model_type,
        quant_bits=bits,
        quant_group=group,
        context_length=length if type(length) is int and 0 < length < 1 << 31 else 0,
        problem=damaged,
        chat=_has_chat_template(directory),
        embeddings=model_type in ENCODERS or pools(directory),
    )


def pools(directory: str) -> bool:
    """Return whether the model is an embedding model: its files describe how to pool vectors."""
    path = os.path.join(directory, MODULES_FILE)
    if not os.path.exists(path):
        return False
    try:
        return any(name == "Pooling" for name, _ in read_modules(path))
    except ValueError:
        return False


def read_modules(path: str) -> list[tuple[str, str]]:
    """Read a modules.json.

    Returns:
        The class of each module, without its package, and its folder within the model's directory.

    Raises:
        ValueError: The file can't be read, is not such a list, or names a folder outside the directory.
    """
    modules = read_value(path, MAX_CONFIG_BYTES)
    if not isinstance(modules, list) or not all(
        isinstance(one, dict) and isinstance(one.get("type"), str) and isinstance(one.get("path", ""), str)
        for one in modules
    ):
        raise ValueError(f"its {MODULES_FILE} is not a list of modules")
    found = [(one["type"].rpartition(".")[2], one.get("path", "")) for one in modules]
    if odd := [folder for _, folder in found if folder in (".", "..") or os.path.basename(folder) != folder]:
        raise ValueError(f"its {MODULES_FILE} names a folder outside the directory: {odd[0]!r}")
    return found


def _has_chat_template(directory: str) -> bool:
    """Return whether the model has a chat template, in a separate file or in the tokenizer's settings."""
    if any(os.path.exists(os.path.join(directory, name)) for name in TEMPLATE_FILES[1:]):
        return True
    try:
        return bool(read_json(os.path.join(directory, TEMPLATE_FILES[0]), MAX_INDEX_BYTES).get("chat_template"))
    except ValueError:
        return False


_COUNTS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings num_experts num_local_experts num_experts_per_tok moe_intermediate_size sliding_window "
    "state_size conv_kernel n_layer n_head n_embd d_model"
).split()
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1 << 10),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), 1 << 13),
}
"""Keys for which the engine creates that many objects before it reads the weights, so their values are limited."""
_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta", "partial_rotary_factor")
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "use_conv_bias", "use_sliding_window")
_NAMES = ("hidden_act", "activation_function", "model_file")
_TABLES = ("rope_scaling", "quantization", "quantization_config")


def impossible(config: Mapping[str, Any]) -> str | None:
    """Return a description of the first key with an impossible value. None: there is none.

    Only keys that many architectures share are checked. A list contains a value for each layer; null counts as not set.
    """
    for part in (config, config.get("text_config")):
        for key, value in part.items() if isinstance(part, dict) else ():
            wanted = _wanted(key, value)
            if value is not None and wanted is not None:
                return f"{key} = {json.dumps(value)[:80]}, which must be {wanted}"
    return None


def _wanted(key: str, value: Any) -> str | None:
    """Return what the value of `key` must be. None: the value is valid."""
    items = value if isinstance(value, list) else [value]
    if key in _COUNTS or key in _MOST:
        most = _MOST.get(key, (1 << 31) - 1)
        sound = all(item is None or (type(item) is int and 0 <= item <= most) for item in items)
        return None if sound else f"a whole number from 0 to {most}"
    if key in _NUMBERS:
        sound = type(value) in (int, float) and math.isfinite(value) and value >= 0
        return None if sound or isinstance(value, dict) else "a finite number from 0"
    if key in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if key in _NAMES:
        return None if isinstance(value, str) else "a text"
    if key in _TABLES:
        return None if isinstance(value, dict) else "an object"
    if key == "eos_token_id":
        return None if all(type(item) is int for item in items) else "a token id, or a list of them"
    return None


def read_json(path: str, limit: int) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ValueError, which names the file, if it contains anything else."""
    value = read_value(path, limit)
    if not isinstance(value, dict):
        raise ValueError(f"its {os.path.basename(path)} is not a JSON object")
    return value


def read_value(path: str, limit: int) -> Any:
    """Return the JSON value in a file. Raises ValueError, which names the file, if it contains none."""
    name = os.path.basename(path)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"its {name} is not a regular file")
        if found.st_size > limit:
            raise ValueError(f"its {name} has {found.st_size:,} bytes, more than the {limit:,} one may have")
        with open(path, "rb") as file:
            data = file.read(limit)
    except OSError as error:
        raise ValueError(f"its {name} can't be read: {error.strerror or error}") from None
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        raise ValueError(f"its {name} is not text") from None
    except ValueError as error:
        raise ValueError(f"its {name} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"its {name} is nested too deep") from None


def _weights(names: Mapping[str, object]) -> tuple[str, ...]:
    """Return the weight files: `model*.safetensors`, which mlx-lm reads, or all weight files if there are none."""
    weights = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("adapter"))
    return tuple([name for name in weights if name.startswith("model")] or weights)


def _shards(directory: str, sizes: Mapping[str, int], files: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Return the weight files that exist and those that are missing, according to the index or their numbers."""
    index = "model.safetensors.index.json"
    if index in sizes:
        places = read_json(os.path.join(directory, index), MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ValueError(f"its {index} has no weight_map from tensors to files")
        wanted = set(places.values())
        if odd := sorted(name for name in wanted if os.path.basename(name) != name or not name):
            raise ValueError(f"its {index} names a file outside the directory: {odd[0]!r}")
    else:
        wanted = set(files)
        for found in filter(None, map(_SHARD.fullmatch, files)):
            total = min(int(found[3]), 9999)
            wanted.update(f"{found[1]}-{part:05d}-of-{found[3]}.safetensors" for part in range(1, total + 1))
    return tuple(sorted(wanted & sizes.keys())), sorted(wanted - sizes.keys())


def _damage(path: str, size: int) -> str | None:
    """Return what is wrong with a safetensors file according to its header; None if nothing is.

    The format: https://github.com/huggingface/safetensors#format
    """
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > MAX_HEADER_BYTES:
                return f"its {name} is not a safetensors file"
            ends = [int(end) for end in _DATA_END.findall(file.read(length))]
    except OSError as error:
        return f"its {name} can't be read: {error.strerror or error}"
    whole = 8 + length + max(ends, default=0)
    return f"its {name} ends at byte {size:,} of {whole:,}: fetch it again" if size < whole else None


def _stated(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of `key` in config.json, or in its text_config, which multimodal models have."""
    if config.get(key) is not None:
        return config[key]
    text = config.get("text_config")
    return text.get(key) if isinstance(text, dict) else None


def _quantisation(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return bits and group size, from "quantization" (mlx-lm) or "quantization_config" (Transformers)."""
    for key in ("quantization", "quantization_config"):
        stated = _stated(config, key)
        if isinstance(stated, dict):
            bits, group = stated.get("bits"), stated.get("group_size")
            if type(bits) is int and 0 < bits <= 32:
                return bits, group if type(group) is int and 0 < group < 1 << 31 else 0
            method = stated.get("quant_method")
            if isinstance(method, str) and method in _METHOD:
                return _METHOD[method]
            for width in (4, 8):
                if stated.get(f"load_in_{width}bit") is True:
                    return width, 0
    dtype = _stated(config, "dtype") or _stated(config, "torch_dtype")
    return (_DTYPE_BITS.get(dtype, 0) if isinstance(dtype, str) else 0), 0
