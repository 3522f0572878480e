# SPDX-License-Identifier: Apache-2.0
"""Random embedding models in MLX format, and their hidden states computed with numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from tests.parts.models.mlx_tiny import FEED_FORWARD, HEADS, KV_HEADS, LAYERS, WIDTH, write_tiny_mlx

Vectors = NDArray[np.float64]

FIRST, LAST = "<|im_start|>", "<|im_end|>"
PADDING = 1
"""The id of the padding token, in the models for which it counts."""


def write_embedding_model(
    directory: Path,
    *,
    architecture: str = "llama",
    pooling: str | Sequence[str] = "mean_tokens",
    normalize: bool = True,
    dense: str | None = None,
    headless: bool = False,
    modules: bool = True,
    context_length: int = 64,
    config: Mapping[str, Any] | None = None,
    sentence: Mapping[str, Any] | None = None,
    prompts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model into `directory`, which is made, and return it.

    Args:
        directory: Where to.
        architecture: "llama", whose tokens see those before them, or "bert", "xlm-roberta" or "gemma3_text", whose
            tokens see all.
        pooling: What 1_Pooling/config.json says, without "pooling_mode_".
        normalize: Whether there is a Normalize module.
        dense: The activation of a Dense module, if there is one.
        headless: Whether the weights have the names that a model without a head has.
        modules: Whether there is a modules.json.
        context_length: As config.json states it.
        config: More for config.json.
        sentence: sentence_bert_config.json.
        prompts: config_sentence_transformers.json.
    """
    write_tiny_mlx(directory, template=None, context_length=context_length)
    if architecture in ("bert", "xlm-roberta"):
        _write_encoder(directory, architecture, context_length)
    if architecture == "gemma3_text":
        _write_gemma(directory, context_length)
    if config is not None:
        _change(directory / "config.json", config)
    if headless:
        weights = load_file(directory / "model.safetensors")
        save_file(
            {name.removeprefix("model."): weight for name, weight in weights.items()}, directory / "model.safetensors"
        )
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = [(name, tokenizer.token_to_id(name)) for name in (FIRST, LAST)]
    single = f"{FIRST} $A {LAST}" if architecture != "llama" else f"$A {LAST}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    tokenizer.save(str(directory / "tokenizer.json"))
    if modules:
        _write_modules(directory, pooling, normalize, dense)
    for name, value in {"sentence_bert_config.json": sentence, "config_sentence_transformers.json": prompts}.items():
        if value is not None:
            (directory / name).write_text(json.dumps(value))
    return directory


