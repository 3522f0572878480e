# SPDX-License-Identifier: Apache-2.0
"""The program of the trial load: it loads a model file with llama.cpp, whose assertions may end the process.

It is run by its path. It reads one JSON object from stdin, which says what to load, and writes one to stdout:
`{"problem": null}` or `{"problem": "why it can't be loaded"}`. If it ends in another way, the file is damaged, or a
limit of memory or time was reached. The process ends when its stdin is closed, and so when its parent ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from importlib import import_module
from typing import Any

LENGTH = 256
"""Tokens of context for each of two sequences: llama.cpp's minimum."""
BATCH = 64

_TEXT = "".join(map(chr, range(1, 256))) + " Hello, a world\n\n\u00e9\u4e16\u754c\U0001f600 <s> [UNK] 0123456789 don't"
"""Characters with every byte that occurs in UTF-8 of one and two bytes, and parts that tokenizers treat specially."""


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library may print to stdout, which must not become part of the answer
    request = json.loads(sys.stdin.readline())
    sys.path[:] = request["sys_path"]
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    problem = examine(request)
    answer.write(json.dumps({"problem": problem}))
    answer.flush()
    os._exit(0)  # freeing a model takes time and would find no more problems


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _limit(memory: int, seconds: int) -> None:
    """Limit the memory that this process may allocate in addition, in bytes, and its CPU time in seconds."""
    try:
        import resource
    except ModuleNotFoundError:  # pragma: no cover - Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit does not count mapped memory
        with open("/proc/self/status", encoding="ascii") as lines:
            used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))


def examine(request: dict[str, Any]) -> str | None:
    """Load the files that the request names.

    They are loaded twice: as without load options, and as with deterministic=True, for which llama.cpp runs other code.

    Args:
        request: A mapping with the keys
            `path`: the path of the model;
            `full`: whether to read the weights and evaluate a few tokens, instead of simulating the load;
            `embeds`: whether it is an embedding model or a reranker;
            `adapters`, `projector`: further paths;
            `encode`: whether the projector encodes an image or a sound;
            `memory`, `seconds`: the limits of memory in bytes and of CPU time.

    Returns:
        Why they can't be loaded, in one line. None: they can be.
    """
    from inference_bridge.backends.llama_cpp.library import start

    start()
    # Only now: the memory of the library itself is not counted. A library for GPUs takes much.
    _limit(request["memory"], request["seconds"])
    return _load(request, deterministic=False) or _load(request, deterministic=True)


def _load(request: dict[str, Any], *, deterministic: bool) -> str | None:
    """Load the files in one of the two ways, and free them. Return why they can't be loaded, or None."""
    from inference_bridge.backends.llama_cpp.library import attempt, last_of, lib

    full: bool = request["full"]
    params = lib.llama_model_default_params()
    no_device: Any = (ctypes.c_void_p * 1)(None)
    params.devices = ctypes.cast(no_device, ctypes.c_void_p)
    params.n_gpu_layers = 0
    params.use_extra_bufts = not deterministic
    if not full:
        if not hasattr(params, "no_alloc") or not hasattr(params, "load_mode"):
            params.vocab_only = True
        else:
            params.no_alloc = True
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
    path = os.fsencode(request["path"])
    model, reasons = attempt(lambda: lib.llama_model_load_from_file(path, params))
    if not model:
        return last_of(reasons)
    tokens = _tokens(lib, model)
    if params.vocab_only:
        return None
    context, reasons = attempt(
        lambda: lib.llama_init_from_model(model, _context_params(lib, request["embeds"], deterministic))
    )
    if not context:
        return last_of(reasons)
    adapters = []
    for name in request["adapters"]:
        adapter, reasons = attempt(lambda name=name: lib.llama_adapter_lora_init(model, os.fsencode(name)))  # type: ignore[misc]
        if not adapter:
            return last_of(reasons)
        adapters.append(adapter)
    if adapters:
        pointers = (lib.llama_adapter_lora_p_ctypes * len(adapters))(*adapters)
        scales = (ctypes.c_float * len(adapters))(*[1.0] * len(adapters))
        if lib.llama_set_adapters_lora(context, pointers, len(adapters), scales) != 0:
            return "the adapters can't be applied"
    if full:
        # In two sequences, a prompt and a single token: the graphs that generation runs.
        _decode(lib, context, [(token, place, 0) for place, token in enumerate(tokens[:8])], every=request["embeds"])
        if not request["embeds"]:
            _decode(lib, context, [(tokens[0], min(len(tokens), 8), 0), (tokens[0], 0, 1)], every=True)
    if request["projector"] and deterministic:  # once is enough: the option does not change a projector's code
        return _examine_projector(request["projector"], model, request["encode"])
    lib.llama_free(context)
    lib.llama_model_free(model)
    return None


