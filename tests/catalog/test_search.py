# SPDX-License-Identifier: Apache-2.0
"""The search for models by `discover`: found models, their names, and their problems."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_bridge.catalog import search
from inference_bridge.catalog.discovery import discover, lookup
from inference_bridge.catalog.found import DiscoveredModel

from ..parts.models import tiny_vision
from ..parts.models.gguf_files import (
    Q8_0,
    TensorSpec,
    gguf_bytes,
    safetensors_bytes,
    write_checkpoint,
    write_model,
    write_projector,
)
from ..parts.models.tiny_audio import write_ears, write_senses
from ..parts.models.tiny_gguf import write_llama


def names(*directories: Path) -> list[str]:
    return [model.name for model in discover(*directories)]


def only(*directories: Path) -> DiscoveredModel:
    (model,) = discover(*directories)
    return model


# ---------------------------------------------------------------- GGUF files


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a" / "b" / "Tiny-1B.Q4_1.gguf")
    assert discover(tmp_path) == [
        DiscoveredModel(
            path=str(path),
            name="Tiny-1B.Q4_1",
            format="gguf",
            model_type="llama",
            quant_bits=4,
            quant_group=32,
            num_files=1,
            size_bytes=path.stat().st_size,
            context_length=2048,
            chat=False,
        )
    ]


def test_a_model_with_a_chat_template_is_one_for_conversations(tmp_path: Path) -> None:
    write_model(tmp_path / "base.gguf")
    write_model(tmp_path / "chat.gguf", {"tokenizer.chat_template": "{{ messages }}"})
    for name in ("mlx-base", "mlx-inside", "mlx-beside"):
        write_checkpoint(tmp_path / name)
    (tmp_path / "mlx-base" / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (tmp_path / "mlx-inside" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert {model.name: model.chat for model in discover(tmp_path)} == {
        "base": False,
        "chat": True,
        "mlx-base": False,
        "mlx-beside": False,
        "mlx-inside": True,
    }
    (tmp_path / "mlx-beside" / "chat_template.jinja").write_text("{{ messages }}")
    assert {model.name for model in discover(tmp_path) if model.chat} == {"chat", "mlx-beside", "mlx-inside"}


def test_models_are_found_in_any_subdirectory(tmp_path: Path) -> None:
    write_model(tmp_path.joinpath(*"abcdefghijklmnopqrstuvwxyz") / "deep.GGUF")
    write_model(tmp_path / ".hidden" / "h.gguf")
    assert names(tmp_path) == ["deep", "h"]


def test_a_real_model(demo_model_path: Path) -> None:
    model = only(demo_model_path.parent)
    assert (model.name, model.model_type) == ("SmolLM2-135M-Instruct.Q4_1", "llama")
    assert (model.quant_bits, model.quant_group, model.context_length) == (4, 32, 8192)
    assert model.problem is None


def write_split(directory: Path, stem: str = "big", parts: int = 3) -> list[Path]:
    """As gguf-split writes one: the model's values are in the first part alone."""
    paths = [directory / f"{stem}-{part:05d}-of-{parts:05d}.gguf" for part in range(1, parts + 1)]
    write_model(paths[0], {"split.no": 0, "split.count": parts})
    for number, path in enumerate(paths[1:], 1):
        values = {"split.no": number, "split.count": parts}
        path.write_bytes(gguf_bytes(values, [TensorSpec("w", (64, 9), Q8_0)]))
    return paths


