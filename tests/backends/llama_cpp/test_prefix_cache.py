# SPDX-License-Identifier: Apache-2.0
"""The prefix cache on disk, with real models: a process reuses the prefixes that an earlier one evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import LoadConfig, UnsupportedError, load_model
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.engine.prefix_cache import files as prefix_files
from inference_bridge.engine.prefix_cache.store import MIN_TOKENS

from ...parts.models.tiny_gguf import write_embedding, write_llama, write_recurrent, write_sliding_window

DOCUMENT = "".join(f"Line {number}: the fox jumps {number * 7 % 13} times.\n" for number in range(40))
"""More than 1,000 tokens of the tiny models, whose tokens are bytes."""
SIZE = 1 << 30

PROGRAM = """
import json, sys
from inference_bridge import load_model
source, options, prompts = json.loads(sys.stdin.read())
answers = []
with load_model(source, **options) as model:
    for prompt in prompts:
        result = model.generate(prompt, max_tokens=24).result()
        ids = [token.id for token in result.tokens]
        answers.append((ids, result.text, result.metrics.prompt_tokens, result.metrics.cached_tokens))
print(json.dumps(answers))
"""


def ask(path: Path, *prompts: str, **options: Any) -> list[list[Any]]:
    """The answers of a separate process: token ids, text, number of prompt tokens, and number of cached ones."""
    given = {"context_length": 4096, "threads": 1, "deterministic": True, "prefix_cache_size": SIZE, **options}
    asked = json.dumps([f"llama_cpp:{path}", given, prompts])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=asked, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[list[Any]] = json.loads(done.stdout)
    return answers


def files() -> list[Path]:
    return sorted(Path(prefix_files.directory()).glob("*.prefix"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "tiny.gguf", 4096)


def test_a_second_process_evaluates_only_the_rest(llama: Path) -> None:
    question = f"{DOCUMENT}Why?"
    (cold,) = ask(llama, question, prefix_cache_size=0)
    (first,) = ask(llama, DOCUMENT)
    assert (cold[3], first[3]) == (0, 0)
    (second,) = ask(llama, question)
    assert second[:3] == cold[:3]
    assert second[2] > second[3] >= second[2] - len("Why?")
    assert len(files()) == 1


def test_a_conversation_goes_on_in_a_second_process(llama: Path) -> None:
    (first,) = ask(llama, DOCUMENT)
    further = f"{DOCUMENT}{first[1]} And then?"
    (cold,) = ask(llama, further, prefix_cache_size=0)
    (exact,) = ask(llama, further)
    assert exact[:3] == cold[:3]
    assert exact[3] >= first[2]
    # With rounding allowed, the answer's tokens are reused too.
    (fast,) = ask(llama, DOCUMENT, deterministic=False)
    (further_on,) = ask(llama, f"{DOCUMENT}{fast[1]} And then?", deterministic=False)
    assert further_on[3] > fast[2]


@pytest.mark.slow
def test_the_demo_model_gives_the_cold_answer(demo_model_path: Path) -> None:
    document = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 40
    (cold,) = ask(demo_model_path, f"{document}Then the fox", prefix_cache_size=0)
    ask(demo_model_path, f"{document}But the dog")
    (warm,) = ask(demo_model_path, f"{document}Then the fox")
    assert warm[:3] == cold[:3]
    assert warm[3] > MIN_TOKENS
    assert warm[2] - warm[3] < 10


@pytest.mark.parametrize(
    "other",
    [
        {"extra": {"type_k": 0, "type_v": 0}},
        {"parallel_slots": 2},
        {"deterministic": False},
        {"batch_size": 64},
        {"extra": {"rope_freq_base": 20000.0}},
        {"gpu_layers": 1},
    ],
    ids=",".join,
)
def test_other_settings_do_not_match(other: dict[str, Any], llama: Path) -> None:
    ask(llama, DOCUMENT)
    (answer,) = ask(llama, DOCUMENT, **other)
    assert answer[3] == 0
    assert len(files()) == 2


def test_another_model_does_not_match(llama: Path, tmp_path: Path) -> None:
    ask(llama, DOCUMENT)
    other = write_llama(tmp_path / "tiny.gguf", 4096, seed=5)
    (cold,) = ask(other, DOCUMENT, prefix_cache_size=0)
    (answer,) = ask(other, DOCUMENT)
    assert answer == cold


def test_another_context_length_does_match(llama: Path) -> None:
    ask(llama, DOCUMENT)
    (answer,) = ask(llama, f"{DOCUMENT}Why?", context_length=2048)
    assert answer[3] > MIN_TOKENS


def test_a_prefix_longer_than_the_context_is_evaluated_again(llama: Path) -> None:
    ask(llama, DOCUMENT)
    (cold,) = ask(llama, DOCUMENT[:900], context_length=1024, prefix_cache_size=0)
    (answer,) = ask(llama, DOCUMENT[:900], context_length=1024)
    assert answer == cold


def test_a_damaged_file_costs_the_evaluation_alone(llama: Path) -> None:
    (first,) = ask(llama, DOCUMENT)
    (path,) = files()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    (again,) = ask(llama, DOCUMENT)
    assert again == first
    (third,) = ask(llama, DOCUMENT)
    assert third[:3] == first[:3]
    assert third[3] == third[2] - 2


def test_a_directory_that_cannot_be_written_is_not_an_error(llama: Path, home: Path) -> None:
    (home / ".cache").mkdir()
    (home / ".cache" / "inference-bridge").write_text("not a directory")
    (answer,) = ask(llama, DOCUMENT)
    assert answer[3] == 0
    assert answer[0]


@pytest.mark.parametrize("write", [write_recurrent, write_sliding_window])
def test_a_state_that_cannot_be_cut_is_restored_whole_or_not_at_all(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", 4096)
    with load_model(f"llama_cpp:{path}", deterministic=True, threads=1, prefix_cache_size=SIZE) as model:
        # Its only token is not evaluated, so the state of the prompt remains.
        tokens = model.generate(DOCUMENT, max_tokens=1).result().metrics.prompt_tokens
    assert len(files()) == 1
    for prompt, cached in ((f"{DOCUMENT}Why?", tokens), (f"{DOCUMENT[:-40]}Why?", 0), (DOCUMENT, 0)):
        (cold,) = ask(path, prompt, prefix_cache_size=0)
        (warm,) = ask(path, prompt)
        assert warm[:3] == cold[:3]
        assert warm[3] == cached


def test_short_prompts_are_not_kept(llama: Path) -> None:
    ask(llama, DOCUMENT[: MIN_TOKENS - 40])
    assert not files()


def test_prefixes_are_kept_only_on_request(llama: Path) -> None:
    ask(llama, DOCUMENT, prefix_cache_size=None)
    assert not Path(prefix_files.directory()).exists()


def test_the_prefixes_stay_within_their_limit(llama: Path) -> None:
    ask(llama, DOCUMENT)
    limit = int(2.5 * files()[0].stat().st_size)
    ask(llama, *[f"{number}{DOCUMENT}" for number in range(4)], prefix_cache_size=limit)
    assert len(files()) == 2
    assert sum(path.stat().st_size for path in files()) <= limit


def test_every_slot_is_kept_when_the_model_is_closed(llama: Path) -> None:
    with load_model(f"llama_cpp:{llama}", prefix_cache_size=SIZE, threads=1) as model:
        for stream in [model.generate(f"{number}{DOCUMENT}", max_tokens=-1) for number in range(3)]:
            next(stream)
    assert len(files()) == 3


def test_an_embedding_model_keeps_no_prefixes(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "embedding.gguf")
    with pytest.raises(UnsupportedError, match="prefix_cache_size"):
        LlamaCppBackend().load_model(str(path), LoadConfig(prefix_cache_size=SIZE))
