# SPDX-License-Identifier: Apache-2.0
"""Safe access to llama.cpp's C interface: a context, a batch, a sampler.

Several of llama.cpp's checks abort the process (a batch larger than n_batch, logits that were not requested), so every
argument is checked here first. docs/engine.md has the measurements behind this module.
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
from .abort_flag import AbortFlag
from .library import attempt, can_offload, complaints, last_of, lib, set_fields
from .threads import Threads
from .weights import NativeModel

PENALTY_WINDOW = 64
"""Number of recent tokens that the penalties apply to: the default of llama.cpp."""


_KV_TYPES = {"q8_0": 8, "q4_0": 2}
"""ggml's GGML_TYPE_Q8_0 and GGML_TYPE_Q4_0."""


_NOT_IN_STATE = frozenset({"n_ctx", "n_outputs_max", "n_threads", "n_threads_batch"})
"""Parameters of a context that may differ when a state is loaded. The number of sequences is part of a state."""


def _at(function: Any) -> int:
    """Return the address of a function of the library."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


# Returns the bare address; llama_cpp would create an object for the pointer on every call.
_get_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_at(lib.llama_get_logits))

# These take microseconds, so they keep the interpreter's lock: getting it back could mean waiting for other threads.
_seq_rm = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)(
    _at(lib.llama_memory_seq_rm)
)
_seq_pos_min = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)(_at(lib.llama_memory_seq_pos_min))


class NativeContext:
    """Memory (KV cache) for `slots` sequences of up to `length` tokens each, and evaluation of the model on it.

    Not thread-safe. Each sequence has separate memory (`kv_unified` is off), so that its results do not depend on the
    others. llama.cpp fills the memory with zeros when it allocates it, so all of it is in use at once. Therefore only
    what is needed is allocated, and `resize` allocates more.
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
        # With flash attention a chunk of a prompt is computed differently than the whole prompt. On a GPU, where
        # no result is bitwise reproducible, llama.cpp decides.
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
        self._abort = AbortFlag()
        self._abort.install(params)
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
        """Maximum number of embeddings that attend to each other: llama.cpp aborts if it has to split them."""
        self._batch = lib.llama_batch_init(self.batch_size, 0, 1)

    def _make(self, length: int) -> None:
        """Create llama.cpp's context, empty. Raises ModelLoadError."""
        self._params.n_ctx = self.slots * length
        pointer, reasons = attempt(lambda: lib.llama_init_from_model(self._model.pointer, self._params))
        if not pointer:
            raise ModelLoadError(
                f"llama.cpp can't make a context of {self.slots} slots of {length} tokens for {self._model.path}: "
                f"{last_of(reasons)}. Try a smaller context_length or parallel_slots"
            )
        if self._adapters:
            adapters = (lib.llama_adapter_lora_p_ctypes * len(self._adapters))(*self._adapters)
            scales = (ctypes.c_float * len(self._adapters))(*[1.0] * len(self._adapters))  # each with scale 1
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
        """Allocate memory for `length` tokens in each slot.

        The content is saved first, so that the old and the new memory never exist at the same time.

        Returns:
            The slots whose content is lost: those with a pending copy. The content of the others is unchanged.

        Raises:
            ModelLoadError: llama.cpp can't allocate the memory. The size is unchanged then.
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
        """Load saved memory, by slot. Return the slots that have none, or whose memory llama.cpp did not load."""
        return [slot for slot in range(self.slots) if slot not in saved or not self._load(slot, saved[slot])]

    @property
    def settled(self) -> bool:
        """Whether no copy is pending: llama.cpp copies at the next decode."""
        return not self._copied

    def settings(self) -> dict[str, Any]:
        """Return what a saved state depends on besides the model: llama.cpp's build, the processor, the parameters."""
        numbers = [
            name
            for name, kind in self._params._fields_
            if issubclass(kind, ctypes._SimpleCData) and kind is not ctypes.c_void_p and name not in _NOT_IN_STATE
        ]
        return {
            "build": lib.llama_version().decode() if hasattr(lib, "llama_version") else "",
            "state": [lib.LLAMA_STATE_SEQ_MAGIC, lib.LLAMA_STATE_SEQ_VERSION],
            "system": lib.llama_print_system_info().decode(),
            "parameters": {name: getattr(self._params, name) for name in numbers},
        }

    def interrupt(self) -> None:
        """Make the current decode and all later ones fail at once. Thread-safe. CPU only."""
        self._abort.raise_()

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], last: bool = False) -> int:
        """Evaluate tokens. Return llama.cpp's status code, 0 for success.

        Args:
            tokens: Token ids.
            positions: The position of each token in its slot.
            slots: The slot of each token.
            last: Whether to compute logits for the last token only. Otherwise they are computed for every token.
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
        """Evaluate embeddings in a slot. Return llama.cpp's status code, 0 for success.

        Args:
            rows: float32 [count, width].
            positions: int32 [1 or 4, count].
            slot: The slot.
            causal: Whether each embedding attends only to those before it. Otherwise all attend to each other.
            last: Whether to compute logits for the last one.
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
        """Return the logits of the last decode, float32 [outputs, vocab_size]: a view, valid until the next decode."""
        address = _get_logits(self.pointer)
        if not self._outputs or address is None:
            raise RuntimeError("there are no logits: nothing was decoded")
        if address != self._address:
            buffer = (ctypes.c_float * (self.slots * self._model.vocab_size)).from_address(address)
            self._rows = np.frombuffer(memoryview(buffer), np.float32).reshape(self.slots, -1)
            self._address = address
        return self._rows[: self._outputs]

    def keep(self, slot: int, count: int) -> bool:
        """Remove everything from position `count` on. Return False if that is impossible; the slot is empty then.

        llama.cpp refuses to cut a recurrent state. It does not refuse to cut before the start of a sliding window,
        although the tokens that the next one attends to are gone then.
        """
        if count > 0 and _seq_rm(self._memory, slot, count, -1):
            first = _seq_pos_min(self._memory, slot)
            window = self._model.window
            if 0 <= first <= (max(count - window, 0) if window else 0):
                return True
        _seq_rm(self._memory, slot, -1, -1)
        return count == 0

    def copy(self, source: int, target: int) -> None:
        """Replace the memory of `target` by a copy of that of `source`."""
        _seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._copied.add(target)

    def swap(self, one: int, other: int) -> bool:
        """Exchange the memory of two slots. Requires `settled`. Return False on failure; both are empty then."""
        saved = ((other, self.saved(one)), (one, self.saved(other)))
        if all(self._load(slot, data) for slot, data in saved):
            return True
        self.keep(one, 0)
        self.keep(other, 0)
        return False

    def _load(self, slot: int, data: Any) -> bool:
        """Restore a slot from saved memory. Return False on failure; the slot is empty then."""
        _seq_rm(self._memory, slot, -1, -1)
        # an empty slot has a state too
        if lib.llama_state_seq_set_data(self.pointer, _pointer(data), len(data), slot) == len(data):
            return True
        _seq_rm(self._memory, slot, -1, -1)
        return False

    def load(self, slot: int, state: bytearray) -> int:
        """Restore a slot from the result of `saved`, possibly of another process. Return its number of tokens, or 0.

        0 means that it failed. llama.cpp hardly checks the data, so the caller must be sure of its origin.
        """
        if not self._load(slot, np.frombuffer(state, np.uint8)):
            return 0
        return int(lib.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def size(self, slot: int) -> int:
        """Return the number of bytes that `saved` would return."""
        return int(lib.llama_state_seq_get_size(self.pointer, slot))

    def saved(self, slot: int) -> Any:
        """Return a slot's memory as bytes."""
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
    """Set the number of threads of the next decode. None: the number that the context was created with."""
    if threads is not None:
        count = threads.now()
        lib.llama_set_n_threads(pointer, count, count)


def _load_adapters(model: NativeModel, paths: Sequence[str]) -> list[Any]:
    """Load LoRA adapters, which are freed with the model. Raises ModelLoadError."""
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

        # Stages that are off are left out: top_p(0) would be greedy, and a repeat penalty of 0 makes no sense.
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
