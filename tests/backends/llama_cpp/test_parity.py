# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding gives the same tokens as llama-cpp-python's `Llama`.

With deterministic=True: flash attention off, batch sizes and threads are set alike, since they change the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import LoadConfig, Message, TextModel
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

CONTEXT = 2048
TOKENS = 48

PROMPTS = {
    "plain": "The capital of France is",
    "emoji": "Hello 👋🌍! How are",
    "emoji alone": "🎉🎊🎈",
    "Chinese": "从前有一个国王，",
    "Japanese": "むかしむかし、",
    "Arabic": "كان يا ما كان",
    "German": "Die Katze sitzt auf",
    "code": "def fibonacci(n):\n    ",
    "SQL": "SELECT name, COUNT(*) FROM",
    "JSON": '{"name": "Ada", "born": ',
    "numbers": "1, 2, 3, 4,",
    "white space": "\n\n",
    "one letter": "A",
    "more than one chunk": "The quick brown fox jumps over the lazy dog. " * 70,
}


@pytest.fixture(scope="module")
def reference(demo_model_path: Path) -> Iterator[Any]:
    from llama_cpp import Llama

    model = Llama(str(demo_model_path), n_ctx=CONTEXT, n_threads=2, n_threads_batch=2, verbose=False)
    yield model
    model.close()


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    config = LoadConfig(context_length=CONTEXT, threads=2, deterministic=True)
    with LlamaCppBackend().load_model(str(demo_model_path), config) as loaded:
        yield loaded


def greedy(reference: Any, ids: list[int], count: int) -> list[int]:
    reference.reset()
    ends = {reference.token_eos()}
    return list(takewhile(lambda token: token not in ends, islice(reference.generate(ids, temp=0.0), count)))


@pytest.mark.parametrize("name", PROMPTS)
def test_generate(name: str, model: TextModel, reference: Any) -> None:
    ids = reference.tokenize(PROMPTS[name].encode(), add_bos=False, special=True)
    expected = greedy(reference, ids, TOKENS)
    stream = model.generate(PROMPTS[name], max_tokens=TOKENS)
    assert [token.id for token in stream] == expected
    assert stream.metrics.prompt_tokens == len(ids)
    assert stream.text() == reference.detokenize(expected, prev_tokens=ids).decode("utf-8", "replace")


def test_long_output(model: TextModel, reference: Any) -> None:
    prompt = "Here is a long list of the countries of the world: Albania, Algeria,"
    expected = greedy(reference, reference.tokenize(prompt.encode(), add_bos=False), 400)
    assert [token.id for token in model.generate(prompt, max_tokens=400)] == expected


CHATS = {
    "question": [Message("user", "What is the capital of Italy?")],
    "system": [Message("system", "You answer in one word."), Message("user", "What is 2 + 2?")],
    "turns": [
        Message("user", "My name is Zoë 🦊."),
        Message("assistant", "Nice to meet you, Zoë!"),
        Message("user", "请用中文说你好。"),
    ],
    "code": [Message("user", "Write a Python function that reverses a string.")],
}


@pytest.mark.parametrize("name", CHATS)
def test_chat(name: str, model: TextModel, reference: Any) -> None:
    messages = [message.to_dict() for message in CHATS[name]]
    reference.reset()
    answer = reference.create_chat_completion(messages, temperature=0.0, max_tokens=TOKENS)
    stream = model.chat(CHATS[name], max_tokens=TOKENS)
    assert stream.text() == answer["choices"][0]["message"]["content"]
    assert stream.metrics.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert stream.finish_reason == answer["choices"][0]["finish_reason"]
