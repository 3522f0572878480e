# SPDX-License-Identifier: Apache-2.0
"""The same weights on mlx and llama_cpp: SmolLM2-135M, converted from the demo's GGUF file.

llama.cpp rounds what it multiplies quantised weights with to 8 bits (Q8_1), MLX does not, so
logits are alike and not the same: of this model's, which span about 40, none differs by more
than TOLERANCE (1.0 was measured), and beside a shift of all, which changes nothing, their
standard deviation is below ROUGHLY (0.15 was measured).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_bridge import LoadConfig, Message, TextModel, Tool
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.backends.mlx.backend import MlxBackend

from ...parts.models.mlx_convert import convert

pytestmark = pytest.mark.slow

TOLERANCE = 1.5
ROUGHLY = 0.3
CONTEXT = 512

TEXTS = [
    "",
    " ",
    "The capital of France is Paris.",
    "Hello 👋🌍! How are you?",
    "从前有一个国王，",
    "كان يا ما كان",
    "na\u00efve caf\u00e9 e\u0301",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "1234567890 3.14159 007",
    "  two spaces,\ttab,\r\nline\n\n\nlines   ",
    "<|im_start|>user\nHi<|im_end|>\n",
    "I'll we've don't CAN'T",
    "\x00\x01 odd \u200b zero width \ufeff",
]

CONVERSATIONS = [
    [Message("user", "Hi")],
    [Message("system", "Be terse."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye")],
]


@pytest.fixture(scope="module")
def llama(demo_model_path: Path) -> Iterator[TextModel]:
    with LlamaCppBackend().load_model(str(demo_model_path), LoadConfig(context_length=CONTEXT, threads=1)) as model:
        yield model


@pytest.fixture(scope="module")
def directory(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(demo_model_path, tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="module")
def mlx(directory: Path) -> Iterator[TextModel]:
    with MlxBackend().load_model(str(directory), LoadConfig(context_length=CONTEXT)) as model:
        yield model


def test_info(llama: TextModel, mlx: TextModel) -> None:
    # MLX does not report the memory of a single model.
    assert mlx.info == replace(llama.info, weights_bytes=0, context_bytes=0, kv_cache_type="")
    assert mlx.model_type == llama.model_type
    assert mlx.capabilities == llama.capabilities


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids(llama: Any, mlx: Any, text: str) -> None:
    for special in (False, True):
        assert mlx._tokenizer.encode(text, special=special) == llama._tokenizer.encode(text, special=special)
    ids = mlx._tokenizer.encode_rendered(text)
    assert ids == llama._tokenizer.encode_rendered(text)
    assert mlx.count_tokens(text) == llama.count_tokens(text)
    for token in {*ids, 0, 1, 2}:
        for special in (False, True):
            assert mlx._engine.piece(token, special) == llama._engine.piece(token, special)
    assert b"".join(mlx._engine.piece(token, True) for token in ids).decode() == text


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["question", "turns"])
@pytest.mark.parametrize("tools", [(), (Tool("add", "Adds numbers."),)], ids=["plain", "tools"])
def test_rendered_prompts(llama: Any, mlx: Any, messages: list[Message], tools: tuple[Tool, ...]) -> None:
    rendered = [model._template.render(messages, tools=tools).text for model in (mlx, llama)]
    assert rendered[0] == rendered[1]


def test_first_token_logits(llama: TextModel, mlx: TextModel) -> None:
    prompts = ["The capital of France is", "Once upon a time", "1, 2, 3, 4,"]
    logits = [
        np.array([result.logits for result in model.classify(prompts, return_logits=True)]) for model in (mlx, llama)
    ]
    difference = logits[0] - logits[1]
    assert np.abs(difference).max() < TOLERANCE
    assert difference.std(axis=1).max() < ROUGHLY
    assert list(logits[0].argmax(axis=1)) == list(logits[1].argmax(axis=1))
    for one, other in zip(*logits, strict=True):
        assert len(set(np.argsort(one)[-5:]) & set(np.argsort(other)[-5:])) >= 4


def test_greedy_answers_from_many_at_once(llama: TextModel, mlx: TextModel) -> None:
    questions = ["What is the capital of France?", "What is the capital of Italy?"]
    asked = [[Message("user", f"{question} Answer in one sentence.")] for question in questions]
    expected = [llama.chat(messages, max_tokens=16).text() for messages in asked]
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = mlx.chat(asked[number], max_tokens=16).text()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(len(asked))] == expected
    assert expected[0] == "The capital of France is Paris."


def test_the_next_turn_reuses_the_last(mlx: TextModel) -> None:
    question = [Message("user", "What is the capital of France? Answer in one sentence.")]
    first = mlx.chat(question, max_tokens=16)
    answer = first.text()
    assert (answer, first.finish_reason) == ("The capital of France is Paris.", "stop")
    turn = mlx.chat([*question, Message("assistant", answer), Message("user", "Italy?")], max_tokens=2)
    turn.text()
    said = first.metrics.prompt_tokens + first.metrics.generated_tokens
    assert turn.metrics.cached_tokens >= said - 1
    assert turn.metrics.prefill_seconds > 0


def test_a_schema_and_labels(mlx: TextModel) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    stream = mlx.generate("Is the sky blue? JSON: ", json_schema=schema, max_tokens=20)
    assert json.loads(stream.text())["answer"] in ("yes", "no")
    assert stream.finish_reason == "stop"
    (result,) = mlx.classify(["The capital of France is"], labels=[" Paris", " Berlin"])
    assert result.label == " Paris"
    assert result.scores is not None
    assert result.scores[" Paris"] > 0.9


def test_a_program_ends_cleanly(directory: Path) -> None:
    """A thread's streams of MLX abort the process at its end, once they have read weights of this size."""
    code = f"import inference_bridge as ib; model = ib.load_model({str(directory)!r}, backend='mlx')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
