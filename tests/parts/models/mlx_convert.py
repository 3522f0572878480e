# SPDX-License-Identifier: Apache-2.0
"""From a GGUF file of the llama family to an MLX model directory with the very same weights: a model for both engines.

Q4_1 and Q8_0 are, but for their layout, MLX's own affine quantisation in groups of 32: a
weight is scale x number + bias. Nothing here touches MLX, which wants one thread for all
that does. Block formats: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

GROUP = 32

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Quantised(NamedTuple):
    """A matrix as MLX keeps it: numbers of `bits` in words of 32, lowest first; a scale and a bias for each GROUP."""

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int

    def rows(self, order: np.ndarray) -> Quantised:
        return Quantised(self.weight[order], self.scales[order], self.biases[order], self.bits)

    def values(self) -> np.ndarray:
        """The matrix itself, float32."""
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        numbers = (self.weight[..., None] >> shifts) & ((1 << self.bits) - 1)
        grouped = numbers.reshape(*self.scales.shape, GROUP).astype(np.float32)
        whole: np.ndarray = grouped * self.scales[..., None] + self.biases[..., None]
        return whole.reshape(len(self.weight), -1)


def quantised(data: np.ndarray, kind: GGMLQuantizationType) -> Quantised:
    """A tensor's bytes [rows, bytes of a row] of GGUF type Q4_1 or Q8_0."""
    if kind == GGMLQuantizationType.Q4_1:  # f16 scale, f16 minimum, 16 bytes: numbers 0-15 low, 16-31 high
        blocks = data.reshape(len(data), -1, 20)
        scales, biases = (_halves(blocks[..., at : at + 2]) for at in (0, 2))
        numbers = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
        return Quantised(_packed(numbers, 4), scales, biases, 4)
    if kind == GGMLQuantizationType.Q8_0:  # f16 scale, 32 signed bytes
        blocks = data.reshape(len(data), -1, 34)
        scales = _halves(blocks[..., :2])
        return Quantised(_packed(blocks[..., 2:] ^ 128, 8), scales, -128 * scales, 8)
    raise ValueError(f"no converter for {kind.name}")


def _halves(data: np.ndarray) -> np.ndarray:
    values: np.ndarray = np.ascontiguousarray(data).view(np.float16)[..., 0].astype(np.float32)
    return values


def _packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    words = numbers.reshape(len(numbers), -1, 32 // bits).astype(np.uint32)
    packed: np.ndarray = np.bitwise_or.reduce(words << np.arange(0, 32, bits, dtype=np.uint32), axis=-1)
    return packed


def head_order(rows: int, heads: int) -> np.ndarray:
    """Where llama.cpp keeps the rows of q or k: it interleaves each head's two halves, for its rotary order."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def convert(source: Path, directory: Path) -> Path:
    """Write the model in the GGUF file `source` into `directory`, which is made, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(source)
    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    weights: dict[str, np.ndarray] = {}
    quantisation: dict[str, Any] = {"group_size": GROUP, "bits": 4}
    for tensor in reader.tensors:
        *prefix, part, _ = tensor.name.split(".")
        name = f"model.layers.{prefix[1]}.{_NAMES[part]}" if prefix else _NAMES[part]
        if tensor.tensor_type == GGMLQuantizationType.F32:
            weights[f"{name}.weight"] = np.array(tensor.data)
            continue
        matrix = quantised(tensor.data, tensor.tensor_type)
        if part in heads:
            matrix = matrix.rows(head_order(len(matrix.weight), heads[part]))
        if matrix.bits != quantisation["bits"]:
            quantisation[name] = {"group_size": GROUP, "bits": matrix.bits}
        weights |= {f"{name}.weight": matrix.weight, f"{name}.scales": matrix.scales, f"{name}.biases": matrix.biases}
    save_file(weights, directory / "model.safetensors", metadata={"format": "mlx"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": _field(reader, "llama.embedding_length"),
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "vocab_size": _field(reader, "llama.vocab_size"),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "quantization": quantisation,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(reader, directory)
    return directory


def _field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def write_tokenizer(reader: GGUFReader, directory: Path) -> int:
    """Write the model's tokenizer and template, and return how many tokens it has.

    Byte-level BPE with digits one by one, as llama.cpp's pre-tokenizer "smollm" has it.
    """
    if _field(reader, "tokenizer.ggml.pre") != "smollm":
        raise ValueError(f"no converter for the tokenizer {_field(reader, 'tokenizer.ggml.pre')!r}")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        "chat_template": _field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return len(tokens)
