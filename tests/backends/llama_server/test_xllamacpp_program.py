# SPDX-License-Identifier: Apache-2.0
"""llama-server's command line, as the wheel's server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from inference_bridge.backends.llama_server.xllamacpp_program import FLAGS, SHORT, SWITCHES, parameters


def at(params: Any, name: str) -> Any:
    for part in name.split("."):
        params = getattr(params, part)
    return params


@pytest.mark.parametrize("flag", SWITCHES)
def test_switches(flag: str) -> None:
    name, value = SWITCHES[flag]
    assert at(parameters([flag]), name) == value


WORDS = {
    "--flash-attn": ("off", 0),
    "--cache-type-k": ("q8_0", 8),
    "--cache-type-v": ("bf16", 30),
    "--pooling": ("last", 3),
    "--reasoning-format": ("none", 0),
}
"""Words of flags, and the numbers that llama.cpp has for them."""


@pytest.mark.parametrize("flag", FLAGS)
def test_flags(flag: str, tmp_path: Path) -> None:
    name, read = FLAGS[flag]
    if flag in WORDS:
        word, number = WORDS[flag]
        assert int(at(parameters([flag, word]), name)) == number
        with pytest.raises(ValueError, match=f"{flag} nonsense: 'nonsense' is none of"):
            parameters([flag, "nonsense"])
        return
    word = "ngram-simple" if flag == "--spec-type" else "3"
    if flag.endswith("-file"):
        word = str(tmp_path / "file")
        Path(word).write_text("text")
    assert at(parameters([flag, word]), name) == read(word)
    with pytest.raises(ValueError, match=f"{flag} needs a value"):
        parameters([flag])


@pytest.mark.parametrize("flag", SHORT)
def test_alternative_spellings_of_arguments(flag: str) -> None:
    assert SHORT[flag] in FLAGS


def test_adapters_and_drafts() -> None:
    params = parameters(["--lora", "/a", "--lora-scaled", "/b", "0.5", "-md", "/draft", "-t", "2"])
    assert [(one.path, one.scale) for one in params.lora_adapters] == [("/a", 1.0), ("/b", 0.5)]
    assert params.speculative.types == [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    assert params.cpuparams_batch.n_threads == params.speculative.draft.cpuparams.n_threads == 2


@pytest.mark.parametrize("word", ["--no-such-flag", "word"])
def test_unsupported_arguments_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=f"does not know {word}: leave it out, or install a llama-server"):
        parameters([word])


def test_an_invalid_number_is_refused() -> None:
    with pytest.raises(ValueError, match="--threads many: invalid literal"):
        parameters(["--threads", "many"])
