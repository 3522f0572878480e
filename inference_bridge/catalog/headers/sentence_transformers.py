# SPDX-License-Identifier: Apache-2.0
"""Reads how an embedding model pools its vectors, from files in the form of the library sentence-transformers.

`modules.json` lists the modules that process a text: Transformer, Pooling, then optionally Dense and Normalize. The
settings of each are in its folder (https://sbert.net/docs/sentence_transformer/usage/custom_models.html).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import MAX_CONFIG_BYTES, MODULES_FILE, read_json, read_modules

POOLING = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last")
"""Ways to pool the tokens' vectors into one. If a model uses several, the results are concatenated in this order."""

ACTIVATIONS = frozenset({"Identity", "Tanh", "ReLU", "GELU"})
"""Activation functions that a Dense module may apply to its output."""

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {name: name for name in POOLING} | {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after the pooling: the file of its weights, relative to the model's directory."""

    file: str
    activation: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the model turns a text into a vector.

    Attributes:
        pooling: Names of POOLING, in its order.
        dense: Linear layers that the pooled vector passes, in their order.
        normalize: Whether the vector gets Euclidean norm 1.
        max_tokens: Maximum number of tokens of a text; 0: the model's own maximum.
        lower_case: Whether the text is converted to lower case.
        prompt: The text that is put before every text.
    """

    pooling: tuple[str, ...]
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    max_tokens: int = 0
    lower_case: bool = False
    prompt: str = ""


def read_recipe(directory: str) -> Recipe | None:
    """Read the recipe in a model's directory.

    Returns:
        The recipe; None if the directory has no modules.json with a Pooling module.

    Raises:
        ValueError: The files use a feature that is not supported, or contradict each other. The message is worded to
            follow "the model can't be loaded: ".
    """
    path = os.path.join(directory, MODULES_FILE)
    if not os.path.exists(path):
        return None
    modules = read_modules(path)
    names = [name for name, _ in modules]
    if "Pooling" not in names:
        return None
    if names[:2] != ["Transformer", "Pooling"]:
        raise ValueError(f"its {MODULES_FILE} does not begin with Transformer and Pooling")
    pooling, include_prompt = _pooling(directory, modules[1][1])
    dense: list[Dense] = []
    normalize = False
    for name, folder in modules[2:]:
        if name == "Normalize":
            normalize = True
        elif name == "Dense" and not normalize:
            dense.append(_dense(directory, folder))
        elif name != "Dropout":  # which does nothing here
            raise ValueError(f"its {MODULES_FILE} has a module {name} where only Dense, then Normalize is known")
    prompt = _default_prompt(directory)
    if prompt and not include_prompt:
        raise ValueError("it leaves its default prompt out of the pooling, which is not supported")
    stated = _optional(directory, "sentence_bert_config.json")
    longest, lower_case = stated.get("max_seq_length"), stated.get("do_lower_case")
    return Recipe(
        pooling,
        tuple(dense),
        normalize=normalize,
        max_tokens=longest if type(longest) is int and longest > 0 else 0,
        lower_case=lower_case is True,
        prompt=prompt,
    )


def _pooling(directory: str, folder: str) -> tuple[tuple[str, ...], bool]:
    """Return the ways to pool, and whether the tokens of a prompt are pooled too."""
    config = read_json(os.path.join(directory, folder, "config.json"), MAX_CONFIG_BYTES)
    wanted = set(_ways(config))
    if not wanted:
        raise ValueError(f"its {folder}/config.json states no way to pool that is known")
    return tuple(way for way in POOLING if way in wanted), config.get("include_prompt") is not False


def _ways(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if key.startswith("pooling_mode_") and value is True:
            if key not in _FLAGS:
                raise ValueError(f"it pools by {key}, which is not known")
            yield _FLAGS[key]
    stated = config.get("pooling_mode")  # of newer versions
    for name in stated if isinstance(stated, list) else [] if stated is None else [stated]:
        if name not in _NAMES:
            raise ValueError(f"it pools by {name!r}, which is not known")
        yield _NAMES[name]


def _dense(directory: str, folder: str) -> Dense:
    config = read_json(os.path.join(directory, folder, "config.json"), MAX_CONFIG_BYTES)
    stated = config.get("activation_function", "torch.nn.modules.activation.Tanh")  # the library's default
    activation = stated.rpartition(".")[2] if isinstance(stated, str) else ""
    if activation not in ACTIVATIONS:
        raise ValueError(f"its {folder}/config.json has the activation_function {stated!r}, which is not known")
    file = f"{folder}/model.safetensors"
    if not os.path.isfile(os.path.join(directory, file)):
        raise ValueError(f"its {folder} has no model.safetensors, the only form of weights that is read")
    return Dense(file, activation)


def _default_prompt(directory: str) -> str:
    config = _optional(directory, "config_sentence_transformers.json")
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f"its config_sentence_transformers.json has no prompt {name!r}")
    return prompt


def _optional(directory: str, name: str) -> dict[str, Any]:
    path = os.path.join(directory, name)
    return read_json(path, MAX_CONFIG_BYTES) if os.path.exists(path) else {}
