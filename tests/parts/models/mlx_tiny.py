# SPDX-License-Identifier: Apache-2.0
"""Random MLX models of some hundred kilobytes, with a real tokenizer: byte-level BPE of a few words.

They generate nonsense, but each token depends on all tokens before it, at a thousand tokens a
second. Nothing here touches MLX, which wants one thread for all that does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .mlx_convert import write_tokenizer

WIDTH, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 64, 2, 4, 2, 96
WINDOW = 32
"""Tokens that a layer of the sliding-window model looks back on."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = 384
"""Tokens beside the special ones: the 256 bytes, and what often stands together in `TEXT`."""

TEXT = """The quick brown fox jumps over the lazy dog. Once upon a time there was a king in a castle by the sea.
Why is the sky blue? What is the capital of France? Answer in one sentence: the capital of France is Paris.
You are a helpful assistant. system user assistant tool {"name": "value", "arguments": {"input": 3}} true false null"""

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_mlx(
    directory: Path,
    *,
    architecture: str = "llama",
    context_length: int = 512,
    seed: int = 0,
    template: str | None = TEMPLATE,
    scale: float = 1.5,
    vocabulary: Path | None = None,
    config: Mapping[str, Any] | None = None,
    special: Sequence[str] = (),
) -> Path:
    """Write a model into `directory`, which is made, and return it.

    architecture  "llama"; "sliding", whose second layer sees only the last WINDOW tokens; "mamba", whose memory
                  is one state
    scale         of the weights: the higher, the surer the model is of its nonsense
    vocabulary    the GGUF file whose tokenizer and template the model has instead of its own small ones
    config        more for config.json
    special       the names of further special tokens of the small tokenizer
    """
    directory.mkdir(parents=True, exist_ok=True)
    if vocabulary is None:
        size = _write_tokenizer(directory, template, [*SPECIAL, *special])
    else:
        size = write_tokenizer(GGUFReader(vocabulary), directory)
    write = {"llama": _llama, "sliding": _sliding, "mamba": _mamba}[architecture]
    weights, stated = write(_random(seed, scale), size)
    # Lone bytes of other alphabets would make no characters: hardly ever are they the likeliest.
    tokens = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    rare = [place for token, place in tokens.items() if len(token) == 1 and not token.isascii()]
    weights[next(name for name in weights if "embed" in name)][rare] *= 0.1
    stated |= {
        "vocab_size": size,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": context_length,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(stated | dict(config or {}), indent=1))
    return directory


def write_tiny_lora(directory: Path, seed: int = 1) -> Path:
    """A LoRA adapter for `write_tiny_mlx`'s llama, as mlx_lm.lora saves one."""
    directory.mkdir(parents=True, exist_ok=True)
    random = _random(seed, 1.0)
    rank = 4
    weights = {}
    for layer in range(LAYERS):
        weights[f"model.layers.{layer}.self_attn.q_proj.lora_a"] = random(WIDTH, rank)
        weights[f"model.layers.{layer}.self_attn.q_proj.lora_b"] = random(rank, WIDTH)
    save_file(weights, directory / "adapters.safetensors")
    described = {
        "fine_tune_type": "lora",
        "num_layers": LAYERS,
        "lora_parameters": {"rank": rank, "scale": 4.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    (directory / "adapter_config.json").write_text(json.dumps(described))
    return directory


def _write_tokenizer(directory: Path, template: str | None, special: Sequence[str]) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS + len(special),
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        described["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return int(tokenizer.get_vocab_size())


Random = Callable[..., np.ndarray]
Weights = tuple[dict[str, np.ndarray], dict[str, Any]]


def _random(seed: int, scale: float) -> Random:
    generator = np.random.default_rng(seed)

    def make(*shape: int) -> np.ndarray:
        weights: np.ndarray = generator.standard_normal(shape) / np.sqrt(shape[-1]) * scale
        return weights.astype(np.float32)

    return make


def _llama(random: Random, size: int) -> Weights:
    ones = np.ones(WIDTH, dtype=np.float32)
    head = WIDTH // HEADS
    weights = {"model.embed_tokens.weight": random(size, WIDTH), "model.norm.weight": ones}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        weights[f"{name}input_layernorm.weight"] = ones
        weights[f"{name}post_attention_layernorm.weight"] = ones
        weights[f"{name}self_attn.q_proj.weight"] = random(WIDTH, WIDTH)
        weights[f"{name}self_attn.k_proj.weight"] = random(KV_HEADS * head, WIDTH)
        weights[f"{name}self_attn.v_proj.weight"] = random(KV_HEADS * head, WIDTH)
        weights[f"{name}self_attn.o_proj.weight"] = random(WIDTH, WIDTH)
        weights[f"{name}mlp.gate_proj.weight"] = random(FEED_FORWARD, WIDTH)
        weights[f"{name}mlp.up_proj.weight"] = random(FEED_FORWARD, WIDTH)
        weights[f"{name}mlp.down_proj.weight"] = random(WIDTH, FEED_FORWARD)
    return weights, {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }


def _sliding(random: Random, size: int) -> Weights:
    weights, stated = _llama(random, size)
    return weights, stated | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": WINDOW}


def _mamba(random: Random, size: int) -> Weights:
    inner, state, rank, kernel = 2 * WIDTH, 16, 4, 4
    ones = np.ones(WIDTH, dtype=np.float32)
    weights = {"backbone.embeddings.weight": random(size, WIDTH), "backbone.norm_f.weight": ones}
    for layer in range(LAYERS):
        name = f"backbone.layers.{layer}."
        weights[f"{name}norm.weight"] = ones
        weights[f"{name}mixer.in_proj.weight"] = random(2 * inner, WIDTH)
        weights[f"{name}mixer.conv1d.weight"] = random(inner, kernel, 1)
        weights[f"{name}mixer.conv1d.bias"] = np.zeros(inner, dtype=np.float32)
        weights[f"{name}mixer.x_proj.weight"] = random(rank + 2 * state, inner)
        weights[f"{name}mixer.dt_proj.weight"] = random(inner, rank)
        weights[f"{name}mixer.dt_proj.bias"] = np.full(inner, -1.0, dtype=np.float32)
        weights[f"{name}mixer.A_log"] = np.log(np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
        weights[f"{name}mixer.D"] = np.ones(inner, dtype=np.float32)
        weights[f"{name}mixer.out_proj.weight"] = random(WIDTH, inner)
    return weights, {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "intermediate_size": inner,
        "state_size": state,
        "conv_kernel": kernel,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": rank,
    }
