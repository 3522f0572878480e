# SPDX-License-Identifier: Apache-2.0
"""The prefix cache on disk with MLX: a process reuses the prefixes that an earlier one evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference_bridge.engine.prefix_cache import files as prefix_files
from inference_bridge.engine.prefix_cache.store import MIN_TOKENS

from ...parts.models.mlx_tiny import write_tiny_lora, write_tiny_mlx

pytest.importorskip("mlx_lm")

DOCUMENT = "".join(f"Line {number}: the fox jumps {number * 7 % 13} times.\n" for number in range(60))
"""Some 1,000 tokens."""
SIZE = 1 << 30

PROGRAM = """
import json, sys
from inference_bridge import load_model
answers = []
for source, options, prompt, count in json.loads(sys.stdin.read()):
    with load_model(source, **options) as model:
        result = model.generate(prompt, max_tokens=count).result()
        ids = [token.id for token in result.tokens]
        answers.append((ids, result.text, result.metrics.prompt_tokens, result.metrics.cached_tokens))
print(json.dumps(answers))
"""


def asking(path: Path, prompt: str, count: int = 8, **options: Any) -> list[Any]:
    return [f"mlx:{path}", {"batch_size": 256, "prefix_cache_size": SIZE, **options}, prompt, count]


def answers_to(*asked: list[Any]) -> list[Any]:
    """The answers of a separate process, which loads the model for each: token ids, text, numbers of prompt tokens and
    of cached ones."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def ask(path: Path, prompt: str, count: int = 8, **options: Any) -> Any:
    (answer,) = answers_to(asking(path, prompt, count, **options))
    return answer


def files() -> list[Path]:
    return sorted(Path(prefix_files.directory()).glob("*.prefix"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mlx(tmp_path_factory.mktemp("mlx") / "llama", context_length=4096)


def test_a_second_process_evaluates_only_the_rest(llama: Path) -> None:
    cold, first = answers_to(asking(llama, f"{DOCUMENT}Why?", prefix_cache_size=0), asking(llama, DOCUMENT))
    assert (cold[3], first[3]) == (0, 0)
    warm = ask(llama, f"{DOCUMENT}Why?")
    assert warm[:3] == cold[:3]
    assert warm[2] - 10 < warm[3] < warm[2]


def test_a_conversation_goes_on_in_a_second_process(llama: Path) -> None:
    first = ask(llama, DOCUMENT)
    warm = ask(llama, f"{DOCUMENT}{first[1]} And then?")
    assert warm[3] > first[2]


@pytest.mark.parametrize("architecture", ["sliding", "mamba"])
def test_a_state_that_cannot_be_cut_is_restored_whole_or_not_at_all(architecture: str, tmp_path: Path) -> None:
    path = write_tiny_mlx(tmp_path / architecture, architecture=architecture, context_length=4096)
    # The state that stays is that of the prompt.
    prompts = (f"{DOCUMENT}Why?", f"{DOCUMENT[:-40]}Why?", DOCUMENT)
    each = [asking(path, prompt, prefix_cache_size=size) for prompt in prompts for size in (0, SIZE)]
    (_, _, tokens, _), *answers = answers_to(asking(path, DOCUMENT, 1), *each)
    for cold, warm, cached in zip(answers[::2], answers[1::2], (tokens, 0, 0), strict=True):
        assert warm[:3] == cold[:3]
        assert warm[3] == cached


def test_other_models_and_settings_do_not_match(llama: Path, tmp_path: Path) -> None:
    other = write_tiny_mlx(tmp_path / "llama", context_length=4096, seed=3)
    adapted = asking(llama, DOCUMENT, adapters=str(write_tiny_lora(tmp_path / "lora")))
    answers = answers_to(asking(llama, DOCUMENT), asking(other, DOCUMENT), adapted)
    assert [answer[3] for answer in answers] == [0, 0, 0]
    assert len(files()) == 3


def test_a_model_with_a_draft_keeps_both_memories(llama: Path, tmp_path: Path) -> None:
    draft = str(write_tiny_mlx(tmp_path / "draft", context_length=4096, seed=3))
    question = f"{DOCUMENT}Why?"
    cold, _ = answers_to(
        asking(llama, question, draft_model=draft, prefix_cache_size=0), asking(llama, DOCUMENT, draft_model=draft)
    )
    warm = ask(llama, question, draft_model=draft)
    assert warm[:3] == cold[:3]
    assert warm[3] > MIN_TOKENS


def test_a_damaged_file_costs_the_evaluation_alone(llama: Path) -> None:
    first = ask(llama, DOCUMENT)
    (path,) = files()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    again, last = answers_to(asking(llama, DOCUMENT), asking(llama, DOCUMENT))
    assert again == first
    assert last[3] > MIN_TOKENS


def test_prefixes_are_kept_only_on_request(llama: Path) -> None:
    ask(llama, DOCUMENT, prefix_cache_size=None)
    assert not Path(prefix_files.directory()).exists()
