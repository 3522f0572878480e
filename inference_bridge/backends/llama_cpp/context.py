# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C interface, made safe to call: a context, a batch, a sampler.

Several of its checks end the process (a batch over n_batch, logits where none were asked
for), so nothing here passes on what it has not checked. Measured facts that shaped this
are in docs/engine.md.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...catalog.gguf_checks import round_up
from ...engine.scheduler import Sampling
from ...errors import ModelLoadError, UnsupportedError
from .flag import IS_FREE, Flag
from .library import attempt, can_offload, complaints, last_of, lib, set_fields
from .threads import Threads
from .weights import NativeModel

PENALTY_WINDOW = 64
"""Tokens that the penalties look back on: llama.cpp's own default."""


_KV_TYPES = {"q8_0": 8, "q4_0": 2}
"""ggml's GGML_TYPE_Q8_0 and GGML_TYPE_Q4_0."""


_OF_NO_STATE = frozenset({"n_ctx", "n_outputs_max", "n_threads", "n_threads_batch"})
"""Parameters of a context that may differ where a state is read. The number of sequences is part of a state."""


def _at(function: Any) -> int:
    """Where a function of the library begins."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


# Its address alone, without the object that llama_cpp makes of a pointer each time.
_get_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_at(lib.llama_get_logits))

# These take microseconds, so they need not give the interpreter's lock away: to take it back
# would be to wait for a consumer's turn.
_seq_rm = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)(
    _at(lib.llama_memory_seq_rm)
)
_seq_pos_min = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)(_at(lib.llama_memory_seq_pos_min))


class NativeContext:
    """Memory for `slots` sequences of up to `length` tokens each, and the way to run the model on it.

    Used by one thread. Each sequence has memory of its own (`kv_unified` is off), so that
    what one computes does not depend on the others. llama.cpp fills all of it with zeros, and
    so takes it from the system, as soon as it is made: `resize` makes more once it is needed.
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        slots: int,
        length: int,
        threads: Threads | None,
        batch_size: int,
        deterministic: bool,
        kv_cache_type: str = "f16",
        adapters: Sequence[str] = (),
        extra: Mapping[str, Any],
        taken: set[str],
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_batch = params.n_ubatch = batch_size
        params.n_seq_max = slots
        params.n_outputs_max = slots
        params.kv_unified = False
        params.swa_full = True
        params.no_perf = True
        # Flash attention computes a chunk of a prompt differently than the prompt in one piece. On a GPU, where
        # nothing is exact to the last bit, llama.cpp decides either way.
        exact = deterministic and not can_offload()
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        if kv_cache_type != "f16":
            if exact:
                why = (
                    "llama.cpp needs flash attention for it, which deterministic=True turns off: leave one of them out"
                )
                raise UnsupportedError(f"kv_cache_type={kv_cache_type!r}", "llama_cpp", why)
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.type_k = params.type_v = _KV_TYPES[kv_cache_type]
        set_fields(params, extra, taken)
        self._threads = threads
        for name in ("n_seq_max", "n_ctx", "n_outputs_max", "kv_unified", "embeddings"):
            if name in extra:
                raise TypeError(f"extra[{name!r}] can't be set: it follows from the other load options")
        self._abort = Flag(False)
        if IS_FREE:  # the engine's threads ask many times a step
            self._abort.answers(params, "abort_callback", "abort_callback_data")
        self.slots = slots
        self._model = model
        self._params = params
        self._adapters = _load_adapters(model, adapters)
        self._copied: set[int] = set()
        self._rows: Any = None
        self.pointer: Any = None
        self._make(round_up(length))
        self.batch_size = int(lib.llama_n_batch(self.pointer))
        self.most_at_once = min(self.batch_size, int(lib.llama_n_ubatch(self.pointer)))
        """Embeddings that may all see each other: llama.cpp ends the process where it would have to part them."""
        self._batch = lib.llama_batch_init(self.batch_size, 0, 1)

    def _make(self, length: int) -> None:
        """Make llama.cpp's context, empty. Raises ModelLoadError."""
        self._params.n_ctx = self.slots * length
        pointer, reasons = attempt(lambda: lib.llama_init_from_model(self._model.pointer, self._params))
        if not pointer:
            raise ModelLoadError(
                f"llama.cpp can't make a context of {self.slots} slots of {length} tokens for {self._model.path}: "
                f"{last_of(reasons)}. Try a smaller context_length or parallel_slots"
            )
        if self._adapters:
            adapters = (lib.llama_adapter_lora_p_ctypes * len(self._adapters))(*self._adapters)
            scales = (ctypes.c_float * len(self._adapters))(*[1.0] * len(self._adapters))  # each at its full strength
            if lib.llama_set_adapters_lora(pointer, adapters, len(self._adapters), scales) != 0:
                lib.llama_free(pointer)
                raise ModelLoadError(f"llama.cpp can't apply the adapters to {self._model.path}")
        self.pointer = pointer
        self.length = length
        self._memory = lib.llama_get_memory(pointer)
        self._copied.clear()
        self._outputs = 0
        self._address = 0

    def resize(self, length: int) -> list[int]:
        """Make memory for `length` tokens a slot. Gives the slots that lost what they held.

        Those are the ones to which a copy was not made yet. What the others hold is the same, to the last
        bit. It is kept aside meanwhile, so that the old memory and the new are never there together.
        Raises ModelLoadError where llama.cpp can't make it; the memory is then as it was.
        """
        saved = {slot: self.saved(slot) for slot in range(self.slots) if self.pointer and slot not in self._copied}
        before = self.length
        self._free()
        try:
            self._make(round_up(length))
        except ModelLoadError:
            self._make(before)
            self._restore(saved)
            raise
        return self._restore(saved)

    def _restore(self, saved: Mapping[int, Any]) -> list[int]:
        return [slot for slot in range(self.slots) if slot not in saved or not self._load(slot, saved[slot])]

    @property
    def settled(self) -> bool:
        """Whether every copy is made: llama.cpp only notes them, until the next decode."""
        return not self._copied

    def settings(self) -> dict[str, Any]:
        """What a token's state depends on, beside the model: llama.cpp's build, the processor and the parameters."""
        numbers = [
            name
            for name, kind in self._params._fields_
            if issubclass(kind, ctypes._SimpleCData) and kind is not ctypes.c_void_p and name not in _OF_NO_STATE
        ]
        return {
            "build": lib.llama_version().decode() if hasattr(lib, "llama_version") else "",
            "state": [lib.LLAMA_STATE_SEQ_MAGIC, lib.LLAMA_STATE_SEQ_VERSION],
            "system": lib.llama_print_system_info().decode(),
            "parameters": {name: getattr(self._params, name) for name in numbers},
        }

    def interrupt(self) -> None:
        """Make the decode under way, and every later one, fail at once. From any thread. CPU only."""
        self._abort.set(True)

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], last: bool = False) -> int:
        """Evaluate tokens, each at its position of its slot; returns llama.cpp's code, 0 for success.

        `last`: give logits for the last token alone, else for every one.
        """
        count = len(tokens)
        if not 0 < count <= self.batch_size:
            raise ValueError(f"a batch takes 1 to {self.batch_size} tokens, not {count}")
        self._check_memory(max(positions))
        batch = self._batch
        for i in range(count):
            batch.token[i] = tokens[i]
            batch.pos[i] = positions[i]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = slots[i]
            batch.logits[i] = not last or i == count - 1
        batch.n_tokens = count
        return self._evaluate(batch, 1 if last else count)

    def decode_rows(self, rows: Any, positions: Any, slot: int, *, causal: bool, last: bool) -> int:
        """Evaluate embeddings, float32 [count, width], in a slot; as `decode`.

        `positions` is int32 [1 or 4, count]. `causal`: each sees only those before it; otherwise all of them see
        each other. `last`: give logits for the last.
        """
        count = len(rows)
        most = self.batch_size if causal else self.most_at_once
        if not 0 < count <= most:
            raise ValueError(f"a batch takes 1 to {most} embeddings, not {count}")
        self._check_memory(int(positions.max()))
        wanted = np.zeros(count, np.int8)
        wanted[-1] = last
        one: Any = (ctypes.c_int32 * 1)(slot)
        arrays = [np.ascontiguousarray(rows), np.ascontiguousarray(positions), np.ones(count, np.int32), wanted]
        kinds: tuple[Any, ...] = (ctypes.c_float, ctypes.c_int32, ctypes.c_int32, ctypes.c_int8)
        embd, pos, counts, logits = (
            array.ctypes.data_as(ctypes.POINTER(kind)) for array, kind in zip(arrays, kinds, strict=True)
        )
        slots = (ctypes.POINTER(ctypes.c_int32) * count)(*[one] * count)
        lib.llama_set_causal_attn(self.pointer, causal)
        try:
            return self._evaluate(lib.llama_batch(count, None, embd, pos, counts, slots, logits), int(last))
        finally:
            lib.llama_set_causal_attn(self.pointer, True)

    def _check_memory(self, position: int) -> None:
        if position >= self.length or not self.pointer:
            raise ValueError(f"a slot has memory for {self.length if self.pointer else 0} tokens")

    def _evaluate(self, batch: Any, outputs: int) -> int:
        self._outputs = 0
        set_threads(self.pointer, self._threads)
        code = int(lib.llama_decode(self.pointer, batch))
        if code == 0:
            self._copied.clear()
            self._outputs = outputs
        return code

    def logits(self) -> Any:
        """The logits of the last decode, float32 [outputs, vocab_size]: a view, gone with the next decode."""
        address = _get_logits(self.pointer)
        if not self._outputs or address is None:
            raise RuntimeError("there are no logits: nothing was decoded")
        if address != self._address:
            buffer = (ctypes.c_float * (self.slots * self._model.vocab_size)).from_address(address)
            self._rows = np.frombuffer(memoryview(buffer), np.float32).reshape(self.slots, -1)
            self._address = address
        return self._rows[: self._outputs]

    def keep(self, slot: int, count: int) -> bool:
        """Keep what is before position `count` in a slot. False: its memory can't be cut there, and is now empty.

        Cutting a recurrent state is refused by llama.cpp; cutting back past a sliding window
        is not, though what the window has dropped is gone: the next token needs the `window`
        before it.
        """
        if count > 0 and _seq_rm(self._memory, slot, count, -1):
            first = _seq_pos_min(self._memory, slot)
            window = self._model.window
            if 0 <= first <= (max(count - window, 0) if window else 0):
                return True
        _seq_rm(self._memory, slot, -1, -1)
        return count == 0

    def copy(self, source: int, target: int) -> None:
        """Make one slot's memory that of another."""
        _seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._copied.add(target)

    def swap(self, one: int, other: int) -> bool:
        """Exchange the memory of two slots, while `settled`. False: it failed, and both are empty."""
        saved = ((other, self.saved(one)), (one, self.saved(other)))
        if all(self._load(slot, data) for slot, data in saved):
            return True
        self.keep(one, 0)
        self.keep(other, 0)
        return False

    def _load(self, slot: int, data: Any) -> bool:
        """Make a slot's memory what was saved of one. False: it failed, and is empty."""
        _seq_rm(self._memory, slot, -1, -1)
        # 0 tokens have a state too, which says so
        if lib.llama_state_seq_set_data(self.pointer, _pointer(data), len(data), slot) == len(data):
            return True
        _seq_rm(self._memory, slot, -1, -1)
        return False

    def load(self, slot: int, state: bytearray) -> int:
        """Make a slot's memory what `saved` gave, perhaps in another process. Gives its tokens; 0: it failed.

        llama.cpp checks little of what it reads: a caller must know where the state is from.
        """
        if not self._load(slot, np.frombuffer(state, np.uint8)):
            return 0
        return int(lib.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def size(self, slot: int) -> int:
        """Bytes that `saved` would give."""
        return int(lib.llama_state_seq_get_size(self.pointer, slot))

    def saved(self, slot: int) -> Any:
        """A slot's memory as bytes."""
        data = np.empty(self.size(slot), np.uint8)
        lib.llama_state_seq_get_data(self.pointer, _pointer(data), len(data), slot)
        return data

    def _free(self) -> None:
        if self.pointer:
            lib.llama_free(self.pointer)
        self.pointer = self._memory = None

    def close(self) -> None:
        if self._batch is not None:
            lib.llama_batch_free(self._batch)
            self._batch = None
        self._free()


def set_threads(pointer: Any, threads: Threads | None) -> None:
    """Set how many threads a context's next decode runs on. None: as many as it was made with."""
    if threads is not None:
        count = threads.now()
        lib.llama_set_n_threads(pointer, count, count)


def _load_adapters(model: NativeModel, paths: Sequence[str]) -> list[Any]:
    """LoRA adapters, which are freed with the model. Raises ModelLoadError."""
    adapters = []
    for path in paths:
        with complaints() as reasons:
            adapter = lib.llama_adapter_lora_init(model.pointer, os.fsencode(path))
        if not adapter:
            raise ModelLoadError(f"llama.cpp can't load the adapter {path} for {model.path}: {last_of(reasons)}")
        adapters.append(adapter)
    return adapters


def _pointer(data: Any) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class NativeSampler:
    """llama.cpp's chain of sampling stages, for one sequence."""

    def __init__(self, sampling: Sampling, recent: Sequence[int], seed: int, vocab_size: int) -> None:
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._chain = chain

        def add(stage: Any) -> None:
            lib.llama_sampler_chain_add(chain, stage)

        # Stages that are off stay out: top_p(0) would be greedy, a repeat penalty of 0 nonsense.
        if sampling.penalised:
            repeat, frequency, presence = (
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
            add(lib.llama_sampler_init_penalties(vocab_size, PENALTY_WINDOW, repeat, frequency, presence))
        if sampling.temperature > 0:
            if sampling.top_k:
                add(lib.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
            add(lib.llama_sampler_init_temp(sampling.temperature))
            add(lib.llama_sampler_init_dist(seed))
        else:
            add(lib.llama_sampler_init_greedy())
        if sampling.penalised:
            for token in recent[-PENALTY_WINDOW:]:
                lib.llama_sampler_accept(chain, token)

    def sample(self, context: NativeContext, row: int) -> int:
        """Choose from the logits of the last decode's output at batch index `row`."""
        return int(lib.llama_sampler_sample(self._chain, context.pointer, row))

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None