def _tokens(lib: Any, model: Any) -> list[int]:
    """Return the tokens of a text with every kind of character. If it has none, return token 0."""
    vocab = lib.llama_model_get_vocab(model)
    data = _TEXT.encode()
    room = 4 * len(data)
    ids = (lib.llama_token * room)()
    buffer = ctypes.create_string_buffer(1 << 12)
    tokens: list[int] = []
    for special in (True, False):
        count = lib.llama_tokenize(vocab, data, len(data), ids, room, special, special)
        tokens += ids[: max(count, 0)]
    size = int(lib.llama_vocab_n_tokens(vocab))
    ends = [int(lib.llama_vocab_bos(vocab)), int(lib.llama_vocab_eos(vocab)), size - 1, 0]
    for token in {*tokens, *ends}:
        if 0 <= token < size:
            lib.llama_vocab_is_eog(vocab, token)
            for special in (True, False):
                lib.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    return [token for token in tokens if 0 <= token < size] or [0]


def _context_params(lib: Any, embeds: bool, deterministic: bool) -> Any:
    """Return the parameters of a context like that of the parent, but for fewer tokens and sequences."""
    params = lib.llama_context_default_params()
    params.n_ctx = 2 * LENGTH
    params.n_batch = params.n_ubatch = BATCH
    params.n_seq_max = 2
    params.n_outputs_max = 0 if embeds else 2  # 0: no limit, because pooling needs an output for every token
    params.n_threads = params.n_threads_batch = 1
    params.kv_unified = embeds
    params.embeddings = embeds
    params.swa_full = True
    params.offload_kqv = params.op_offload = False
    if deterministic:
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def _decode(lib: Any, context: Any, tokens: list[tuple[int, int, int]], *, every: bool) -> None:
    """Evaluate tokens.

    Args:
        lib: llama.cpp's C interface.
        context: The context.
        tokens: (token id, position, sequence) of each token.
        every: Whether to compute outputs for every token. Otherwise they are computed for the last one only.
    """
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    for place, (token, position, sequence) in enumerate(tokens):
        batch.token[place], batch.pos[place] = token, position
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
        batch.logits[place] = every or place == len(tokens) - 1
    batch.n_tokens = len(tokens)
    lib.llama_decode(context, batch)
    lib.llama_batch_free(batch)


def _examine_projector(path: str, model: Any, encode: bool) -> str | None:
    from inference_bridge.backends.llama_cpp.library import complaints, last_of, lib, log_to_logging

    mtmd = import_module("llama_cpp.mtmd_cpp")
    log_to_logging(mtmd.mtmd_helper_log_set)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = params.print_timings = params.warmup = False
    params.n_threads = 1
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with complaints() as reasons:
        context = mtmd.mtmd_init_from_file(os.fsencode(path), model, params)
    if not context:
        return last_of(reasons)
    for supports, audio in ((mtmd.mtmd_support_vision, False), (mtmd.mtmd_support_audio, True)):
        if supports(context):
            _encode(mtmd, context, audio, encode)
    return None


def _encode(mtmd: Any, context: Any, audio: bool, encode: bool) -> None:
    """Split a small image or a second of silence into chunks, and encode these if `encode` is true."""
    if audio:
        samples = (ctypes.c_float * 16000)()
        bitmap = mtmd.mtmd_bitmap_init_from_audio(len(samples), samples)
    else:
        pixels = (ctypes.c_uint8 * (3 * 40 * 24))(*[128] * (3 * 40 * 24))
        bitmap = mtmd.mtmd_bitmap_init(40, 24, pixels)
    marker = mtmd.mtmd_default_marker()
    text = b"a " + marker + b" b"
    given = mtmd.mtmd_input_text(text, len(text), True, True)
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    if mtmd.mtmd_tokenize(context, chunks, ctypes.byref(given), bitmaps, 1) != 0 or not encode:
        return
    for place in range(int(mtmd.mtmd_input_chunks_size(chunks))):
        chunk = mtmd.mtmd_input_chunks_get(chunks, place)
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            mtmd.mtmd_encode_chunk(context, chunk)


if __name__ == "__main__":
    main()
