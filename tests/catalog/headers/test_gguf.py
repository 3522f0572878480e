# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import importlib.util
import io
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_bridge.catalog.headers import gguf
from inference_bridge.catalog.headers.gguf import GGUFError, Skipped, Tensor, is_gguf, read_metadata
from inference_bridge.errors import ModelLoadError
from inference_bridge.options import GenerateConfig
from inference_bridge.types import ModelInfo

from ...parts.models.gguf_files import (
    F16,
    F32,
    FORMS,
    LLAMA,
    Q4_1,
    Q8_0,
    TensorSpec,
    Typed,
    gguf_bytes,
    header,
    string,
    value,
)

# The directory of a test's own is made once for all the examples: each overwrites the last one's file.
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------- a real model


def test_real_model(demo_model_path: Path) -> None:
    read = read_metadata(demo_model_path)
    assert read.info == ModelInfo(
        architecture="llama",
        vocab_size=49152,
        num_layers=30,
        hidden_size=576,
        quant_bits=4,
        quant_group=32,
        context_length=8192,
    )
    assert (read.kind, read.missing_bytes) == ("model", 0)
    assert read.data_end == read.size_bytes == demo_model_path.stat().st_size
    assert read.values["tokenizer.ggml.tokens"] == Skipped(49152)
    assert read.sampling == GenerateConfig()


def test_agrees_with_the_reference_reader(demo_model_path: Path) -> None:
    reference = GGUFReader(demo_model_path)
    fields = {key: found for key, found in reference.fields.items() if not key.startswith("GGUF.")}
    read = read_metadata(demo_model_path, keep=fields)
    plain = {key: tuple(item) if isinstance(item, list) else item for key, item in _contents(fields).items()}
    assert read.values == plain
    assert read.data_start == reference.data_offset
    assert [(one.name, one.type, one.shape, one.size_bytes) for one in read.tensors] == [
        (one.name, one.tensor_type, tuple(one.shape.tolist()), one.n_bytes) for one in reference.tensors
    ]
    assert [one.offset + read.data_start for one in read.tensors] == [one.data_offset for one in reference.tensors]


def _contents(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: found.contents() for key, found in fields.items()}


def test_tensor_types_agree_with_ggml() -> None:
    package = importlib.util.find_spec("llama_cpp")
    assert package is not None
    assert package.submodule_search_locations is not None
    library, *_ = sorted(Path(package.submodule_search_locations[0], "lib").glob("*ggml-base.*"))
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    found = {}
    for number in range(max(gguf.TENSOR_TYPES) + 1):
        block = ggml.ggml_blck_size(number)
        if block:  # 0 for types that were removed from ggml
            found[number] = (ggml.ggml_type_name(number).decode().upper(), block, ggml.ggml_type_size(number))
    assert {number: (one.name, one.block, one.block_bytes) for number, one in gguf.TENSOR_TYPES.items()} == found


@pytest.mark.parametrize("kind", gguf.TENSOR_TYPES.values(), ids=lambda kind: kind.name)
def test_bits_and_groups_are_plausible(kind: gguf.TensorType) -> None:
    scales = 8 * kind.block_bytes / kind.block - kind.bits
    if kind.group == 0:
        assert scales == 0
    else:  # at most a 16-bit scale and minimum for each group, packing loss aside
        assert -0.4 < scales <= (1.125 if kind.name == "Q8_K" else 64 / kind.group)
        assert kind.block % kind.group == 0


# ---------------------------------------------------------------- values


def number(type_: int) -> st.SearchStrategy[Any]:
    if type_ in (6, 12):
        return st.floats(allow_nan=False, width=32)
    if type_ == 7:
        return st.booleans()
    low, bits = (0, 8) if FORMS[type_].isupper() else (1, 8)
    bits *= struct.calcsize("<" + FORMS[type_])
    return st.integers(-(1 << bits - 1) if low else 0, (1 << bits - low) - 1)


typed = st.sampled_from(sorted(FORMS)).flatmap(lambda type_: number(type_).map(lambda item: Typed(type_, item)))
arrays = st.sampled_from(sorted(FORMS)).flatmap(
    lambda type_: st.lists(number(type_).map(lambda item: Typed(type_, item)), max_size=9)
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)


@many
@given(st.dictionaries(texts, typed | texts | arrays | st.lists(texts, max_size=9), max_size=9))
def test_every_value_comes_back(tmp_path: Path, values: dict[str, Any]) -> None:
    values.pop("general.alignment", None)
    read = read_metadata(write(tmp_path / "m.gguf", header(values)))
    assert read.values == {key: plain(item) for key, item in values.items()}


def plain(item: Any) -> Any:
    if isinstance(item, Typed):
        return item.value
    return tuple(map(plain, item)) if isinstance(item, list) else item