def _write_modules(directory: Path, pooling: str | Sequence[str], normalize: bool, dense: str | None) -> None:
    ways = [pooling] if isinstance(pooling, str) else pooling
    stated = {"word_embedding_dimension": WIDTH} | {f"pooling_mode_{way}": True for way in ways}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Dense", "Dense")] * (dense is not None) + [("3_Normalize", "Normalize")] * normalize
    listed = [{"idx": 0, "path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    if dense is not None:
        random = np.random.default_rng(7)
        (directory / "2_Dense").mkdir()
        activation = {"activation_function": f"torch.nn.modules.activation.{dense}"}
        (directory / "2_Dense" / "config.json").write_text(json.dumps(activation))
        weights = {"linear.weight": random.normal(size=(24, WIDTH)), "linear.bias": random.normal(size=24)}
        save_file(
            {name: value.astype(np.float32) for name, value in weights.items()},
            directory / "2_Dense" / "model.safetensors",
        )


def _change(path: Path, more: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(more)))


def _write_encoder(directory: Path, architecture: str, context_length: int) -> None:
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    random = np.random.default_rng(3)
    rows = context_length if architecture == "bert" else context_length + PADDING + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (size, WIDTH),
        "embeddings.position_embeddings.weight": (rows, WIDTH),
        "embeddings.token_type_embeddings.weight": (1 if architecture != "bert" else 2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
        "pooler.dense.weight": (WIDTH, WIDTH),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        for part, (out, into) in {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (FEED_FORWARD, WIDTH),
            "output.dense": (WIDTH, FEED_FORWARD),
        }.items():
            shapes |= {f"{name}{part}.weight": (out, into), f"{name}{part}.bias": (out,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{name}{part}.weight": (WIDTH,), f"{name}{part}.bias": (WIDTH,)}
    weights = {name: _weight(random, shape) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    stated = {
        "model_type": architecture,
        "architectures": ["BertModel" if architecture == "bert" else "XLMRobertaModel"],
        "vocab_size": size,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": rows,
        "type_vocab_size": 1 if architecture != "bert" else 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0 if architecture == "bert" else PADDING,
    }
    (directory / "config.json").write_text(json.dumps(stated))


def _weight(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    scale = 1.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.5
    value: np.ndarray = (random.normal(size=shape) * scale + (len(shape) == 1)).astype(np.float32)
    return value


def _write_gemma(directory: Path, context_length: int) -> None:
    """A Gemma 3 as EmbeddingGemma is one: the first layer's tokens see 4 on each side, the second's all."""
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    random = np.random.default_rng(4)
    head = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (size, WIDTH), "norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        name = f"layers.{layer}."
        for part, (out, into) in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (KV_HEADS * head, WIDTH),
            "self_attn.v_proj": (KV_HEADS * head, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (FEED_FORWARD, WIDTH),
            "mlp.up_proj": (FEED_FORWARD, WIDTH),
            "mlp.down_proj": (WIDTH, FEED_FORWARD),
        }.items():
            shapes[f"{name}{part}.weight"] = (out, into)
        for part in ("self_attn.q_norm", "self_attn.k_norm"):
            shapes[f"{name}{part}.weight"] = (head,)
        for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes[f"{name}{part}_layernorm.weight"] = (WIDTH,)
    save_file({name: _weight(random, shape) for name, shape in shapes.items()}, directory / "model.safetensors")
    stated = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "use_bidirectional_attention": True,
        "vocab_size": size,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": head,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": context_length,
        "query_pre_attn_scalar": head,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    }
    (directory / "config.json").write_text(json.dumps(stated))


# ---------------------------------------------------------------- by numpy


def hidden_states(directory: Path, tokens: Sequence[int]) -> Vectors:
    """[tokens, WIDTH], from the weights in the directory."""
    config = json.loads((directory / "config.json").read_text())
    weights = {
        name.removeprefix("model."): weight.astype(np.float64)
        for name, weight in load_file(directory / "model.safetensors").items()
    }
    by_architecture = {"llama": _llama, "gemma3_text": _gemma}
    return by_architecture.get(config["model_type"], _encoder)(config, weights, np.array(tokens))


def _attention(query: Vectors, key: Vectors, value: Vectors, mask: NDArray[np.bool_], heads: int, kv: int) -> Vectors:
    """[tokens, heads × size] of [tokens, heads, size]."""
    size = query.shape[-1]
    out = np.empty_like(query)
    for head in range(heads):
        other = head * kv // heads
        scores = query[:, head] @ key[:, other].T / math.sqrt(size)
        scores = np.where(mask, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = shares / shares.sum(axis=1, keepdims=True) @ value[:, other]
    return out.reshape(len(out), -1)


def _layer_norm(values: Vectors, weights: Mapping[str, Vectors], name: str, eps: float) -> Vectors:
    centred = values - values.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    normed: Vectors = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return normed


def _encoder(config: Mapping[str, Any], weights: Mapping[str, Vectors], tokens: NDArray[np.int64]) -> Vectors:
    def linear(values: Vectors, name: str) -> Vectors:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    eps = config["layer_norm_eps"]
    hidden = (
        weights["embeddings.word_embeddings.weight"][tokens] + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = hidden + weights["embeddings.position_embeddings.weight"][first : first + len(tokens)]
    hidden = _layer_norm(hidden, weights, "embeddings.LayerNorm", eps)
    everything = np.ones((len(tokens), len(tokens)), dtype=bool)
    gelu = np.vectorize(lambda value: value * (1 + math.erf(value / math.sqrt(2))) / 2)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        query, key, value = (
            linear(hidden, f"{name}attention.self.{part}").reshape(len(tokens), HEADS, -1)
            for part in ("query", "key", "value")
        )
        joined = linear(_attention(query, key, value, everything, HEADS, HEADS), f"{name}attention.output.dense")
        hidden = _layer_norm(hidden + joined, weights, f"{name}attention.output.LayerNorm", eps)
        fed = linear(gelu(linear(hidden, f"{name}intermediate.dense")), f"{name}output.dense")
        hidden = _layer_norm(hidden + fed, weights, f"{name}output.LayerNorm", eps)
    return hidden


def _rms_norm(values: Vectors, weight: Vectors, eps: float) -> Vectors:
    normed: Vectors = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + eps) * weight
    return normed


def _rotated(values: Vectors, base: float) -> Vectors:
    """Rotary positions, where the halves of a head belong together."""
    half = values.shape[-1] // 2
    angles = np.arange(len(values))[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    left, right = values[..., :half], values[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _llama(config: Mapping[str, Any], weights: Mapping[str, Vectors], tokens: NDArray[np.int64]) -> Vectors:
    eps, base = config["rms_norm_eps"], config["rope_theta"]
    hidden = weights["embed_tokens.weight"][tokens]
    before = np.tril(np.ones((len(tokens), len(tokens)), dtype=bool))
    for layer in range(LAYERS):
        name = f"layers.{layer}."
        normed = _rms_norm(hidden, weights[f"{name}input_layernorm.weight"], eps)
        query, key, value = (
            (normed @ weights[f"{name}self_attn.{part}_proj.weight"].T).reshape(len(tokens), heads, -1)
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        attended = _attention(_rotated(query, base), _rotated(key, base), value, before, HEADS, KV_HEADS)
        hidden = hidden + attended @ weights[f"{name}self_attn.o_proj.weight"].T
        normed = _rms_norm(hidden, weights[f"{name}post_attention_layernorm.weight"], eps)
        gate, up = (normed @ weights[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{name}mlp.down_proj.weight"].T
    return _rms_norm(hidden, weights["norm.weight"], eps)


def _gemma(config: Mapping[str, Any], weights: Mapping[str, Vectors], tokens: NDArray[np.int64]) -> Vectors:
    def norm(values: Vectors, name: str) -> Vectors:
        return _rms_norm(values, 1 + weights[f"{name}.weight"], config["rms_norm_eps"])

    hidden = weights["embed_tokens.weight"][tokens] * np.sqrt(WIDTH)
    places = np.arange(len(tokens))
    apart = np.abs(places[:, None] - places)
    for layer in range(LAYERS):
        name = f"layers.{layer}."
        near = layer % config["sliding_window_pattern"] != config["sliding_window_pattern"] - 1
        seen = apart <= (config["sliding_window"] // 2 if near else len(tokens))
        base = config["rope_local_base_freq"] if near else config["rope_theta"]
        normed = norm(hidden, f"{name}input_layernorm")
        query, key, value = (
            (normed @ weights[f"{name}self_attn.{part}_proj.weight"].T).reshape(len(tokens), heads, -1)
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        query, key = norm(query, f"{name}self_attn.q_norm"), norm(key, f"{name}self_attn.k_norm")
        attended = _attention(_rotated(query, base), _rotated(key, base), value, seen, HEADS, KV_HEADS)
        attended = attended @ weights[f"{name}self_attn.o_proj.weight"].T
        hidden = hidden + norm(attended, f"{name}post_attention_layernorm")
        normed = norm(hidden, f"{name}pre_feedforward_layernorm")
        gate, up = (normed @ weights[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        active = gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) / 2
        fed = (active * up) @ weights[f"{name}mlp.down_proj.weight"].T
        hidden = hidden + norm(fed, f"{name}post_feedforward_layernorm")
    return norm(hidden, "norm")
