# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a GGUF file, which describes its model, without an engine.

The header contains keys and values, and the type and place of each tensor, which show the
quantisation and whether the file is complete. The format is specified in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; this reader is as strict as ggml's own
(src/gguf.cpp), which is stricter than the specification. The time and memory for reading any file
are bounded.
"""

from __future__ import annotations

import functools
import math
import os
import re
import stat
import struct
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from ...errors import ModelLoadError

if TYPE_CHECKING:
    from ...options import GenerateConfig
    from ...types import ModelInfo

Kind = Literal["model", "projector", "adapter", "vocabulary", "other"]

MAX_BYTES_READ = 128 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ITEMS = 1 << 22  # of all arrays together: several times what the largest vocabularies have
MAX_NAME_BYTES = (1 << 16) - 1
MAX_KEPT_ITEMS = 1024
MAX_KEPT_BYTES = 1 << 20
_CHUNK = 256 << 10

_RANK_POOLING = 4
"""The value of llama.cpp's LLAMA_POOLING_TYPE_RANK, which rerankers have as their pooling type."""


class GGUFError(ModelLoadError):
    """The file at `path` can't be read, is not a GGUF file, or is damaged. `problem` describes it."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class TensorType(NamedTuple):
    """How a tensor is stored: `block` weights take `block_bytes` bytes.

    `bits` is the number of bits of one weight without scales; `group` is the number of weights that share
    a scale. It is 0 where a type has no scales.
    """

    name: str
    bits: int
    group: int
    block: int
    block_bytes: int


# Sizes: `type_traits` in ggml/src/ggml.c; groups: the block structs in ggml/src/ggml-common.h,
# where a K or I quant's super-block of 256 has a scale for each 16 or 32 weights.
TENSOR_TYPES: Mapping[int, TensorType] = {
    0: TensorType("F32", 32, 0, 1, 4),
    1: TensorType("F16", 16, 0, 1, 2),
    2: TensorType("Q4_0", 4, 32, 32, 18),
    3: TensorType("Q4_1", 4, 32, 32, 20),
    6: TensorType("Q5_0", 5, 32, 32, 22),
    7: TensorType("Q5_1", 5, 32, 32, 24),
    8: TensorType("Q8_0", 8, 32, 32, 34),
    9: TensorType("Q8_1", 8, 32, 32, 36),
    10: TensorType("Q2_K", 2, 16, 256, 84),
    11: TensorType("Q3_K", 3, 16, 256, 110),
    12: TensorType("Q4_K", 4, 32, 256, 144),
    13: TensorType("Q5_K", 5, 32, 256, 176),
    14: TensorType("Q6_K", 6, 16, 256, 210),
    15: TensorType("Q8_K", 8, 256, 256, 292),
    16: TensorType("IQ2_XXS", 2, 32, 256, 66),
    17: TensorType("IQ2_XS", 2, 16, 256, 74),
    18: TensorType("IQ3_XXS", 3, 32, 256, 98),
    19: TensorType("IQ1_S", 1, 32, 256, 50),
    20: TensorType("IQ4_NL", 4, 32, 32, 18),
    21: TensorType("IQ3_S", 3, 32, 256, 110),
    22: TensorType("IQ2_S", 2, 16, 256, 82),
    23: TensorType("IQ4_XS", 4, 32, 256, 136),
    24: TensorType("I8", 8, 0, 1, 1),
    25: TensorType("I16", 16, 0, 1, 2),
    26: TensorType("I32", 32, 0, 1, 4),
    27: TensorType("I64", 64, 0, 1, 8),
    28: TensorType("F64", 64, 0, 1, 8),
    29: TensorType("IQ1_M", 1, 16, 256, 56),
    30: TensorType("BF16", 16, 0, 1, 2),
    34: TensorType("TQ1_0", 2, 256, 256, 54),
    35: TensorType("TQ2_0", 2, 256, 256, 66),
    39: TensorType("MXFP4", 4, 32, 32, 17),
    40: TensorType("NVFP4", 4, 16, 64, 36),
    41: TensorType("Q1_0", 1, 128, 128, 18),
    42: TensorType("Q2_0", 2, 64, 64, 18),
}


class Tensor(NamedTuple):
    """The type, shape and place of one tensor.

    `type` is a key of `TENSOR_TYPES`, unless the file is newer than that table; `shape`
    is in ggml's order, with the length of a row first; `offset` counts bytes from `data_start`.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes in the file; 0 for an unknown type."""
        known = TENSOR_TYPES.get(self.type)
        return self.elements // known.block * known.block_bytes if known else 0


class Skipped(NamedTuple):
    """Stands for a value that was too large to keep, such as a vocabulary. `length`: its items, or a string's bytes."""

    length: int


Value = int | float | bool | str | tuple[Any, ...] | Skipped


