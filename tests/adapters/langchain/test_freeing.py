# SPDX-License-Identifier: Apache-2.0
"""Chat models that are dropped, not closed: their models are freed, on a real engine."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

from langchain_core.runnables import ConfigurableField

from inference_bridge import TextModel
from langchain_inference_bridge import ChatInferenceBridge

from ...parts.leaks import threads_since
from ...parts.models.tiny import until


def chat_of(path: Path, context_length: int) -> ChatInferenceBridge:
    return ChatInferenceBridge(
        model=f"llama_cpp:{path}",
        context_length=context_length,
        parallel_slots=1,
        threads=1,
        max_tokens=2,
        temperature=0,
    )


def test_models_of_dropped_chats_are_freed_all_but_the_last(demo_model_path: Path) -> None:
    before = threading.enumerate()
    loaded: list[weakref.ref[TextModel]] = []
    for context_length in (256, 512, 768, 1024):
        chat = chat_of(demo_model_path, context_length)
        chat.invoke("hi")
        loaded.append(weakref.ref(chat.load()))
        del chat
        gc.collect()
        assert [reference() is not None for reference in loaded] == [*[False] * (len(loaded) - 1), True]
    until(lambda: len(threads_since(before)) <= 1)  # each model has a worker, which ends when it is freed
    chat_of(demo_model_path, 1024).load().close()


def test_a_model_in_use_outlives_its_chat(demo_model_path: Path) -> None:
    chat = chat_of(demo_model_path, 256)
    stream = chat.stream("Write a sentence about cats.", max_tokens=12)
    first = next(stream).text
    del chat
    other = chat_of(demo_model_path, 512)
    other.invoke("hi")
    gc.collect()
    rest = "".join(chunk.text for chunk in stream)
    with chat_of(demo_model_path, 256) as again, other:
        assert first + rest == again.invoke("Write a sentence about cats.", max_tokens=12).text


def test_chats_made_for_one_call_find_the_model_loaded(demo_model_path: Path) -> None:
    chat = chat_of(demo_model_path, 256)
    changing = chat.configurable_fields(temperature=ConfigurableField(id="temperature"))
    changing.invoke("hi", {"configurable": {"temperature": 0.5}})
    gc.collect()
    model = weakref.ref(chat_of(demo_model_path, 256).load())
    for temperature in (0.1, 0.2):
        changing.invoke("hi", {"configurable": {"temperature": temperature}})
        gc.collect()
    assert chat.load() is model()
    chat.close()
