# SPDX-License-Identifier: Apache-2.0
"""A single path gives the same result as a search."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from inference_bridge import discover
from inference_bridge.catalog.single import look_at

from ..parts.models.gguf_files import write_checkpoint, write_model, write_projector
from ..parts.models.tiny_gguf import write_embedding


def test_a_single_path_gives_the_result_of_a_search(tmp_path: Path) -> None:
    write_model(tmp_path / "chat.gguf", {"tokenizer.chat_template": "{{ messages }}", "llama.embedding_length": 64})
    write_projector(tmp_path / "mmproj-chat-f16.gguf", vision__projection_dim=64)
    write_model(tmp_path / "broken.gguf", cut=10)
    (tmp_path / "text.gguf").write_text("not a model\n" * 20)
    write_embedding(tmp_path / "bert.gguf")
    write_checkpoint(tmp_path / "mlx")
    found = discover(tmp_path)
    assert len(found) == 5
    for model in found:
        assert look_at(model.path)._replace(name="") == model._replace(name="")
    assert {look_at(model.path).name for model in found} == {"chat", "broken", "text", "bert", "mlx"}


def test_any_part_of_a_split_model_is_the_model(tmp_path: Path) -> None:
    first, *others = [write_model(tmp_path / f"split-0000{number}-of-00003.gguf") for number in (1, 2, 3)]
    whole = look_at(str(others[-1]))
    assert (whole.path, whole.num_files, whole.problem, whole.name) == (str(first), 3, None, "split")
    others[0].unlink()
    assert "1 of its 3 parts missing" in (look_at(str(first)).problem or "")


def test_a_file_without_the_usual_ending(tmp_path: Path) -> None:
    blob = write_model(tmp_path / "model.gguf").rename(tmp_path / "sha256-0123")
    link = tmp_path / "link"
    link.symlink_to(blob)
    for path in (blob, link):
        assert (look_at(str(path)).problem, look_at(str(path)).model_type) == (None, "llama")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing.gguf", "there is no such file"),
        ("notes.txt", "it is not a model"),
        ("empty", "the directory holds no MLX model"),
        ("full", "full/a.gguf"),
        ("mmproj.gguf", "a projector: give it as mmproj"),
        ("broken-link.gguf", "a link to a file that does not exist"),
    ],
)
def test_the_error_for_a_path_without_a_model_has_the_reason(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "full" / "a.gguf")
    write_projector(tmp_path / "mmproj.gguf")
    (tmp_path / "broken-link.gguf").symlink_to(tmp_path / "away.gguf")
    assert told in (look_at(str(tmp_path / name)).problem or "")


def test_a_directory_that_can_not_be_read() -> None:
    """Root may read every directory, so the test switches to another user if root runs it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            problem = look_at(directory).problem
        finally:
            os.seteuid(user)
        Path(directory).chmod(0o700)
    assert problem