@dataclass(frozen=True, slots=True)
class GGUFMetadata:
    """The header of a GGUF file.

    `values` are its keys and values. The tensors of a complete file are between the offsets
    `data_start` and `data_end`; `size_bytes` is the actual size of the file.
    """

    path: str
    version: int
    size_bytes: int
    data_start: int
    data_end: int
    values: Mapping[str, Value] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)

    @property
    def missing_bytes(self) -> int:
        """Number of bytes of tensor data that the file lacks, for example because a download was interrupted."""
        return max(self.data_end - self.size_bytes, 0)

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`; "" if it is not stated."""
        return self.text("general.architecture")

    @property
    def kind(self) -> Kind:
        """What the file contains: a text model, or something that belongs to one."""
        stated = self.text("general.type")
        if self.architecture == "clip" or stated == "mmproj":
            return "projector"
        if stated == "adapter":
            return "adapter"
        if stated not in ("", "model") or self.architecture in ("controlvector", "imatrix"):
            return "other"
        if not self.tensors and self.integer("split.count") <= 1 and "tokenizer.ggml.tokens" in self.values:
            return "vocabulary"
        return "model"

    @property
    def embeds(self) -> bool:
        """Whether the model pools its vectors, which makes it an embedding model."""
        arch = self.architecture
        return bool(self.integer(f"{arch}.pooling_type")) or self.values.get(f"{arch}.attention.causal") is False

    @property
    def ranks(self) -> bool:
        """Whether the model pools its vectors into a score, which makes it a reranker. `embeds` is True too then."""
        return self.integer(f"{self.architecture}.pooling_type") == _RANK_POOLING

    @property
    def elements(self) -> dict[int, int]:
        """The number of weights stored in each tensor type."""
        counts: dict[int, int] = {}
        for tensor in self.tensors:
            counts[tensor.type] = counts.get(tensor.type, 0) + tensor.elements
        return counts

    @property
    def info(self) -> ModelInfo:
        """The model as the file describes it; `context_length` is the length it was trained for."""
        from ...types import ModelInfo

        arch = self.architecture
        bits, group = quantisation(self.elements)
        return ModelInfo(
            architecture=arch,
            vocab_size=self.integer(f"{arch}.vocab_size") or self.length("tokenizer.ggml.tokens"),
            num_layers=self.integer(f"{arch}.block_count"),
            hidden_size=self.integer(f"{arch}.embedding_length"),
            quant_bits=bits,
            quant_group=group,
            context_length=self.integer(f"{arch}.context_length"),
        )

    @property
    def sampling(self) -> GenerateConfig:
        """The sampling options that the model's authors recommend (`general.sampling.*`), without invalid values."""
        from ...options import GenerateConfig

        config = GenerateConfig()
        for key, name in _SAMPLING.items():
            value = self.values.get(f"general.sampling.{key}")
            if isinstance(value, float):
                value = float(f"{value:.7g}")  # stored in 32 bits: 0.949999988 was 0.95
            try:
                config = config.with_options({name: value})
            except (TypeError, ValueError):
                continue
        return config

    def text(self, key: str) -> str:
        """Return the string at `key`; "" if there is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def integer(self, key: str) -> int:
        """Return the integer at `key`; 0 if there is none, or if it is not a valid count."""
        value = self.values.get(key)
        return value if type(value) is int and 0 < value < 1 << 31 else 0

    def length(self, key: str) -> int:
        """Return the number of items of the array at `key`; 0 if there is none."""
        value = self.values.get(key)
        return value.length if isinstance(value, Skipped) else len(value) if isinstance(value, tuple) else 0


_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}


def quantisation(elements: Mapping[int, int]) -> tuple[int, int]:
    """Return bits and group size of the tensor type with the most weights; (0, 0) if that type is unknown."""
    known = [(count, -type_) for type_, count in elements.items() if type_ in TENSOR_TYPES]
    if not known:
        return 0, 0
    type_ = TENSOR_TYPES[-max(known)[1]]
    return type_.bits, type_.group


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether the file at `path` begins like a GGUF file. Its name is not considered. Never raises."""
    try:
        with _open(path) as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def read_metadata(path: str | os.PathLike[str], *, keep: Container[str] = ()) -> GGUFMetadata:
    """Read the header of the GGUF file at `path`.

    Missing tensor data does not raise an error (see `missing_bytes`).

    Args:
        path: The file.
        keep: Keys whose values are read whatever their size. Other arrays of more than 1,024 items
            and strings over 1 MiB become `Skipped`.

    Raises:
        GGUFError: The file can't be opened, is not a little-endian GGUF file of version 2 or 3, or its header is
            damaged.
    """
    name = os.fspath(path)
    try:
        with _open(name) as file:
            return _read(_Reader(file, os.fstat(file.fileno()).st_size), name, keep)
    except OSError as error:
        raise GGUFError(name, f"it can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise GGUFError(name, f"it is not a usable GGUF file: {error}") from None


def token_ids(header: GGUFMetadata, families: Iterable[Sequence[str]]) -> tuple[int, ...] | None:
    """Return the ids of the first of `families` whose tokens are all in the vocabulary; None if there is none.

    The bytes of the header are searched for the tokens, and the vocabulary is read up to them only if they are there:
    a few milliseconds. Reading 50,000 tokens as text takes ten times as long.
    """
    if header.data_start > MAX_BYTES_READ:
        return None
    try:
        with _open(header.path) as file:
            data = file.read(header.data_start)
        key = _stored("tokenizer.ggml.tokens") + _U32.pack(_ARRAY) + _U32.pack(_STRING)
        start = data.index(key) + len(key)
        for family in families:
            if all(_stored(name) in data for name in family):
                places = [data.find(_stored(name), start) for name in family]
                indices = _indices(data, start, {*places})
                if len(indices) == len(family):  # else one is inside of another string
                    return tuple(indices[place] for place in places)
    except (OSError, ValueError, OverflowError, struct.error):
        return None  # the file has changed
    return None


def _stored(text: str) -> bytes:
    return _U64.pack(len(text.encode())) + text.encode()


def _indices(data: bytes, start: int, places: Set[int]) -> dict[int, int]:
    """Return the indices of the strings at `places`, in the array of strings whose length is at `start`."""
    match = _short_strings().match
    (count,) = _U64.unpack_from(data, start)
    at, index = start + _U64.size, 0
    out: dict[int, int] = {}
    while index < count and len(out) < len(places):
        group = match(data, at)
        if group and index + _GROUP <= count and not any(at <= place < group.end() for place in places):
            at, index = group.end(), index + _GROUP
            continue
        for _ in range(min(_GROUP, count - index)):
            if at in places:
                out[at] = index
            at, index = at + _U64.size + _U64.unpack_from(data, at)[0], index + 1
    return out


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise ValueError("it is not a regular file")
    return open(path, "rb", buffering=0)


# ---------------------------------------------------------------- the format

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_TENSOR_TAILS = [struct.Struct(f"<{dimensions}QIQ") for dimensions in range(5)]


class _Reader:
    """Reads the file through a window that moves forward. Raises ValueError at the end of the file or at a limit."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.window = b""
        self.start = 0  # the window's first byte, in the file
        self.at = 0  # the next byte, in the window
        self.bytes_read = 0
        self.items = 0  # of the arrays that are kept: a byte of the file may become an object of eighty

    @property
    def position(self) -> int:
        return self.start + self.at

    def need(self, count: int) -> None:
        """Make sure that the window contains the next `count` bytes."""
        if self.at + count <= len(self.window):
            return
        self._check(count)
        rest = self.window[self.at :]
        if self.bytes_read + count - len(rest) > MAX_BYTES_READ:
            raise ValueError(f"its header is larger than {MAX_BYTES_READ >> 20} MiB")
        self.start, self.at = self.position, 0
        chunks = [rest]
        have = len(rest)
        while have < count:
            chunk = self.file.read(max(count - have, _CHUNK))
            if not chunk:
                raise ValueError("it became shorter while it was read")
            chunks.append(chunk)
            have += len(chunk)
        self.window = b"".join(chunks)
        self.bytes_read += have - len(rest)

    def skip(self, count: int) -> None:
        """Skip `count` bytes, without reading those after the window."""
        self._check(count)
        self.at += count
        if self.at > len(self.window):
            self.start, self.at, self.window = self.position, 0, b""
            self.file.seek(self.start)

    def _check(self, count: int) -> None:
        if self.position + count > self.size:
            raise ValueError(f"it ends within its header, at byte {self.size:,}: fetch it again")

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        self.need(form.size)
        values = form.unpack_from(self.window, self.at)
        self.at += form.size
        return values

    def take(self, items: int, key: str) -> None:
        """Count the items of the array at `key`. Raises ValueError if the limit for all arrays is exceeded."""
        self.items += items
        if self.items > MAX_ITEMS:
            raise ValueError(f"its arrays would have {self.items:,} items up to {key!r}; {MAX_ITEMS:,} is the limit")

    def string(self, limit: int, what: str) -> str:
        (length,) = self.unpack(_U64)
        if length > limit:
            raise ValueError(f"{what} would be {length:,} bytes long")
        self.need(length)
        text = self.window[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return text

    def skip_strings(self, count: int) -> None:
        match = _short_strings().match
        groups, single = divmod(count, _GROUP)
        for _ in range(groups):
            if found := match(self.window, self.at):
                self.at = found.end()
            else:
                self._skip_strings_singly(_GROUP)
        self._skip_strings_singly(single)

    def _skip_strings_singly(self, count: int) -> None:
        for _ in range(count):
            (length,) = self.unpack(_U64)
            self.skip(length)


_GROUP = 32


@functools.cache
def _short_strings() -> re.Pattern[bytes]:
    """Return an expression that matches 32 consecutive strings of up to 64 bytes each.

    The strings of a vocabulary can only be skipped one by one, because each begins with its length. With this
    expression the loop runs in the regular expression engine, more than twice as fast as in Python.
    The lengths most frequent in vocabularies are tried first. The repetition is possessive, so that no string
    is tried twice.
    """
    lengths = sorted(range(65), key=lambda length: abs(length - 7))
    strings = b"|".join(re.escape(_U64.pack(length)) + b".{%d}" % length for length in lengths)
    return re.compile(b"(?s:%s){%d}+" % (strings, _GROUP))


def _read(reader: _Reader, path: str, keep: Container[str]) -> GGUFMetadata:
    if not reader.size:
        raise ValueError("it is empty")
    if reader.size < 4 or reader.unpack(_U32)[0] != int.from_bytes(b"GGUF", "little"):
        raise ValueError("it does not begin with the letters GGUF")
    (version,) = reader.unpack(_U32)
    if version & 0xFFFF == 0:
        raise ValueError("it is big-endian, which is not supported: convert it for a little-endian machine")
    if version not in (2, 3):
        raise ValueError(f"it is of GGUF version {version}; versions 2 and 3 are supported")
    num_tensors, num_keys = reader.unpack(_U64)[0], reader.unpack(_U64)[0]
    for count, limit, what in ((num_keys, MAX_KEYS, "keys"), (num_tensors, MAX_TENSORS, "tensors")):
        if count > limit:
            raise ValueError(f"it would have {count:,} {what}; {limit:,} is the limit")

    values: dict[str, Value] = {}
    for _ in range(num_keys):
        key = reader.string(MAX_NAME_BYTES, "a key")
        if key in values:
            raise ValueError(f"it has the key {key!r} twice")
        values[key] = _value(reader, key, key in keep)

    tensors = tuple(_tensor(reader) for _ in range(num_tensors))
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
    data_start = data_end = -(-reader.position // alignment) * alignment
    if tensors:
        data_end += max(tensor.offset + tensor.size_bytes for tensor in tensors)
    else:
        data_start = data_end = reader.position
    return GGUFMetadata(path, version, reader.size, data_start, data_end, values, tensors)


def _value(reader: _Reader, key: str, keep: bool) -> Value:
    (type_,) = reader.unpack(_U32)
    if type_ in _SCALARS:
        value: Value = reader.unpack(_SCALARS[type_])[0]
        return value
    if type_ == _STRING:
        reader.need(8)
        (length,) = _U64.unpack_from(reader.window, reader.at)
        if keep or length <= MAX_KEPT_BYTES:
            return reader.string(MAX_BYTES_READ, f"the value of {key!r}")
        reader.skip(8)
        reader.skip(length)
        return Skipped(length)
    if type_ != _ARRAY:
        raise ValueError(f"{key!r} has the unknown value type {type_}")

    (type_,) = reader.unpack(_U32)
    (length,) = reader.unpack(_U64)
    if type_ in _SCALARS:
        form = _SCALARS[type_]
        if not keep and length > MAX_KEPT_ITEMS:
            reader.skip(length * form.size)
            return Skipped(length)
        reader.take(length, key)
        reader.need(length * form.size)
        return reader.unpack(struct.Struct(f"<{length}{form.format[1:]}"))
    if type_ != _STRING:  # ggml reads no arrays of arrays either
        raise ValueError(f"{key!r} is an array of the unsupported type {type_}")
    if keep or length <= MAX_KEPT_ITEMS:
        reader.take(length, key)
        return tuple([reader.string(MAX_BYTES_READ, f"a string of {key!r}") for _ in range(length)])
    reader.skip_strings(length)
    return Skipped(length)


def _tensor(reader: _Reader) -> Tensor:
    name = reader.string(MAX_NAME_BYTES, "a tensor's name")
    (dimensions,) = reader.unpack(_U32)
    if dimensions >= len(_TENSOR_TAILS):
        raise ValueError(f"tensor {name!r} would have {dimensions} dimensions; 4 is the limit")
    *shape, type_, offset = reader.unpack(_TENSOR_TAILS[dimensions])
    tensor = Tensor(name, type_, tuple(shape), offset)
    if tensor.elements >= 1 << 63:
        raise ValueError(f"tensor {name!r} would have {tensor.elements:,} weights")
    known = TENSOR_TYPES.get(type_)
    if known and shape and shape[0] % known.block:
        raise ValueError(f"tensor {name!r} has rows of {shape[0]} weights, which {known.name} can't store")
    return tensor