def test_a_split_model_is_one(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    model = only(tmp_path)
    assert (model.name, model.path, model.num_files) == ("big", str(paths[0]), 3)
    assert model.size_bytes == sum(path.stat().st_size for path in paths)
    assert (model.problem, model.model_type, model.quant_bits) == (None, "llama", 8)


@pytest.mark.parametrize("absent", [1, 3])
def test_a_missing_part_is_a_problem(tmp_path: Path, absent: int) -> None:
    write_split(tmp_path)[absent - 1].unlink()
    model = only(tmp_path)
    assert (model.name, model.num_files) == ("big", 2)
    assert model.problem == f"1 of its 3 parts missing, such as part {absent}: fetch it again"


def test_a_damaged_part_is_a_problem(tmp_path: Path) -> None:
    write_split(tmp_path)[1].write_text("an error page")
    assert "letters GGUF" in (only(tmp_path).problem or "")


def test_numbers_in_file_names_that_do_not_mean_a_split_model(tmp_path: Path) -> None:
    write_model(tmp_path / "x-00007-of-00003.gguf")
    write_model(tmp_path / "y-00001-of-00001.gguf")
    models = discover(tmp_path)
    assert [(model.problem, model.num_files) for model in models] == [(None, 1)] * 2
    assert models[1].name == "y"


def test_files_that_belong_to_a_model_are_not_models(tmp_path: Path) -> None:
    write_model(tmp_path / "lora.gguf", {"general.type": "adapter"})
    write_model(tmp_path / "imatrix.gguf", {"general.type": "imatrix"})
    write_model(tmp_path / "vocabulary.gguf", tensors=())
    write_projector(tmp_path / "projector.gguf")
    write_model(tmp_path / "mmproj-old.gguf")
    (tmp_path / "model.gguf.part").write_bytes(b"GGUF")
    (tmp_path / "._model.gguf").write_bytes(b"resource fork")
    assert discover(tmp_path) == []


# ---------------------------------------------------------------- projectors


def test_a_projector_belongs_to_the_models_in_its_directory(tmp_path: Path) -> None:
    projector = write_projector(tmp_path / "sees" / "mmproj-F16.gguf")
    write_model(tmp_path / "sees" / "a.gguf")
    write_model(tmp_path / "sees" / "b.gguf")
    write_model(tmp_path / "blind" / "c.gguf")
    assert {model.name: model.mmproj for model in discover(tmp_path)} == {
        "a": str(projector),
        "b": str(projector),
        "c": None,
    }


def test_a_projector_goes_to_models_of_its_width(tmp_path: Path) -> None:
    fits = write_projector(tmp_path / "mmproj-wide.gguf", vision__projection_dim=64)
    write_model(tmp_path / "wide.gguf", {"llama.embedding_length": 64})
    write_model(tmp_path / "narrow.gguf", {"llama.embedding_length": 32})
    write_model(tmp_path / "quants" / "wide-q4.gguf", {"llama.embedding_length": 64})
    write_model(tmp_path / "quants" / "narrow-q4.gguf", {"llama.embedding_length": 32})
    assert {model.name: model.mmproj for model in discover(tmp_path)} == {
        "wide": str(fits),
        "narrow": None,
        "wide-q4": str(fits),
        "narrow-q4": None,
    }


def test_the_projector_with_the_most_similar_name_is_chosen(tmp_path: Path) -> None:
    for name in ("mmproj-gemma-f32", "mmproj-gemma-f16", "mmproj-qwen-bf16", "mmproj-qwen-q8_0"):
        write_projector(tmp_path / f"{name}.gguf", vision__projection_dim=1024 + len(name))  # fits none: an old number
    write_model(tmp_path / "gemma-4b.gguf")
    write_model(tmp_path / "qwen-7b.gguf")
    chosen = {model.name: os.path.basename(model.mmproj or "") for model in discover(tmp_path)}
    assert chosen == {"gemma-4b": "mmproj-gemma-f16.gguf", "qwen-7b": "mmproj-qwen-bf16.gguf"}


def test_the_media_types_of_a_projector_are_known(tmp_path: Path) -> None:
    for name, write in (("hears", write_ears), ("senses", write_senses), ("sees", tiny_vision.write_projector)):
        (tmp_path / name).mkdir()
        write_llama(tmp_path / name / f"{name}.gguf", 512)
        write(tmp_path / name / "mmproj.gguf")
    found = {model.name: (model.images, model.audios) for model in discover(tmp_path)}
    assert found == {"hears": (False, True), "senses": (True, True), "sees": (True, False)}


# ---------------------------------------------------------------- MLX directories


def test_an_mlx_directory(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3",
        "max_position_embeddings": 40960,
        "quantization": {"group_size": 64, "bits": 4, "model.embed_tokens": {"bits": 6}},
    }
    path = write_checkpoint(tmp_path / "Qwen3-4B-4bit", config)
    assert discover(tmp_path) == [
        DiscoveredModel(
            path=str(path),
            name="Qwen3-4B-4bit",
            format="mlx",
            model_type="qwen3",
            quant_bits=4,
            quant_group=64,
            num_files=1,
            size_bytes=len(safetensors_bytes()),
            context_length=40960,
            chat=False,
        )
    ]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, (4, 128)),
        ({"quantization_config": {"quant_method": "mxfp4"}}, (4, 32)),
        ({"quantization_config": {"quant_method": "fp8"}}, (8, 0)),
        ({"quantization_config": {"load_in_4bit": True}}, (4, 0)),
        ({"quantization_config": {"bits": 8, "group_size": -1}}, (8, 0)),
        ({"quantization": {"bits": 1 << 99, "group_size": "x"}}, (0, 0)),
        ({"torch_dtype": "bfloat16"}, (16, 0)),
        ({"text_config": {"dtype": "float32"}}, (32, 0)),
        ({"dtype": ["bfloat16"]}, (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_forms_of_the_quantisation_setting(tmp_path: Path, stated: dict[str, Any], expected: tuple[int, int]) -> None:
    model = only(write_checkpoint(tmp_path, {"model_type": "llama", **stated}))
    assert (model.quant_bits, model.quant_group, model.problem) == (*expected, None)


@pytest.mark.parametrize(
    ("stated", "key", "value"),
    [
        ({"hidden_size": "64"}, "hidden_size", '"64"'),
        ({"num_hidden_layers": -1}, "num_hidden_layers", "-1"),
        ({"num_hidden_layers": 1 << 31}, "num_hidden_layers", "2147483648"),
        ({"num_local_experts": 1 << 20}, "num_local_experts", "1048576"),
        ({"num_attention_heads": 1.5}, "num_attention_heads", "1.5"),
        ({"text_config": {"vocab_size": {}}}, "vocab_size", "{}"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps", "NaN"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings", '"no"'),
        ({"quantization": [4]}, "quantization", "[4]"),
        ({"eos_token_id": "</s>"}, "eos_token_id", '"</s>"'),
    ],
)
def test_an_impossible_value_is_a_problem(tmp_path: Path, stated: dict[str, Any], key: str, value: str) -> None:
    problem = only(write_checkpoint(tmp_path, {"model_type": "llama", **stated})).problem
    assert problem is not None
    assert f"{key} = {value}" in problem


def test_null_and_a_list_of_layers_are_possible(tmp_path: Path) -> None:
    config = {"model_type": "llama", "head_dim": None, "rope_scaling": None, "num_key_value_heads": [4, 2]}
    assert only(write_checkpoint(tmp_path, config)).problem is None


def test_the_base_directory_and_nested_ones(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base")
    write_checkpoint(tmp_path / "base" / "variants" / "8bit")
    write_model(tmp_path / "base" / "same.gguf")
    assert names(tmp_path / "base") == ["8bit", "base", "same"]


SHARDS = [f"model-{part:05d}-of-00003.safetensors" for part in (1, 2, 3)]


@pytest.mark.parametrize("with_index", [True, False])
def test_weights_in_several_files(tmp_path: Path, with_index: bool) -> None:
    write_checkpoint(tmp_path, files=SHARDS)
    if with_index:
        index = {"weight_map": {f"w{number}": file for number, file in enumerate(SHARDS * 2)}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        (tmp_path / "consolidated.safetensors").write_bytes(safetensors_bytes())
    model = only(tmp_path)
    assert (model.num_files, model.size_bytes, model.problem) == (3, 3 * len(safetensors_bytes()), None)
    (tmp_path / SHARDS[1]).unlink()
    model = only(tmp_path)
    assert (model.num_files, model.model_type) == (2, "llama")
    assert model.problem == f"1 of its 3 weight files missing, such as {SHARDS[1]}: fetch it again"


def test_directories_that_are_not_mlx_models(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "config.json").write_text("{")
    write_checkpoint(tmp_path / "adapter", files=["adapters.safetensors"])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(safetensors_bytes())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "model_index.json").write_text("{}")
    write_checkpoint(tmp_path / "images" / "text_encoder")
    assert discover(tmp_path) == []


# ---------------------------------------------------------------- damage


def damage(directory: Path) -> dict[str, str]:
    """Faults of models, by the name of the model, and the problem reported for each."""
    for name, content in {"empty": b"", "text": b"Not found", "header": b"GGUF\3\0\0\0"}.items():
        (directory / f"{name}.gguf").write_bytes(content)
    write_model(directory / "short.gguf", cut=1)
    write_model(directory / "nameless.gguf", {"general.architecture": ""})
    (directory / "weightless.gguf").write_bytes(gguf_bytes({"general.architecture": "llama"}))
    (directory / "dangling.gguf").symlink_to("nowhere")
    (directory / "circular.gguf").symlink_to("circular.gguf")
    for name, text in {"json": "{", "list": "[]", "untyped": "{}", "deep": "[" * 99999, "digits": "9" * 9999}.items():
        write_checkpoint(directory / name)
        (directory / name / "config.json").write_text(text)
    write_checkpoint(directory / "binary")
    (directory / "binary" / "config.json").write_bytes(b"\xfe\xff\xff")
    write_checkpoint(directory / "sparse")
    os.truncate(directory / "sparse" / "config.json", 1 << 30)
    write_checkpoint(directory / "lost")
    (directory / "lost" / "config.json").unlink()
    (directory / "lost" / "config.json").symlink_to("nowhere")
    for name, content in {"pointer": b"version https://git-lfs.github.com/spec/v1", "hollow": b""}.items():
        write_checkpoint(directory / name)
        (directory / name / "model.safetensors").write_bytes(content)
    write_checkpoint(directory / "cut")
    (directory / "cut" / "model.safetensors").write_bytes(safetensors_bytes()[:-1])
    for name, index in {"index": "{}", "escape": '{"weight_map": {"w": "../x.safetensors"}}'}.items():
        write_checkpoint(directory / name)
        (directory / name / "model.safetensors.index.json").write_text(index)
    return {
        "empty": "it is empty",
        "text": "the letters GGUF",
        "header": "ends within its header",
        "short": "ends at byte",
        "nameless": "architecture",
        "weightless": "no weights",
        "dangling": "does not exist",
        "circular": "does not exist",
        "json": "config.json is not valid JSON",
        "list": "not a JSON object",
        "untyped": "no model_type",
        "deep": "nested too deep",
        "digits": "not valid JSON",
        "binary": "config.json is not",
        "sparse": "1,073,741,824 bytes",
        "lost": "can't be read",
        "pointer": "not a safetensors file",
        "hollow": "not a safetensors file",
        "cut": "ends at byte",
        "index": "weight_map",
        "escape": "outside the directory",
    }


def test_damaged_models_are_listed_with_their_problem(tmp_path: Path) -> None:
    expected = damage(tmp_path)
    models = {model.name: model for model in discover(tmp_path)}
    assert models.keys() == expected.keys()
    for name, why in expected.items():
        assert why in (models[name].problem or ""), name
        assert models[name].model_type == ("llama" if name == "weightless" else ""), name


def test_a_damaged_model_does_not_affect_others_in_its_directory(tmp_path: Path) -> None:
    bad = damage(tmp_path)
    write_model(tmp_path / "good.gguf")
    write_checkpoint(tmp_path / "well")
    assert {model.name for model in discover(tmp_path) if model.problem is None} == {"good", "well"}
    assert len(discover(tmp_path)) == len(bad) + 2


@contextlib.contextmanager
def unprivileged(path: Path) -> Iterator[None]:
    """Root may read every file, so become the user "nobody" for a while, with access to `path`."""
    if os.geteuid() != 0:
        yield
        return
    closed = {place: place.stat().st_mode for place in (path, *path.parents) if not place.stat().st_mode & 0o001}
    for place in closed:
        place.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for place, mode in closed.items():
            place.chmod(mode)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are another matter there")
def test_unreadable_files_and_directories_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path / "open.gguf")
    write_model(tmp_path / "closed.gguf").chmod(0)
    (write_checkpoint(tmp_path / "weights") / "model.safetensors").chmod(0)
    write_model(tmp_path / "private" / "m.gguf").parent.chmod(0)
    try:
        with unprivileged(tmp_path):
            models = {model.name: model for model in discover(tmp_path)}
    finally:
        (tmp_path / "private").chmod(0o755)
    assert models.keys() == {"open", "closed", "weights"}
    assert models["weights"].problem == "its model.safetensors can't be read: Permission denied"
    assert models["closed"].problem == "it can't be read: Permission denied"
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("inference_bridge.catalog.search", logging.WARNING)
    assert str(tmp_path / "private") in record.getMessage()


def test_a_directory_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path / "here" / "m.gguf")
    assert names(tmp_path / "absent", tmp_path / "here", tmp_path / "here" / "m.gguf") == ["m"]
    assert [record.getMessage() for record in caplog.records] == [
        f"no models are looked for in {tmp_path / 'absent'}: No such file or directory",
        f"no models are looked for in {tmp_path / 'here' / 'm.gguf'}: Not a directory",
    ]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    write_checkpoint(tmp_path / "dir")
    (tmp_path / "dir" / "config.json").unlink()
    os.mkfifo(tmp_path / "dir" / "config.json")
    assert discover(tmp_path) == []


def test_the_number_of_directories_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(search, "MAX_DIRECTORIES", 3)
    for name in "abcd":
        write_model(tmp_path / name / f"{name}.gguf")
    assert names(tmp_path) == ["a", "b"]
    assert "after 3 directories" in caplog.text


# ---------------------------------------------------------------- links


def test_loops_of_links_end(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "m.gguf")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert only(tmp_path).path == str(tmp_path / "a" / "m.gguf")


def test_links_are_followed(tmp_path: Path) -> None:
    write_model(tmp_path / "elsewhere" / "m.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "models" / "other.gguf").symlink_to(tmp_path / "elsewhere" / "m.gguf")
    assert {model.name: model.path for model in discover(tmp_path / "models")} == {
        "m": str(tmp_path / "models" / "link" / "m.gguf"),
        "other": str(tmp_path / "models" / "other.gguf"),
    }


def test_each_model_is_listed_once_under_each_of_its_names(tmp_path: Path) -> None:
    real = write_model(tmp_path / "m" / "real.gguf")
    mlx = write_checkpoint(tmp_path / "m" / "mlx")
    (tmp_path / "a").symlink_to("m")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "alias.gguf").symlink_to(real)
    (tmp_path / "a-mlx").symlink_to(mlx)
    (tmp_path / "linked-weights").mkdir()
    for file in mlx.iterdir():
        (tmp_path / "linked-weights" / file.name).symlink_to(file)
    everywhere = [tmp_path, tmp_path / "a", tmp_path / "z", tmp_path / "m", tmp_path / "a-mlx"]
    expected = [
        ("a-mlx", str(tmp_path / "a-mlx")),
        ("alias", str(tmp_path / "z" / "alias.gguf")),
        ("mlx", str(mlx)),
        ("real", str(real)),
    ]
    for _ in range(5):
        random.Random(_).shuffle(everywhere)
        assert [(model.name, model.path) for model in discover(*everywhere)] == expected


# ---------------------------------------------------------------- names


def test_names_that_collide(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "one" / "m.gguf")
    write_model(tmp_path / "a" / "two" / "m.gguf")
    write_model(tmp_path / "b" / "two" / "m.gguf")
    write_checkpoint(tmp_path / "c" / "m")
    write_model(tmp_path / "c" / "unique.gguf")
    assert names(tmp_path) == ["a/two/m", "b/two/m", "c/m", "one/m", "unique"]


def test_names_that_collide_in_one_directory(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    write_model(tmp_path / "m.GGUF")
    write_checkpoint(tmp_path / "m")
    write_split(tmp_path, "m")
    assert names(tmp_path) == ["m", "m-00001-of-00003.gguf", "m.GGUF", "m.gguf"]


def test_names_do_not_depend_on_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("x/a", "x/b", "y/a", "y/b/a", "z"):
        write_model(tmp_path / place / "m.gguf")
        write_model(tmp_path / place / f"{place[-1]}.gguf")
    expected = discover(tmp_path)
    assert len({model.name for model in expected}) == len(expected) == 10
    real = os.scandir
    for seed in range(5):
        chance = random.Random(seed)

        @contextlib.contextmanager
        def shuffled(path: str, chance: random.Random = chance) -> Iterator[list[os.DirEntry[str]]]:
            with real(path) as entries:
                found = list(entries)
            chance.shuffle(found)
            yield found

        monkeypatch.setattr(os, "scandir", shuffled)
        roots = [tmp_path / "z", tmp_path / "y", tmp_path / "x", tmp_path]
        chance.shuffle(roots)
        assert discover(*roots) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_can_not_be_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\x1b[31m.gguf")
    write_model(path, {"general.architecture": "ll\x1bama"})
    write_checkpoint(tmp_path / "m", {"model_type": "a\nb"}, files=["a\x07-00001-of-00002.safetensors"])
    first, second = discover(tmp_path, tmp_path / "new\nline")
    assert (first.name, first.path, first.model_type) == ("caf\ufffd\ufffd[31m", str(path), "ll\ufffdama")
    assert lookup(first.name, [first, second]) == first
    shown = f"{first.name}{second}{first.problem}{caplog.messages[0]}"
    assert (shown.isprintable(), second.model_type) == (True, "a\ufffdb")


def test_many_models(tmp_path: Path) -> None:
    for number in range(300):
        write_model(tmp_path / f"d{number % 10}" / f"m{number // 2}.gguf")
    models = discover(tmp_path)
    assert len({model.name for model in models}) == 300
    assert [model.name for model in models] == sorted(model.name for model in models)
