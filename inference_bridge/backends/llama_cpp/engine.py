# SPDX-License-Identifier: Apache-2.0
"""One step on llama.cpp: slots, prefix reuse, images, chunked prefill, one decode for all sequences.

The results of a sequence do not depend on the others: each has separate memory, and a prompt is evaluated in separate
decode calls, never token by token.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...catalog.gguf_checks import round_up
from ...engine.hardware import available_memory, process_memory
from ...engine.prefix_cache.common import common_length
from ...engine.prefix_cache.store import PrefixStore, Stored
from ...engine.scheduler import Sampled, Sequence, failure_of, log_softmax_top
from ...errors import GenerationError, ModelLoadError
from ...grammar.grammar import Vocabulary
from .context import NativeContext, NativeSampler
from .vocabulary import vocabulary
from .weights import NativeModel

if TYPE_CHECKING:
    from .media.projector import Encoder, Medium

_log = logging.getLogger(__name__)

SHARED_CHUNK = 128
"""Number of prompt tokens evaluated at once while other sequences decode, so that their streams continue."""

SHORTEST_CHUNK = 8
"""Minimum cost of a chunk, in tokens: the weights are read for a shorter one too."""

MIN_COPY = 32
"""A shared text prefix with fewer tokens is evaluated again instead of copied between slots."""

ANSWER_ROOM = 256
"""Number of answer tokens for which memory is allocated together with the prompt's. More is allocated as needed."""

_ABORTED = 2


@dataclass(eq=False, slots=True)
class _Slot:
    """One slot of the context: the content of its memory, and the sequence that uses it."""

    index: int
    tokens: list[int] = field(default_factory=list)
    media: dict[int, Medium] = field(default_factory=dict)
    """Images and sounds in `tokens`, by their start."""
    sequence: Sequence | None = None
    sampler: NativeSampler | None = None
    pending: int | None = None
    """The sampled token that is not evaluated yet; None while the prompt is not done."""
    used_at: float = 0.0
    exact: int = 0
    """How many of the first tokens were evaluated as a prompt. Those of an answer differ by rounding."""
    unsaved: bool = False
    """Whether its tokens have not been compared with the prefix cache on disk yet."""

    @property
    def position(self) -> int:
        """Position of the next token: less than the number of tokens after an image with two-dimensional positions."""
        return len(self.tokens) - sum(medium.tokens - medium.positions for medium in self.media.values())

    def cut(self, count: int) -> int:
        """Keep only the first `count` tokens, which must not split an image. Return the position of the next token."""
        self.media = {start: medium for start, medium in self.media.items() if start < count}
        del self.tokens[count:]
        self.exact = min(self.exact, count)
        return self.position

    def clear(self) -> None:
        self.tokens, self.media, self.exact = [], {}, 0


