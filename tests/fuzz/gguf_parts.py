# SPDX-License-Identifier: Apache-2.0
"""GGUF headers taken apart, changed in one or two places, and put together again."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.parts.models.gguf_files import FORMS, string

STRING, ARRAY = 8, 9
_INTEGERS = (0, 1, 2, 3, 5, 7, 8, 63, 100, 255, 512, 513, 1025, 4096, 65535, 10**6, 2**30, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -0.0, -1.0, 1.0, 1e-38, 1e38, float("nan"), float("inf"), -float("inf"), 1e-6, 10000.0)
_STRINGS = (b"", b"none", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"gemma4", b"x", b"\xff\xfe", b"yarn")
_ARCHITECTURES = (b"llama", b"qwen2", b"qwen3moe", b"gemma2", b"gemma3", b"mamba", b"bert", b"phi3", b"falcon", b"clip")


@dataclass(slots=True)
class Parts:
    """`values` are (key, type, bytes of the value), `tensors` (name, shape, type, offset)."""

    values: list[tuple[bytes, int, bytes]]
    tensors: list[tuple[bytes, list[int], int, int]]
    data: bytes

    def joined(self) -> bytes:
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.values))]
        head += [string(key) + struct.pack("<I", type_) + value for key, type_, value in self.values]
        for name, shape, type_, offset in self.tensors:
            sizes = [struct.pack("<Q", size % 2**64) for size in shape]
            head += [string(name), struct.pack("<I", len(shape)), *sizes, struct.pack("<IQ", type_, offset % 2**64)]
        whole = b"".join(head)
        return whole + bytes(-len(whole) % 32) + self.data


def taken_apart(data: bytes) -> Parts:
    at = 8
    count_tensors, count_values = struct.unpack_from("<QQ", data, at)
    at += 16

    def text() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        return data[at - length : at]

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return int(value)

    values = []
    for _ in range(count_values):
        key, type_ = text(), number("I")
        start = at
        if type_ == ARRAY:
            kind, length = number("I"), number("Q")
            for _ in range(length):
                text() if kind == STRING else number(FORMS[kind].replace("f", "I").replace("d", "Q"))
        elif type_ == STRING:
            text()
        else:
            at += struct.calcsize("<" + FORMS[type_])
        values.append((key, type_, data[start:at]))
    tensors = []
    for _ in range(count_tensors):
        name = text()
        shape = [number("Q") for _ in range(number("I"))]
        tensors.append((name, shape, number("I"), number("Q")))
    return Parts(values, tensors, data[-(-at // 32) * 32 :])


def mutated(rng: random.Random, parts: Parts) -> bytes:
    """The file with one or two changes, each in one value or one tensor."""
    changed = Parts(list(parts.values), list(parts.tensors), parts.data)
    for _ in range(rng.choice((1, 1, 2))):
        chosen: Callable[[random.Random, Parts], None] = _tensor if rng.random() < 0.15 else _value
        chosen(rng, changed)
    return changed.joined()


def _value(rng: random.Random, parts: Parts) -> None:
    place = rng.randrange(len(parts.values))
    key, type_, value = parts.values[place]
    chance = rng.random()
    if chance < 0.05:
        del parts.values[place]
    elif chance < 0.1:
        parts.values.append((_related(rng, key), *_any(rng)))
    elif chance < 0.2:
        parts.values[place] = (key, *_any(rng))
    elif type_ == ARRAY:
        parts.values[place] = (key, type_, _array(rng, value))
    else:
        parts.values[place] = (key, type_, _scalar(rng, type_))


def _related(rng: random.Random, key: bytes) -> bytes:
    """A key that no writer set here, but that a loader looks for."""
    arch = key.partition(b".")[0]
    ends = b"""expert_count expert_used_count attention.head_count attention.head_count_kv attention.key_length
        attention.value_length attention.sliding_window rope.dimension_count rope.scaling.type rope.scaling.factor
        rope.freq_base pooling_type attention.causal vocab_size nextn_predict_layers embedding_length_out
        attention.layer_norm_epsilon attention.clamp_kqv logit_scale ssm.conv_kernel ssm.state_size
        expert_group_count attention.max_alibi_bias final_logit_softcapping attn_logit_softcapping""".split()
    return arch + b"." + rng.choice(ends)


def _any(rng: random.Random) -> tuple[int, bytes]:
    type_ = rng.choice([4, 4, 4, 5, 6, 6, 7, STRING, 10, 12, 0])
    return type_, _scalar(rng, type_)


def _scalar(rng: random.Random, type_: int) -> bytes:
    if type_ == STRING:
        return string(rng.choice(_STRINGS + _ARCHITECTURES))
    if type_ in (6, 12):
        return struct.pack("<" + FORMS[type_], rng.choice(_FLOATS))
    size = struct.calcsize("<" + FORMS[type_])
    return (rng.choice(_INTEGERS) % 2 ** (8 * size) if type_ != 7 else rng.randrange(2)).to_bytes(size, "little")


def _array(rng: random.Random, value: bytes) -> bytes:
    kind, length = struct.unpack_from("<IQ", value)
    at, items = 12, []
    for _ in range(length):
        if kind == STRING:
            size = 8 + struct.unpack_from("<Q", value, at)[0]
        else:
            size = struct.calcsize("<" + FORMS[kind])
        items.append(value[at : at + size])
        at += size
    chance = rng.random()
    if items and chance < 0.4:
        items[rng.randrange(len(items))] = _scalar(rng, kind)
    elif items and chance < 0.7:
        items[rng.randrange(len(items))] = rng.choice(items)
    elif items and chance < 0.9:
        del items[rng.randrange(len(items)) :]
    else:
        items.append(_scalar(rng, kind))
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _tensor(rng: random.Random, parts: Parts) -> None:
    place = rng.randrange(len(parts.tensors))
    name, shape, type_, offset = parts.tensors[place]
    chance = rng.random()
    if chance < 0.2:
        del parts.tensors[place]
        if not parts.tensors:
            parts.tensors.append((name, shape, type_, offset))
    elif chance < 0.4 and shape:
        shape = list(shape)
        shape[rng.randrange(len(shape))] = rng.choice(_INTEGERS)
        parts.tensors[place] = (name, shape, type_, offset)
    elif chance < 0.6:
        parts.tensors[place] = (name, shape, rng.choice((0, 1, 2, 3, 8, 12, 24, 30, 39, 99)), offset)
    elif chance < 0.8:
        parts.tensors[place] = (name, shape, type_, rng.choice((0, 1, 31, 32, 64, 2**20, 2**40)))
    else:
        parts.tensors[place] = (rng.choice(parts.tensors)[0] + rng.choice((b"", b"x")), shape, type_, offset)
