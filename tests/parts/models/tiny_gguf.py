# SPDX-License-Identifier: Apache-2.0
"""Random models of a few hundred kilobytes, of architectures whose memory can't be cut anywhere.

They generate nonsense, but each token depends on all tokens before it: enough to tell a memory
that was reused rightly from one that was not. A token is a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, HEAD_SIZE, FEED_FORWARD = 64, 2, 4, 16, 96
WINDOW = 32
"""Tokens that a layer of the sliding-window model looks back on."""


def _writer(
    path: Path,
    architecture: str,
    context_length: int,
    pieces: Sequence[str] = (),
    *,
    bos: bool = True,
    special: Sequence[str] = (),
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_tokenizer_model("llama")
    usual = ["<unk>", "<s>", "</s>"]
    writer.add_token_list([*usual, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *special])
    writer.add_token_scores([0.0] * (259 + len(pieces) + len(special)))
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    types += [gguf.TokenType.NORMAL] * len(pieces) + [gguf.TokenType.CONTROL] * len(special)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(bos)
    writer.add_add_space_prefix(False)
    return writer


def _add_layer(writer: gguf.GGUFWriter, random: Callable[..., np.ndarray], name: str) -> None:
    """Attention and feed-forward parts, without their norms."""
    writer.add_tensor(f"{name}attn_q.weight", random(HEADS * HEAD_SIZE, WIDTH))
    writer.add_tensor(f"{name}attn_k.weight", random(HEAD_SIZE, WIDTH))
    writer.add_tensor(f"{name}attn_v.weight", random(HEAD_SIZE, WIDTH))
    writer.add_tensor(f"{name}attn_output.weight", random(WIDTH, HEADS * HEAD_SIZE))
    writer.add_tensor(f"{name}ffn_gate.weight", random(FEED_FORWARD, WIDTH))
    writer.add_tensor(f"{name}ffn_up.weight", random(FEED_FORWARD, WIDTH))
    writer.add_tensor(f"{name}ffn_down.weight", random(WIDTH, FEED_FORWARD))


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random(seed: int) -> Callable[..., np.ndarray]:
    generator = np.random.default_rng(seed)

    def make(*shape: int) -> np.ndarray:
        weights: np.ndarray = generator.standard_normal(shape) / np.sqrt(shape[-1]) * 1.5
        return weights.astype(np.float32)

    return make


def write_sliding_window(path: Path, context_length: int = 1024, seed: int = 0) -> Path:
    """A Gemma 3, all of whose layers see only the last `WINDOW` tokens."""
    writer = _writer(path, "gemma3", context_length)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(WINDOW)
    random = _random(seed)
    ones = np.ones(WIDTH, dtype=np.float32)
    writer.add_tensor("token_embd.weight", random(259, WIDTH))
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            writer.add_tensor(f"{name}{norm}.weight", ones)
        for norm in ("attn_q_norm", "attn_k_norm"):
            writer.add_tensor(f"{name}{norm}.weight", ones[:HEAD_SIZE])
        _add_layer(writer, random, name)
    _finish(writer)
    return path


CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _of_ascii(random: Callable[..., np.ndarray]) -> np.ndarray:
    """An output matrix for which only printable characters come: a logit of 0 is hardly ever the highest."""
    written = [259, *(3 + byte for byte in range(33, 127))]
    output = np.zeros((260, WIDTH), dtype=np.float32)
    output[written] = random(len(written), WIDTH)
    return output


def _describe_llama(writer: gguf.GGUFWriter) -> None:
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)


def _finish_llama(writer: gguf.GGUFWriter, random: Callable[..., np.ndarray]) -> None:
    ones = np.ones(WIDTH, dtype=np.float32)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}{norm}.weight", ones)
        _add_layer(writer, random, name)
    _finish(writer)


def write_llama(
    path: Path,
    context_length: int = 1024,
    seed: int = 1,
    template: str = CHAT_TEMPLATE,
    pooling: int | None = None,
    special: Sequence[str] = (),
) -> Path:
    """A Llama that has conversations. It likes to write ASCII, and not to end.

    `special` are the names of further special tokens. With `pooling`, as llama.cpp numbers it, it makes embeddings
    instead, of a text as it is: it puts nothing before it.
    """
    space = ["\u2581"]  # in this kind of tokenizer
    writer = _writer(path, "llama", context_length, space, bos=pooling is None, special=special)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    _describe_llama(writer)
    writer.add_chat_template(template)
    random = _random(seed)
    output = np.concatenate([_of_ascii(random), np.zeros((len(special), WIDTH), np.float32)])
    writer.add_tensor("token_embd.weight", random(260 + len(special), WIDTH))
    writer.add_tensor("output.weight", output)
    _finish_llama(writer, random)
    return path


def write_with_vocabulary(path: Path, source: Path, context_length: int = 512, seed: int = 0) -> Path:
    """A Llama with the tokenizer and the template of the model `source`: for what depends on the vocabulary alone."""
    writer = gguf.GGUFWriter(path, "llama")
    fields = gguf.GGUFReader(source).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], element)
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    _describe_llama(writer)
    random = _random(seed)
    writer.add_tensor("token_embd.weight", random(len(fields["tokenizer.ggml.tokens"].data), WIDTH))
    _finish_llama(writer, random)
    return path


def write_recurrent(path: Path, context_length: int = 1024, seed: int = 0) -> Path:
    """A Mamba: its memory is one state, that of the last token."""
    inner, state, rank, kernel = 2 * WIDTH, 16, 4, 4
    writer = _writer(path, "mamba", context_length)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    random = _random(seed)
    writer.add_tensor("token_embd.weight", random(259, WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        writer.add_tensor(f"{name}attn_norm.weight", np.ones(WIDTH, dtype=np.float32))
        writer.add_tensor(f"{name}ssm_in.weight", random(2 * inner, WIDTH))
        writer.add_tensor(f"{name}ssm_conv1d.weight", random(inner, kernel))
        writer.add_tensor(f"{name}ssm_conv1d.bias", np.zeros(inner, dtype=np.float32))
        writer.add_tensor(f"{name}ssm_x.weight", random(rank + 2 * state, inner))
        writer.add_tensor(f"{name}ssm_dt.weight", random(inner, rank))
        writer.add_tensor(f"{name}ssm_dt.bias", np.full(inner, -1.0, dtype=np.float32))
        writer.add_tensor(f"{name}ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
        writer.add_tensor(f"{name}ssm_d", np.ones(inner, dtype=np.float32))
        writer.add_tensor(f"{name}ssm_out.weight", random(WIDTH, inner))
    _finish(writer)
    return path


def write_adapter(path: Path) -> Path:
    """A LoRA adapter that makes the demo model say something else."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    random = np.random.default_rng(0)
    for layer in range(4):
        name = f"blk.{layer}.attn_output.weight"
        writer.add_tensor(f"{name}.lora_a", random.normal(size=(4, 576)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", random.normal(size=(576, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


WORDS = "the a cat dog sat ran on in mat house red blue big small and is of to".split()


def write_embedding(
    path: Path,
    context_length: int = 64,
    seed: int = 0,
    pooling: int = 1,
    words: Sequence[str] = WORDS,
    template: str = "",
) -> Path:
    """A BERT of one layer that knows `words` and weighs them more than their order.

    `pooling` is as llama.cpp numbers it, 1: mean, 4: rank. Then it has a head that gives one score, and `template`
    is its form of a query with a document.
    """
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{word}" for word in words)]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * len(words))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    random = _random(seed)
    ones, zeros = np.ones(WIDTH, dtype=np.float32), np.zeros(WIDTH, dtype=np.float32)
    writer.add_tensor("token_embd.weight", random(len(tokens), WIDTH))
    writer.add_tensor("token_types.weight", random(2, WIDTH) * 0.1)
    writer.add_tensor("position_embd.weight", random(context_length, WIDTH) * 0.1)
    writer.add_tensor("token_embd_norm.weight", ones)
    writer.add_tensor("token_embd_norm.bias", zeros)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", random(WIDTH, WIDTH) * 0.1)
        writer.add_tensor(f"blk.0.{name}.bias", zeros)
    writer.add_tensor("blk.0.ffn_up.weight", random(FEED_FORWARD, WIDTH) * 0.1)
    writer.add_tensor("blk.0.ffn_up.bias", np.zeros(FEED_FORWARD, dtype=np.float32))
    writer.add_tensor("blk.0.ffn_down.weight", random(WIDTH, FEED_FORWARD) * 0.1)
    writer.add_tensor("blk.0.ffn_down.bias", zeros)
    for norm in ("attn_output_norm", "layer_output_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", ones)
        writer.add_tensor(f"blk.0.{norm}.bias", zeros)
    if pooling == 4:
        writer.add_tensor("cls.weight", random(WIDTH, WIDTH))
        writer.add_tensor("cls.bias", zeros)
        writer.add_tensor("cls.output.weight", random(1, WIDTH))
        writer.add_tensor("cls.output.bias", np.zeros(1, dtype=np.float32))
    if template:
        writer.add_string("tokenizer.chat_template.rerank", template)
    _finish(writer)
    return path


def write_incomplete(path: Path) -> Path:
    """A llama whose weights end after the embeddings."""
    writer = _writer(path, "llama", 512)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tensor("token_embd.weight", np.zeros((259, WIDTH), np.float32))
    _finish(writer)
    return path