@many
@given(st.lists(st.integers(0, 70), max_size=300), st.integers(16, 300))
def test_long_vocabularies_are_passed_exactly(tmp_path: Path, lengths: list[int], chunk: int) -> None:
    words = ["x" * length for length in lengths * 5]
    path = write(tmp_path / "m.gguf", header({"words": words, "after": "here"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "_CHUNK", chunk)  # so that strings lie across its ends
        patch.setattr(gguf, "MAX_KEPT_ITEMS", 3)
        assert read_metadata(path).values == {
            "words": Skipped(len(words)) if len(words) > 3 else tuple(words),
            "after": "here",
        }
        assert read_metadata(path, keep={"words"}).values["words"] == tuple(words)


def test_ids_of_tokens_of_a_real_model(demo_model_path: Path) -> None:
    read = read_metadata(demo_model_path, keep={"tokenizer.ggml.tokens"})
    tokens = read.values["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)
    for ids in ((0, 1, 2), (49151, 31, 33), (20_000, 20_031, 19_999)):
        assert gguf.token_ids(read, [("no token", "<|im_end|>"), [tokens[id] for id in ids]]) == ids
    assert gguf.token_ids(read, [("<|im_start|>", "no token")]) is None
    assert gguf.token_ids(read, []) is None


@many
@given(lengths=st.lists(st.integers(0, 70), min_size=3, max_size=200), seed=st.randoms(use_true_random=False))
def test_ids_of_tokens(tmp_path: Path, lengths: list[int], seed: Any) -> None:
    tokens = [f"{index}:".ljust(length, "x") for index, length in enumerate(lengths)]
    ids = tuple(seed.sample(range(len(tokens)), 3))
    values = {"before": [*tokens, "y"], "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": [*tokens, "y"]}
    read = read_metadata(write(tmp_path / "a.gguf", gguf_bytes(values)))
    assert gguf.token_ids(read, [("y",), [tokens[id] for id in ids]]) == ids


def test_a_token_inside_of_another_is_none(tmp_path: Path) -> None:
    values = {"tokenizer.ggml.tokens": [string("a"), "b"]}
    read = read_metadata(write(tmp_path / "a.gguf", gguf_bytes(values)))
    assert gguf.token_ids(read, [("a",)]) is None
    assert gguf.token_ids(read, [("b",)]) == (1,)


def test_large_values_are_kept_only_on_request(tmp_path: Path) -> None:
    values = {"numbers": list(range(1025)), "text": "é" * (1 << 20), "words": ["word"] * 1025, "last": 1}
    path = write(tmp_path / "m.gguf", header(values))
    assert read_metadata(path).values == {
        "numbers": Skipped(1025),
        "text": Skipped(2 << 20),
        "words": Skipped(1025),
        "last": 1,
    }
    kept = read_metadata(path, keep=values)
    assert kept.values == {key: plain(item) for key, item in values.items()}
    assert kept.length("numbers") == read_metadata(path).length("numbers") == 1025


def test_text_that_is_not_utf8_is_readable(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", header({"general.name": b"caf\xe9"}))
    assert read_metadata(path).text("general.name") == "caf�"


def test_version_2_is_read_like_version_3(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", header(LLAMA, version=2))
    assert read_metadata(path).version == 2
    assert read_metadata(path).info.num_layers == 2


# ---------------------------------------------------------------- the meaning of values


def test_info_of_mixed_tensors_is_that_of_most_weights(tmp_path: Path) -> None:
    tensors = [
        TensorSpec("token_embd.weight", (64, 40), Q8_0),
        TensorSpec("blk.0.ffn_up.weight", (64, 30), Q4_1),
        TensorSpec("blk.0.ffn_down.weight", (64, 30), Q4_1),
        TensorSpec("output_norm.weight", (64,), F32),
    ]
    read = read_metadata(write(tmp_path / "m.gguf", gguf_bytes(LLAMA, tensors)))
    assert (read.info.quant_bits, read.info.quant_group) == (4, 32)
    assert read.elements == {Q8_0: 2560, Q4_1: 3840, F32: 64}
    assert read.tensors[1] == Tensor("blk.0.ffn_up.weight", Q4_1, (64, 30), 2720)
    assert read.info.vocab_size == 3  # no value states it, so the tokens are counted


def test_unquantised_weights_have_no_group(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf_bytes(LLAMA, [TensorSpec(type=F16)]))
    assert (read_metadata(path).info.quant_bits, read_metadata(path).info.quant_group) == (16, 0)


def test_unknown_tensor_types_are_not_an_error(tmp_path: Path) -> None:
    tensor = string("w") + struct.pack("<I2QIQ", 2, 7, 9, 999, 0)
    read = read_metadata(write(tmp_path / "m.gguf", header(LLAMA, num_tensors=1) + tensor + bytes(99)))
    assert (read.tensors[0].size_bytes, read.info.quant_bits, read.missing_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "tensors", "kind"),
    [
        ({}, [TensorSpec()], "model"),
        ({"general.type": ""}, [TensorSpec()], "model"),
        ({"general.type": 7}, [TensorSpec()], "model"),
        ({"general.architecture": "clip"}, [TensorSpec()], "projector"),
        ({"general.type": "mmproj", "general.architecture": "x"}, [TensorSpec()], "projector"),
        ({"general.type": "adapter"}, [TensorSpec()], "adapter"),
        ({"general.type": "imatrix"}, [TensorSpec()], "other"),
        ({"general.architecture": "controlvector"}, [TensorSpec()], "other"),
        ({}, [], "vocabulary"),
        ({"split.count": Typed(2, 3)}, [], "model"),  # the first of a split may hold no tensors
    ],
)
def test_kinds(tmp_path: Path, values: dict[str, Any], tensors: list[TensorSpec], kind: str) -> None:
    assert read_metadata(write(tmp_path / "m.gguf", gguf_bytes({**LLAMA, **values}, tensors))).kind == kind


def test_recommended_sampling(tmp_path: Path) -> None:
    values = {
        "general.sampling.temp": 0.7,
        "general.sampling.top_k": Typed(5, 20),
        "general.sampling.top_p": 0.95,
        "general.sampling.min_p": float("nan"),  # no value to use
        "general.sampling.penalty_repeat": "much",
    }
    read = read_metadata(write(tmp_path / "m.gguf", header(values)))
    assert read.sampling == GenerateConfig(temperature=0.7, top_k=20, top_p=0.95)


def test_invalid_counts_are_unknown(tmp_path: Path) -> None:
    values = {**LLAMA, "llama.block_count": -1, "llama.context_length": True, "llama.embedding_length": 1 << 62}
    info = read_metadata(write(tmp_path / "m.gguf", header(values))).info
    assert (info.num_layers, info.context_length, info.hidden_size) == (0, 0, 0)


def test_alignment_moves_the_data(tmp_path: Path) -> None:
    values = {**LLAMA, "general.alignment": 4096}
    tensors = [TensorSpec("a"), TensorSpec("b")]
    read = read_metadata(write(tmp_path / "m.gguf", gguf_bytes(values, tensors, alignment=4096)))
    assert read.data_start == 4096
    assert read.data_end == read.size_bytes == 8192 + tensors[1].size


# ---------------------------------------------------------------- damage


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    tensors = [TensorSpec("a"), TensorSpec("b", type=F32)]
    whole = gguf_bytes(LLAMA, tensors)
    start = read_metadata(write(tmp_path / "m.gguf", whole)).data_start
    for size in range(len(whole)):
        path = write(tmp_path / "m.gguf", whole[:size])
        if size < len(header(LLAMA, tensors)):
            with pytest.raises(GGUFError):
                read_metadata(path)
        else:
            assert read_metadata(path).missing_bytes == len(whole) - size
    assert start < len(whole)


HUGE = struct.pack("<Q", 1 << 62)
DAMAGED = {
    "empty": (b"", "it is empty"),
    "tiny": (b"GG", "the letters GGUF"),
    "text": (b"Once upon a time there was a model.", "the letters GGUF"),
    "no version": (b"GGUF", "ends within its header, at byte 4"),
    "version 1": (header({}, version=1), "version 1"),
    "version 4": (header({}, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "countless keys": (header({}, num_values=1 << 62), "keys"),
    "countless tensors": (header({}, num_tensors=1 << 62), "tensors"),
    "endless key": (header({}, num_values=1) + HUGE, "a key would be"),
    "endless string": (header({}, num_values=1) + string("k") + struct.pack("<I", 8) + HUGE, "at byte|bytes long"),
    "endless numbers": (
        header({}, num_values=1) + string("k") + struct.pack("<II", 9, 4) + HUGE,
        "at byte|is the limit",
    ),
    "endless strings": (
        header({}, num_values=1) + string("k") + struct.pack("<II", 9, 8) + HUGE,
        "at byte|is the limit",
    ),
    "nested array": (header({}, num_values=1) + string("k") + struct.pack("<IIQ", 9, 9, 0), "unsupported type 9"),
    "unknown type": (header({}, num_values=1) + string("k") + struct.pack("<I", 77), "unknown value type 77"),
    "key twice": (header({"k": 1}, num_values=2) + string("k") + value(1), "twice"),
    "five dimensions": (header({}, num_tensors=1) + string("t") + struct.pack("<I", 5), "5 dimensions"),
    "countless weights": (
        header({}, num_tensors=1) + string("t") + struct.pack("<I4QIQ", 4, *[1 << 32] * 4, F32, 0),
        "weights",
    ),
    "half a block": (header({}, num_tensors=1) + string("t") + struct.pack("<IQIQ", 1, 33, Q4_1, 0), "Q4_1"),
    "alignment 0": (header({"general.alignment": 0}), "power of two"),
    "alignment 3": (header({"general.alignment": 3}), "power of two"),
    "alignment text": (header({"general.alignment": "wide"}), "power of two"),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path: Path, name: str, keep: bool) -> None:
    data, why = DAMAGED[name]
    path = write(tmp_path / "bad.gguf", data)
    with pytest.raises(ModelLoadError, match=r"bad\.gguf") as caught:
        read_metadata(path, keep={"k"} if keep else ())
    assert isinstance(caught.value, GGUFError)
    assert caught.value.path == str(path)
    assert re.search(why, caught.value.problem)


@pytest.mark.parametrize("type_", [4, 8])
def test_a_huge_sparse_file_costs_little(tmp_path: Path, type_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_BYTES_READ", 4 << 20)
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(header({}, num_values=1) + string("k") + struct.pack("<IIQ", 9, type_, 1 << 36))
        file.truncate(1 << 40)
    if type_ == 4:  # numbers are passed over unread
        assert read_metadata(path).values == {"k": Skipped(1 << 36)}
    else:
        with pytest.raises(GGUFError, match="larger than 4 MiB"):
            read_metadata(path)
    with pytest.raises(GGUFError, match="larger than 4 MiB|is the limit"):
        read_metadata(path, keep={"k"})


ITEMS = gguf.MAX_ITEMS
ARRAYS = {
    "numbers of a byte": (0, 1, [ITEMS + 1]),
    "numbers of eight": (12, 8, [ITEMS + 1]),
    "strings": (8, 8, [ITEMS + 1]),
    "arrays together": (0, 1, [ITEMS, 1]),
    "small arrays together": (0, 1, [1024] * (ITEMS // 1024 + 1)),
}


@pytest.mark.parametrize(("type_", "size", "lengths"), ARRAYS.values(), ids=ARRAYS)
def test_the_number_of_kept_objects_is_limited(tmp_path: Path, type_: int, size: int, lengths: list[int]) -> None:
    """A file of 128 MiB could hold as many numbers, each of which is an object, or a place for one."""
    with (path := tmp_path / "m.gguf").open("wb") as file:
        file.write(header({}, num_values=len(lengths)))
        for number, length in enumerate(lengths):
            file.write(string(f"k{number}") + struct.pack("<IIQ", 9, type_, length))
            file.seek(length * size, os.SEEK_CUR)
            file.truncate()
    keys = [f"k{number}" for number in range(len(lengths))]
    with pytest.raises(
        GGUFError, match=rf"its arrays would have \d[\d,]* items up to '{keys[-1]}'; 4,194,304 is the limit"
    ):
        read_metadata(path, keep=keys)
    if lengths[0] > 1024:
        assert read_metadata(path).length(keys[0]) == lengths[0]


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf", gguf_bytes(LLAMA | {"k": "long " * 100_000}, [TensorSpec()]))

    class Shrinking(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            os.truncate(path, 100)
            return data

    monkeypatch.setattr(gguf, "_open", Shrinking)
    with pytest.raises(GGUFError, match="became shorter"):
        read_metadata(path, keep={"k"})


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    for path in (tmp_path, tmp_path / "absent.gguf", tmp_path / "pipe.gguf", tmp_path / "loop.gguf", "nul\0.gguf"):
        with pytest.raises(GGUFError):
            read_metadata(path)
        assert not is_gguf(path)


def test_is_gguf_goes_by_the_content(tmp_path: Path) -> None:
    assert is_gguf(write(tmp_path / "sha256-0123", header({})))
    assert not is_gguf(write(tmp_path / "text.gguf", b"GGU"))


@many
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(gguf_bytes(LLAMA | {"ids": [1, 2, 3], "f": 1.5}, [TensorSpec("a"), TensorSpec("b", type=F32)]))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 8))
        if data.draw(st.booleans()):
            whole[at] = data.draw(st.integers(0, 255))
        else:
            whole[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, (1 << 64) - 1)))
    path = write(tmp_path / "m.gguf", bytes(whole))
    for keep in ((), LLAMA):
        try:
            read = read_metadata(path, keep=keep)
        except GGUFError:
            continue
        assert read.kind in ("model", "projector", "adapter", "vocabulary", "other")
        assert isinstance(read.info, ModelInfo)
        assert isinstance(read.sampling, GenerateConfig)
        assert read.missing_bytes >= 0


@many
@given(st.binary(max_size=200))
def test_any_content_is_read_or_refused(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + tail)
    with pytest.raises(GGUFError):
        read_metadata(path)