class LlamaEngine:
    """A StepEngine on one NativeContext.

    Args:
        model: The model.
        context: The context, with one sequence for each slot.
        context_length: Maximum number of tokens of a sequence.
        token_bytes: Memory of one token in a slot, in bytes; 0 if unknown.
        encoder: Encodes images and sounds; None: prompts can't have any.
        free: Returns the free memory in bytes.
        store: Keeps prefixes of text on disk.
        exact: Whether to store only prefixes that are bitwise equal to a new evaluation.
    """

    def __init__(
        self,
        model: NativeModel,
        context: NativeContext,
        context_length: int,
        *,
        token_bytes: int = 0,
        encoder: Encoder | None = None,
        free: Callable[[], int] | None = None,
        store: PrefixStore | None = None,
        exact: bool = False,
    ) -> None:
        self.slots = context.slots
        self.context_length = context_length
        self.vocabulary: Vocabulary | None = vocabulary(model)
        self._model = model
        self._context = context
        self._encoder = encoder
        self._token_bytes = token_bytes
        self._free = free or available_memory
        self._store = store
        self._exact = exact
        self._slots = [_Slot(index) for index in range(context.slots)]
        self._prefilling: _Slot | None = None
        self._awaiting_media: deque[_Slot] = deque()
        """Slots whose prompts wait for images. These are encoded one after the other, so that each prompt can reuse
        the images of the previous one."""
        self._evaluated = 0
        """Number of prompt tokens evaluated since the last decode of all sequences."""
        self._lost: list[Sampled] = []
        """Failures of sequences whose memory was lost, for the next step to report."""

    def is_end(self, token: int) -> bool:
        return self._model.is_end(token)

    def piece(self, token: int, special: bool) -> bytes:
        return self._model.piece(token, special)

    def memory(self) -> tuple[int, int]:
        resident = process_memory()
        return resident, resident

    # ------------------------------------------------ slots

    def admit(self, sequence: Sequence) -> bool:
        free = [slot for slot in self._slots if slot.sequence is None]
        if not free or self._prefilling is not None or self._can_start_media():
            return False  # prompts are evaluated one after the other, so that each can reuse the previous one
        if not sequence.media:
            self._make_room_for(sequence)
        shared = self._shared(sequence)
        best = max(self._slots, key=lambda slot: (shared[slot.index], slot.sequence is None))
        # Encoding an image again costs more than evaluating the text before it again.
        loses_image = any(start >= shared[best.index] for start in best.media)
        count = shared[best.index]
        # If more of the slot's content would be lost than reused, the slot is kept for its own conversation. The shared
        # prefix is copied to another slot, or it is a small part of the prompt and is evaluated again.
        small = 2 * count < len(best.tokens) and (count >= MIN_COPY or 2 * count < len(sequence.prompt))
        keeps = not loses_image and (bool(sequence.media) or not small)
        slot = best if best.sequence is None and self._fits(best) and keeps else self._place(free)
        slot.sequence = sequence
        slot.pending = None
        sequence.slot = slot
        if sequence.media:
            self._awaiting_media.append(slot)
        else:
            if not self._read(slot, shared):
                self._reuse(slot, self._shared(sequence) if self._store else shared)
            self._begin(slot)
        return True

    def _make_room_for(self, sequence: Sequence) -> None:
        """Allocate memory before the slot is filled, because a copy is complete only after the next decode."""
        answer = ANSWER_ROOM if sequence.max_tokens < 0 else min(sequence.max_tokens, ANSWER_ROOM)
        self._make_room(min(len(sequence.prompt) + answer, self.context_length))

    def _shared(self, sequence: Sequence) -> dict[int, int]:
        """Return the length of the common prefix of the prompt and each slot, by the slot's index."""
        # At least two tokens are evaluated, even if all of the prompt is cached: the last token's logits are
        # needed, and a single token would be rounded differently.
        limit = max(len(sequence.prompt) - 2, 0)
        counts = {slot.index: common_length(slot.tokens, sequence.prompt, limit) for slot in self._slots}
        return {index: _whole(count, sequence) for index, count in counts.items()} if sequence.media else counts

    def _reuse(self, slot: _Slot, shared: Mapping[int, int]) -> None:
        """Fill the slot with the longest prefix of its prompt that any slot has, and nothing else."""
        best = max(self._slots, key=lambda other: (shared[other.index], other is slot))
        count = shared[best.index]
        # A recurrent state belongs to its last token, so it is useless for a shorter prefix.
        whole = count == len(best.tokens) or not self._model.recurrent
        worth = count >= MIN_COPY or any(start < count for start in best.media)
        if slot is not best and worth and whole:
            self._context.copy(best.index, slot.index)
            slot.tokens, slot.media, slot.exact = list(best.tokens), best.media, best.exact
        else:
            count = shared[slot.index]
        if count < len(slot.tokens) and not self._context.keep(slot.index, slot.cut(count)):
            slot.clear()

    def _begin(self, slot: _Slot) -> None:
        """Create the slot's sampler, and have the next steps evaluate the rest of its prompt."""
        sequence = _sequence(slot)
        sampling = sequence.sampling
        if sampling.temperature > 0 or sampling.penalised:
            # 0xFFFFFFFF means a random seed in llama.cpp, so a given seed must not become that.
            seed = secrets.randbits(31) if sampling.seed is None else sampling.seed % 0xFFFFFFFF
            words = [token for token in sequence.prompt if token >= 0] if sequence.media else sequence.prompt
            slot.sampler = NativeSampler(sampling, words, seed, self._model.vocab_size)
        sequence.cached_tokens = len(slot.tokens)
        self._prefilling = slot

    def _can_start_media(self) -> bool:
        """Return whether a prompt waits for images while the encoder is free."""
        return bool(self._awaiting_media) and self._encoder is not None and not self._encoder.busy

    def _start_media(self) -> list[Sampled]:
        """Start encoding the next image of the first waiting prompt; if it has all of them, start its prefill.

        Reusable prefixes are looked up only now: the prompt before it may have left the same image in a slot.
        """
        if self._prefilling is not None or self._encoder is None or not self._can_start_media():
            return []
        slot = self._awaiting_media[0]
        sequence = _sequence(slot)
        try:
            self._make_room_for(sequence)
            self._reuse(slot, self._shared(sequence))
            done = len(slot.tokens)
            for medium in (medium for start, medium in sequence.media.items() if start >= done):
                if medium.error is not None:
                    raise medium.error
                if medium.rows is None:
                    self._encoder.start(medium)
                    return []
        except GenerationError as error:
            return [Sampled(sequence, error=error)]
        self._awaiting_media.popleft()
        sequence.prefill_seconds += sum(medium.seconds for medium in sequence.media.values())
        self._begin(slot)
        return []

    def _fits(self, slot: _Slot) -> bool:
        """Return whether the slots in use would stay adjacent. Otherwise llama.cpp decodes them one after the other."""
        used = [other.index for other in self._slots if other.sequence is not None]
        return not used or any(abs(slot.index - index) == 1 for index in used)

    def _place(self, free: SequenceOf[_Slot]) -> _Slot:
        """Return the least recently used free slot among those adjacent to the slots in use."""
        beside = [slot for slot in free if self._fits(slot)]
        return min(beside or free, key=lambda slot: (bool(slot.tokens), slot.used_at))

    def release(self, sequence: Sequence) -> None:
        slot: _Slot = sequence.slot
        slot.sequence = slot.pending = None
        slot.unsaved = True
        slot.used_at = time.monotonic()
        if slot is self._prefilling:
            self._prefilling = None
            for medium in sequence.media.values():  # the slot may hold a part of an image
                medium.done()
        if slot in self._awaiting_media:
            self._awaiting_media.remove(slot)
        sampler, slot.sampler = slot.sampler, None
        if sampler is not None:
            sampler.close()

    # ------------------------------------------------ the step

    def _make_room(self, length: int) -> None:
        """Ensure that every slot has memory for `length` tokens. Raises GenerationError.

        The size at least doubles, so that the time to move the content stays small for each token, however long a
        text becomes.
        """
        before = self._context.length
        if length <= before:
            return
        begun = time.monotonic()
        wanted = min(max(length, 2 * before), self.context_length)
        length = wanted if self._has_memory(wanted) else length
        try:
            if not self._has_memory(length):
                raise ModelLoadError("load the model with a smaller context_length or fewer parallel_slots")
            lost = self._context.resize(length)
        except ModelLoadError as error:
            raise GenerationError(
                f"there is no memory free for more than {before} tokens in each of {self.slots} slots: {error}"
            ) from error
        _log.debug("memory for %d tokens a slot, after %d, in %.3f s", length, before, time.monotonic() - begun)
        for slot in self._slots:
            if slot.index in lost:
                slot.clear()
                if slot.sequence is not None and slot not in self._awaiting_media:
                    self._lost.append(self._failed(slot, "failed (llama.cpp can't move its memory)"))

    def _has_memory(self, length: int) -> bool:
        """Return whether the memory is free. This is checked first, because llama.cpp aborts if an allocation fails."""
        more = (round_up(length) - self._context.length) * self.slots
        saved = sum(len(slot.tokens) for slot in self._slots)  # the content is copied while the memory is replaced
        return self._token_bytes == 0 or self._token_bytes * (more + saved) <= self._free()

    @property
    def idle(self) -> bool:
        encoding = self._encoder is not None and self._encoder.busy
        return encoding and self._prefilling is None and not self._lost and not self._is_decoding()

    def _is_decoding(self) -> bool:
        return any(slot.pending is not None for slot in self._slots)

    def step(self) -> list[Sampled]:
        if self._lost:
            lost, self._lost = self._lost, []
            return lost
        failed = self._start_media()
        if failed:
            return failed
        decoding = self._is_decoding()
        # At most SHARED_CHUNK prompt tokens are evaluated between two decodes: of one long prompt or of short ones.
        if self._prefilling is not None and (not decoding or self._evaluated < SHARED_CHUNK or self._must_settle()):
            return self._prefill(self._prefilling, alone=not decoding)
        self._evaluated = 0
        return (self._close_gap() or self._decode()) if decoding else []

    def _must_settle(self) -> bool:
        """Return whether a decoding slot needs more memory while a copy is pending.

        Memory can't be moved before the copy is complete, which is so after the next evaluation: that of its prompt.
        """
        full = (slot.pending is not None and len(slot.tokens) >= self._context.length for slot in self._slots)
        return not self._context.settled and any(full)

    def _close_gap(self) -> list[Sampled]:
        """Move the last slot in use into a free slot between those in use, so that they stay adjacent.

        The two slots exchange their memory, because a later prompt may reuse the prefix in the free one.
        """
        used = [slot for slot in self._slots if slot.sequence is not None]
        if used[-1].index - used[0].index < len(used) or not self._context.settled:
            return []
        last = used[-1]
        gap = next(slot for slot in self._slots[used[0].index :] if slot.sequence is None)
        last.index, gap.index = gap.index, last.index
        self._slots.sort(key=lambda slot: slot.index)
        if self._context.swap(last.index, gap.index):
            return []
        gap.clear()
        return [self._failed(last, "failed (llama.cpp can't move its memory)")]

    def _prefill(self, slot: _Slot, alone: bool) -> list[Sampled]:
        """Evaluate a chunk of the slot's prompt. After the last chunk, return the first token."""
        sequence = _sequence(slot)
        begun = time.monotonic()
        done = len(slot.tokens)
        if done in sequence.media:
            slot.media = {**slot.media, done: sequence.media[done]}
        start = max(slot.media, default=-1)
        medium = slot.media.get(start)
        if medium is not None and done >= start + medium.tokens:
            medium = None  # the image is complete, and text follows
        # Text and images are evaluated separately.
        next_start = min((start for start in sequence.media if start > done), default=len(sequence.prompt))
        left = (next_start if medium is None else start + medium.tokens) - done
        room = self._context.batch_size if alone else max(SHARED_CHUNK - self._evaluated, SHORTEST_CHUNK)
        size = min(left, room, self._context.batch_size)
        if left - size == 1 and size > 2:
            size -= 1  # a single token at the end would be rounded differently
        if medium is None:
            first = slot.position
            code = self._context.decode(
                sequence.prompt[done : done + size], range(first, first + size), [slot.index] * size, last=True
            )
        else:
            size = size if medium.causal else medium.tokens
            code = self._evaluate(slot, medium, done - start, size, last=done + size == len(sequence.prompt))
        if not alone:
            self._evaluated += max(size, SHORTEST_CHUNK)
        sequence.prefill_seconds += time.monotonic() - begun
        if code != 0:
            return [self._failed(slot, _why(code))]
        slot.exact += size if slot.exact == done and size > 1 else 0
        slot.tokens.extend(sequence.prompt[done : done + size])
        if len(slot.tokens) < len(sequence.prompt):
            return []
        self._prefilling = None
        return self._sample([slot], [size - 1])

    def _evaluate(self, slot: _Slot, medium: Medium, done: int, size: int, *, last: bool) -> int:
        """Evaluate `size` tokens of the slot's last image, after its first `done`. Return llama.cpp's status code."""
        assert self._encoder is not None
        # `slot.position` subtracts for all tokens of the image, although only `done` of them are in `slot.tokens`.
        first = slot.position - done + medium.tokens - medium.positions
        positions = self._encoder.projector.positions(medium, first)[:, done : done + size]
        rows = medium.rows[done : done + size]
        code = self._context.decode_rows(rows, positions, slot.index, causal=medium.causal, last=last)
        if done + size == medium.tokens:
            medium.done()
        return code

    def _decode(self) -> list[Sampled]:
        """Evaluate the pending tokens of all slots in one call, and sample the next ones."""
        slots = [slot for slot in self._slots if slot.pending is not None]
        # Only a cancelled sequence gets here: others are ended before. With an error it leaves its slot.
        over = [slot for slot in slots if len(slot.tokens) >= self.context_length]
        if over:
            return [Sampled(_sequence(slot), error=GenerationError("the context is full")) for slot in over]
        try:
            self._make_room(max(len(slot.tokens) for slot in slots) + 1)
        except GenerationError as error:
            full = [slot for slot in slots if len(slot.tokens) >= self._context.length]
            return [Sampled(_sequence(slot), error=error) for slot in full]
        if self._lost:
            return []
        tokens = [slot.pending for slot in slots if slot.pending is not None]
        code = self._context.decode(tokens, [slot.position for slot in slots], [slot.index for slot in slots])
        if code != 0:
            return [self._failed(slot, _why(code)) for slot in slots]
        for slot, token in zip(slots, tokens, strict=True):
            slot.tokens.append(token)
        return self._sample(slots, range(len(slots)))

    def _sample(self, slots: SequenceOf[_Slot], rows: SequenceOf[int]) -> list[Sampled]:
        """Choose the next token of each slot.

        Args:
            slots: The slots, in the order of the outputs of the last decode.
            rows: For each slot the batch index of its last token.
        """
        logits = self._context.logits()
        out = []
        for place, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            try:
                sampled = self._choose(slot, _sequence(slot), logits[place], row)
            except BaseException as error:  # a panic of llguidance is not an Exception
                sampled = Sampled(_sequence(slot), error=failure_of(error))
            out.append(sampled)
        return out

    def _choose(self, slot: _Slot, sequence: Sequence, logits: Any, row: int) -> Sampled:
        if sequence.on_logits is not None:
            sequence.on_logits(logits)
        wanted, constraint = sequence.sampling.logprobs, sequence.constraint
        unmasked = logits.copy() if wanted and constraint else logits
        if constraint is not None:
            constraint.mask(logits)
        token = int(logits.argmax()) if slot.sampler is None else slot.sampler.sample(self._context, row)
        if logits[token] != logits[token]:  # NaN: argmax returns its index if there is one
            raise GenerationError(f"{self._model.path} computed NaN: a number in the file is wrong")
        if constraint is not None:
            while not constraint.fits(token):
                constraint.exclude(token, logits)
                token = int(logits.argmax()) if slot.sampler is None else slot.sampler.sample(self._context, row)
            constraint.accept(token)
        slot.pending = token
        logprob, top = log_softmax_top(unmasked, token, wanted) if wanted else (None, ())
        return Sampled(sequence, token, logprob, top)

    def _failed(self, slot: _Slot, what: str) -> Sampled:
        """Empty the slot, whose content is unknown now, and return the error of its sequence."""
        self._context.keep(slot.index, 0)
        slot.clear()
        return Sampled(_sequence(slot), error=GenerationError(f"evaluating {self._model.path} {what}"))

    # ------------------------------------------------ the prefix cache on disk

    def _read(self, slot: _Slot, shared: Mapping[int, int]) -> bool:
        """Load the prefix of the prompt from disk, if it is much longer than the one in memory."""
        store, prompt = self._store, _sequence(slot).prompt
        counts = [(shared[other.index], len(other.tokens)) for other in self._slots]
        known = max((count for count, held in counts if count == held or not self._model.recurrent), default=0)
        # Nothing is loaded while a copy is pending, because the copy could overwrite it.
        found = store.find(prompt[: max(len(prompt) - 2, 0)], known) if store and self._context.settled else None
        if store is None or found is None or found.room > self.context_length:
            return False
        state = store.load(found)
        if state is None or not self._has_room(found):
            return False
        slot.clear()
        if self._context.load(slot.index, state) != found.room:
            self._context.keep(slot.index, 0)
            return False
        slot.tokens, slot.exact = found.tokens[: found.count], found.count
        if found.count < found.room and not self._context.keep(slot.index, found.count):
            slot.clear()
        return bool(slot.tokens)

    def _has_room(self, found: Stored) -> bool:
        """Allocate memory for a state that is cut afterwards. Return False if there is none."""
        try:
            self._make_room(found.room)
        except GenerationError as error:
            _log.info("a prefix is evaluated again: %s", error)
            return False
        return not self._lost

    def tidy(self) -> bool:
        """Write a prefix that is not on disk yet."""
        store = self._store
        # A file is written by another thread, which wakes the worker at its end.
        return store is not None and not store.busy and any(self._write(slot, store) for slot in self._slots)

    def _write(self, slot: _Slot, store: PrefixStore, *, wait: bool = False) -> bool:
        if not slot.unsaved or slot.media or (slot.sequence is not None and not wait) or not self._context.settled:
            return False
        slot.unsaved = False
        tokens = slot.tokens[: slot.exact] if self._exact else slot.tokens
        if store.whole and len(tokens) < len(slot.tokens):
            return False
        if not store.wants(tokens, self._context.size(slot.index)):
            return False
        store.put(list(tokens), self._context.saved(slot.index), room=len(slot.tokens), wait=wait)
        return True

    # ------------------------------------------------ the end

    def interrupt(self) -> None:
        self._context.interrupt()

    def close(self) -> None:
        if self._store is not None:
            self._write_all(self._store)
        for slot in self._slots:
            if slot.sampler is not None:
                slot.sampler.close()
        self._context.close()
        if self._encoder is None:
            self._model.close()
        else:  # an image may still be encoded, which uses the model: so the model is freed after the projector
            self._encoder.projector.close(then=self._model.close)

    def _write_all(self, store: PrefixStore) -> None:
        """Write the prefixes of all slots, also of those in use, and close the store."""
        try:
            store.join()
            for slot in self._slots:
                slot.unsaved = slot.unsaved or slot.sequence is not None
                self._write(slot, store, wait=True)
            store.close()
        except Exception:  # the context and the model must be freed nevertheless
            _log.exception("the prefixes could not be written")


def _whole(count: int, sequence: Sequence) -> int:
    """Return how many of the first `count` tokens of a prompt can be reused. An image is reused whole or not at all."""
    begin = 0
    for start, medium in sequence.media.items():
        if count <= start:
            # At least two tokens are evaluated before an image, because a single token would be rounded differently.
            return count - 1 if begin < count == start - 1 else count
        begin = start + medium.tokens
        if count < begin:
            return start
    return count


def _sequence(slot: _Slot) -> Sequence:
    assert slot.sequence is not None
    return slot.sequence


def _why(code: int) -> str:
    return "was interrupted" if code == _ABORTED else f"failed (llama_decode returned {code})"
