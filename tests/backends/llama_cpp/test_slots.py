# SPDX-License-Identifier: Apache-2.0
"""Steps of the engine: scheduling, and places of sequences in memory. The test makes the steps in one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference_bridge import GenerateConfig, GenerationError, Token
from inference_bridge._concurrency.mailbox import Mailbox
from inference_bridge.backends.llama_cpp.context import NativeContext
from inference_bridge.backends.llama_cpp.engine import SHARED_CHUNK, LlamaEngine
from inference_bridge.backends.llama_cpp.placement import Placement
from inference_bridge.backends.llama_cpp.threads import Threads
from inference_bridge.backends.llama_cpp.weights import NativeModel
from inference_bridge.chat.assembler import TextAssembler
from inference_bridge.engine.scheduler import Sampling, Sequence
from inference_bridge.request import Request

from ...parts.models.tiny_gguf import write_recurrent, write_sliding_window

LENGTH = 512
GROWN = 512
PROMPTS = ["The capital of France is", "One, two, three,", "Once upon a time", "def add(a, b):"]

Got = dict[str, list[tuple[int, float | None]]]
"""Tokens and their log probabilities, by prompt."""


class Driver:
    """An engine whose steps are made by the test."""

    def __init__(self, path: Path, slots: int = 4, length: int = LENGTH, first: int = LENGTH) -> None:
        taken: set[str] = set()
        model = NativeModel(str(path), Placement(gpu_layers=0, deterministic=True), extra={}, taken=taken)
        context = NativeContext(
            model,
            slots=slots,
            length=first,
            threads=Threads(1),
            batch_size=256,
            deterministic=True,
            extra={},
            taken=taken,
        )
        self.free = 8 << 30
        self.engine = LlamaEngine(model, context, length, token_bytes=23040, free=lambda: self.free)
        self.context = context
        self.native = model
        self.running: dict[str, Sequence] = {}
        self.got: Got = {}

    def admit(self, prompt: str, max_tokens: int = -1) -> bool:
        ids = self.native.encode(prompt, special=True)
        sink: Mailbox[Token] = Mailbox()
        request = Request("generate", GenerateConfig())
        sequence = Sequence(request, ids, Sampling(logprobs=1), TextAssembler(), sink, max_tokens, frozenset())
        if not self.engine.admit(sequence):
            return False
        self.running[prompt] = sequence
        self.got[prompt] = []
        return True

    def step(self) -> list[str]:
        """Take a step; the prompts that it brought a token."""
        names = {id(sequence): prompt for prompt, sequence in self.running.items()}
        events = self.engine.step()
        for event in events:
            assert event.error is None
            self.got[names[id(event.sequence)]].append((event.token, event.logprob))
        return [names[id(event.sequence)] for event in events]

    def release(self, prompt: str) -> None:
        self.engine.release(self.running.pop(prompt))

    def places(self) -> dict[str, int]:
        return {prompt: sequence.slot.index for prompt, sequence in self.running.items()}


@contextmanager
def driver(path: Path, slots: int = 4, length: int = LENGTH, first: int = LENGTH) -> Iterator[Driver]:
    made = Driver(path, slots, length, first)
    try:
        yield made
    finally:
        made.engine.close()


def alone(path: Path, prompt: str, count: int) -> list[tuple[int, float | None]]:
    """The answer of an engine with one slot and all of its memory from the start."""
    with driver(path, 1, GROWN, GROWN) as made:
        assert made.admit(prompt)
        while len(made.got[prompt]) < count:
            made.step()
        return made.got[prompt]


MODELS: dict[str, Callable[[Path], Path] | None] = {
    "real": None,
    "window": write_sliding_window,
    "recurrent": write_recurrent,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_gap_is_closed_without_loss(name: str, demo_model_path: Path, tmp_path: Path) -> None:
    write = MODELS[name]
    path = demo_model_path if write is None else write(tmp_path / "tiny.gguf")
    with driver(path) as made:
        for prompt in PROMPTS:
            assert made.admit(prompt)
            made.step()
        made.step()
        assert made.places() == dict(zip(PROMPTS, range(4), strict=True))
        made.release(PROMPTS[1])
        for _ in range(4):
            assert len(made.step()) == 3
        assert made.places() == {PROMPTS[0]: 0, PROMPTS[2]: 2, PROMPTS[3]: 1}
        for prompt in made.running:
            tokens, logprobs = zip(*made.got[prompt], strict=True)
            expected, values = zip(*alone(path, prompt, len(tokens)), strict=True)
            assert tokens == expected, prompt
            # F32 weights are multiplied in another order beside others
            assert logprobs == (values if name == "real" else pytest.approx(values, abs=1e-4)), prompt


def test_the_memory_of_a_moved_slot_is_reused(demo_model_path: Path) -> None:
    with driver(demo_model_path) as made:
        kept = "It rained for days, and the ferry did not come, so we read what books there were. " * 3
        for prompt in (PROMPTS[0], kept, PROMPTS[2]):
            assert made.admit(prompt)
            made.step()
        made.release(kept)
        made.step()
        assert made.places() == {PROMPTS[0]: 0, PROMPTS[2]: 1}
        assert made.admit(kept + "And then")
        assert made.running[kept + "And then"].cached_tokens >= len(made.native.encode(kept, special=True)) - 1


def test_a_long_text_is_not_lost_to_a_prompt_that_shares_little_of_it(demo_model_path: Path) -> None:
    beginning = "You are a careful assistant, and you say so when something is not known. " * 3
    conversation = beginning + "The ferry did not come, so we read what books there were. " * 8
    other = beginning + "What is the capital of France?"
    with driver(demo_model_path, slots=2) as made:
        known = {}
        for prompt in (PROMPTS[0], conversation, other, conversation + "And then"):
            assert made.admit(prompt)
            known[prompt] = made.running[prompt].cached_tokens
            while not made.got[prompt]:
                made.step()
            made.release(prompt)
        assert known[other] >= len(made.native.encode(beginning, special=True)) - 2
        assert known[conversation + "And then"] >= len(made.native.encode(conversation, special=True)) - 2


def test_a_gap_is_left_while_a_copy_is_only_noted(demo_model_path: Path) -> None:
    """llama.cpp copies at its next decode; memory that is moved before would be lost."""
    shared = "It rained for days, and the ferry did not come, so we read what books there were. " * 3
    with driver(demo_model_path) as made:
        for prompt in (PROMPTS[0], PROMPTS[1], shared + "One"):
            assert made.admit(prompt)
            made.step()
        made.release(PROMPTS[1])
        made.engine._evaluated = SHARED_CHUNK  # so that the next step decodes, before the new prompt
        assert made.admit(shared + "Two")
        assert made.running[shared + "Two"].cached_tokens > 32
        for _ in range(4):
            made.step()
        for prompt in made.running:
            assert made.got[prompt] == alone(demo_model_path, prompt, len(made.got[prompt])), prompt


# ---------------------------------------------------------------- memory that grows

SENTENCES = ("It rained for days. ", "The ferry did not come. ", "So we read what books there were. ")


def story(made: Driver, first: str, length: int) -> str:
    """Return a text with about the given number of tokens."""
    text = first
    while len(made.native.encode(text, special=True)) < length:
        text += SENTENCES[len(text) % 3]
    return text


def run_until(made: Driver, length: int, only: str) -> None:
    """Decode until the memory of that sequence holds `length` tokens."""
    while len(made.running[only].slot.tokens) < length:
        made.step()


@pytest.mark.parametrize("name", MODELS)
def test_growing_memory_does_not_change_results(name: str, demo_model_path: Path, tmp_path: Path) -> None:
    """Also for a half-evaluated prompt, and for the memory kept after a sequence has ended."""
    write = MODELS[name]
    path = demo_model_path if write is None else write(tmp_path / "tiny.gguf")
    with driver(path, length=GROWN, first=256) as made:
        running, half, kept = (story(made, first, 200) for first in ("Running. ", "Half. ", "Kept. "))
        for prompt in (running, PROMPTS[1], kept):
            assert made.admit(prompt, 1)
            while not made.got[prompt]:
                made.step()
        run_until(made, 256, only=running)
        made.engine._evaluated = 0  # so that the next step is a part of the new prompt
        assert made.admit(half, 1)
        assert made.step() == []
        made.release(kept)
        assert made.context.length == 256
        while made.context.length == 256:
            made.step()
        assert 0 < len(made.running[half].slot.tokens) < len(made.running[half].prompt)
        while not made.got[half]:
            made.step()
        assert made.context.length == 512
        assert made.admit(kept, 1)
        # llama.cpp moves the visible part of a window, which cannot be cut; nor can a recurrent state.
        assert (made.running[kept].cached_tokens > 100) is (name == "real")
        while not made.got[kept]:
            made.step()
        for prompt in made.running:
            tokens, logprobs = zip(*made.got[prompt], strict=True)
            expected, values = zip(*alone(path, prompt, len(tokens)), strict=True)
            assert tokens == expected, prompt
            assert logprobs == (values if name == "real" else pytest.approx(values, abs=1e-4)), prompt


def test_memory_is_moved_only_when_copies_are_made(demo_model_path: Path) -> None:
    with driver(demo_model_path, length=GROWN, first=256) as made:
        text = story(made, "", 200)
        assert made.admit(text, 1)
        run_until(made, 256, only=text)
        made.engine._evaluated = SHARED_CHUNK  # so that the next step would decode, and need more memory for it
        assert made.admit(text + "But", 1)
        assert made.running[text + "But"].cached_tokens > 100
        assert not made.context.settled
        assert made.step() == [text + "But"]
        assert made.context.length == 256
        assert len(made.step()) == 2
        assert made.context.length == 512
        for prompt in made.running:
            assert made.got[prompt] == alone(demo_model_path, prompt, len(made.got[prompt])), prompt


def test_a_pending_copy_to_a_cancelled_sequence_is_dropped(demo_model_path: Path) -> None:
    with driver(demo_model_path, length=GROWN, first=256) as made:
        text = story(made, "", 200)
        assert made.admit(text, 1)
        run_until(made, 256, only=text)
        assert made.admit(text + "But", 1)
        made.release(text + "But")
        assert len(made.step()) == 1
        assert made.context.length == 512
        assert made.admit(text + "And", 1)
        while not made.got[text + "And"]:
            made.step()
        for prompt in made.running:
            assert made.got[prompt] == alone(demo_model_path, prompt, len(made.got[prompt])), prompt


def test_only_the_sequence_that_needs_missing_memory_fails(demo_model_path: Path) -> None:
    with driver(demo_model_path, length=GROWN, first=256) as made:
        long = story(made, "", 200)
        for prompt in (long, PROMPTS[0]):
            assert made.admit(prompt, 1)
            made.step()
        run_until(made, 256, only=long)
        made.free = 4 << 20
        with pytest.raises(GenerationError, match="no memory free for more than 256 tokens in each of 4 slots"):
            made.admit(story(made, "", 300), 1)
        (failed,) = made.engine.step()
        assert failed.sequence is made.running[long]
        assert isinstance(failed.error, GenerationError)
        assert "smaller context_length" in str(failed.error)
        assert made.context.length == 256
        made.release(long)
        for _ in range(3):
            assert made.step() == [PROMPTS[0]]
        assert made.got[PROMPTS[0]] == alone(demo_model_path, PROMPTS[0], len(made.got[PROMPTS[0]]))


def test_a_full_slot_of_a_cancelled_sequence_does_not_block_others(demo_model_path: Path) -> None:
    """A token without memory is reported to the scheduler, which ends the sequence."""
    with driver(demo_model_path, length=256, first=256) as made:
        full = story(made, "", 240)
        for prompt in (full, PROMPTS[0]):
            assert made.admit(prompt, 1)
            made.step()
        run_until(made, 256, only=full)
        (told,) = made.engine.step()
        assert told.sequence is made.running[full]
        assert isinstance(told.error, GenerationError)
        made.release(full)
        for _ in range(3):
            assert made.step() == [PROMPTS[0]]


def test_memory_does_not_double_if_little_is_free(demo_model_path: Path) -> None:
    with driver(demo_model_path, length=2 * LENGTH) as made:
        made.free = 32 << 20
        assert made.admit(story(made, "", LENGTH), 1)
        assert made.context.length == LENGTH + 256


# ---------------------------------------------------------------- turns


def test_short_prompts_come_before_the_next_token_of_all(demo_model_path: Path) -> None:
    with driver(demo_model_path) as made:
        assert made.admit(PROMPTS[0])
        assert made.step() == [PROMPTS[0]]
        for prompt in PROMPTS[1:]:
            assert made.admit(prompt)
            assert made.step() == [prompt]
        assert made.step() == PROMPTS


def test_other_sequences_decode_between_the_chunks_of_a_long_prompt(demo_model_path: Path) -> None:
    long = "It rained for days, and the ferry did not come, so we read what books there were. " * 18
    with driver(demo_model_path) as made:
        assert made.admit(PROMPTS[0])
        made.step()
        assert made.admit(long)
        length = len(made.running[long].prompt)
        assert length > 2 * SHARED_CHUNK
        steps = []
        while not made.got[long]:
            steps.append(made.step())
        # Chunks alternate with tokens of the other sequence; the last chunk gives the first token.
        assert steps == [[], [PROMPTS[0]]] * (-(-length // SHARED_CHUNK) - 1) + [[long]]
        assert made.got[long] == alone(demo_model_path, long, 1)


def test_prompts_are_prefilled_one_at_a_time(demo_model_path: Path) -> None:
    with driver(demo_model_path) as made:
        assert made.admit(PROMPTS[0])
        assert not made.admit(PROMPTS[1])
        made.step()
        assert made.admit(PROMPTS[1])
