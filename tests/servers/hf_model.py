# SPDX-License-Identifier: Apache-2.0
"""The small real model as a Hugging Face directory, for servers that read no GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

from ..parts.models.contract_models import DEMO_MODEL
from ..parts.models.mlx_convert import convert, head_order

NAMES = {
    "blk.": "model.layers.",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "attn_norm": "input_layernorm",
    "output_norm": "model.norm",
    "token_embd": "model.embed_tokens",
}


def write_hf(directory: Path) -> Path:
    """Write the weights in float32, with the tokenizer and the configuration; nothing if they are there."""
    if (directory / "model.safetensors").exists():
        return directory
    convert(Path(DEMO_MODEL), directory)  # the tokenizer and the configuration, with weights as MLX has them
    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    config |= {"head_dim": config["hidden_size"] // heads["q_proj"], "hidden_act": "silu", "attention_bias": False}
    config["pad_token_id"] = config["eos_token_id"]
    weights = {}
    for tensor in GGUFReader(DEMO_MODEL).tensors:
        name = tensor.name
        for theirs, usual in NAMES.items():
            name = name.replace(theirs, usual)
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        for projection, count in heads.items():
            if projection in name:
                values = values[head_order(len(values), count)]
        weights[name] = np.ascontiguousarray(values)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return directory
