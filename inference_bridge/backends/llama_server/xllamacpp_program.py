# SPDX-License-Identifier: Apache-2.0
"""A program that runs the C++ server of the xllamacpp wheel with llama-server's command line.

It is run by its path, in a separate process. The wheel has no parser for a command line, so this program has one. It
knows the arguments in `SWITCHES`, `FLAGS` and `SHORT`, and ends with an error at any other.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_FLASH = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
_POOLING = {name: name.upper() for name in ("none", "mean", "cls", "last", "rank")}
_REASONING = {"none": "NONE", "auto": "AUTO", "deepseek": "DEEPSEEK", "deepseek-legacy": "DEEPSEEK_LEGACY"}
_SPECULATIONS = {"ngram-simple": "NGRAM_SIMPLE"}
_CACHE_TYPES = {name: name.upper() for name in "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1".split()}


def _member(enum: str, names: dict[str, str], text: str) -> Any:
    import xllamacpp

    if text not in names:
        raise ValueError(f"{text!r} is none of {', '.join(names)}")
    kind = getattr(xllamacpp, enum)
    return next(member for member in kind if member.name.endswith(f"_{names[text]}"))


def _speculations(text: str) -> list[Any]:
    return [_member("common_speculative_type", _SPECULATIONS, name) for name in text.split(",")]


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


SWITCHES: dict[str, tuple[str, Any]] = {
    "--jinja": ("use_jinja", True),
    "--no-jinja": ("use_jinja", False),
    "--context-shift": ("ctx_shift", True),
    "--no-context-shift": ("ctx_shift", False),
    "--kv-unified": ("kv_unified", True),
    "-kvu": ("kv_unified", True),
    "--no-kv-unified": ("kv_unified", False),
    "--no-warmup": ("warmup", False),
    "--no-repack": ("no_extra_bufts", True),
    "--no-kv-offload": ("no_kv_offload", True),
    "--no-op-offload": ("no_op_offload", True),
    "--no-mmproj-offload": ("mmproj_use_gpu", False),
    "--no-cache-prompt": ("cache_prompt", False),
    "--no-cache-idle-slots": ("cache_idle_slots", False),
    "--swa-full": ("swa_full", True),
    "--check-tensors": ("check_tensors", True),
    "--embeddings": ("embedding", True),
    "--embedding": ("embedding", True),
    "--metrics": ("endpoint_metrics", True),
    "--props": ("endpoint_props", True),
    "--slots": ("endpoint_slots", True),
    "--no-slots": ("endpoint_slots", False),
    "--special": ("special", True),
}
"""Flags without a value: the parameter that they set, and its value."""

FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--model": ("model.path", str),
    "--mmproj": ("mmproj.path", str),
    "--model-draft": ("speculative.draft.mparams.path", str),
    "--alias": ("model_alias", lambda text: {text}),
    "--host": ("hostnames", lambda text: [text]),
    "--port": ("port", int),
    "--ctx-size": ("n_ctx", int),
    "--parallel": ("n_parallel", int),
    "--n-gpu-layers": ("n_gpu_layers", int),
    "--main-gpu": ("main_gpu", int),
    "--batch-size": ("n_batch", int),
    "--ubatch-size": ("n_ubatch", int),
    "--threads": ("cpuparams.n_threads", int),
    "--threads-batch": ("cpuparams_batch.n_threads", int),
    "--threads-http": ("n_threads_http", int),
    "--poll": ("cpuparams.poll", int),
    "--timeout": ("timeout_read", int),
    "--cache-ram": ("cache_ram_mib", int),
    "--cache-reuse": ("n_cache_reuse", int),
    "--ctx-checkpoints": ("n_ctx_checkpoints", int),
    "--slot-prompt-similarity": ("slot_prompt_similarity", float),
    "--slot-save-path": ("slot_save_path", str),
    "--image-min-tokens": ("image_min_tokens", int),
    "--image-max-tokens": ("image_max_tokens", int),
    "--rope-freq-base": ("rope_freq_base", float),
    "--rope-freq-scale": ("rope_freq_scale", float),
    "--yarn-orig-ctx": ("yarn_orig_ctx", int),
    "--spec-type": ("speculative.types", _speculations),
    "--spec-ngram-simple-size-n": ("speculative.ngram_simple.size_n", int),
    "--spec-ngram-simple-size-m": ("speculative.ngram_simple.size_m", int),
    "--spec-draft-n-max": ("speculative.draft.n_max", int),
    "--draft-max": ("speculative.draft.n_max", int),
    "--draft-min": ("speculative.draft.n_min", int),
    "--draft-p-min": ("speculative.draft.p_min", float),
    "--gpu-layers-draft": ("speculative.draft.n_gpu_layers", int),
    "--log-verbosity": ("verbosity", int),
    "--chat-template-file": ("chat_template", _read),
    "--api-key-file": ("api_keys", lambda path: _read(path).split()),
    "--flash-attn": ("flash_attn_type", lambda text: _member("llama_flash_attn_type", _FLASH, text)),
    "--cache-type-k": ("cache_type_k", lambda text: _member("ggml_type", _CACHE_TYPES, text)),
    "--cache-type-v": ("cache_type_v", lambda text: _member("ggml_type", _CACHE_TYPES, text)),
    "--pooling": ("pooling_type", lambda text: _member("llama_pooling_type", _POOLING, text)),
    "--reasoning-format": ("reasoning_format", lambda text: _member("common_reasoning_format", _REASONING, text)),
    "--reasoning-budget": ("sampling.reasoning_budget_tokens", int),
}
"""Flags with a value: the parameter that they set, and the function that converts the value."""

SHORT = {
    "-m": "--model",
    "-mm": "--mmproj",
    "-md": "--model-draft",
    "-c": "--ctx-size",
    "-np": "--parallel",
    "-ngl": "--n-gpu-layers",
    "--gpu-layers": "--n-gpu-layers",
    "-mg": "--main-gpu",
    "-b": "--batch-size",
    "-ub": "--ubatch-size",
    "-t": "--threads",
    "-tb": "--threads-batch",
    "-fa": "--flash-attn",
    "-ctk": "--cache-type-k",
    "-ctv": "--cache-type-v",
    "-lv": "--log-verbosity",
    "--verbosity": "--log-verbosity",
    "-cram": "--cache-ram",
    "-sps": "--slot-prompt-similarity",
    "-a": "--alias",
}


def parameters(arguments: list[str]) -> Any:
    """Convert llama-server's arguments to the wheel's `CommonParams`.

    Args:
        arguments: The command line, without the program.

    Raises:
        ValueError: An argument is unknown, or its value is wrong.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    adapters = []
    rest = iter(arguments)
    for flag in rest:
        flag = SHORT.get(flag, flag)
        if flag in SWITCHES:
            _assign(params, *SWITCHES[flag])
        elif flag in ("--lora", "--lora-scaled"):
            path = _value(flag, rest)
            scale = float(_value(flag, rest)) if flag == "--lora-scaled" else 1.0
            adapters.append(xllamacpp.CommonAdapterLoraInfo(path, scale))
        elif flag in FLAGS:
            name, read = FLAGS[flag]
            text = _value(flag, rest)
            try:
                _assign(params, name, read(text))
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{flag} {text}: {error}") from None
        else:
            raise ValueError(
                f"the server of the xllamacpp wheel does not know {flag}: leave it out, or install a llama-server "
                "and name it in LLAMA_SERVER_PATH"
            )
    params.lora_adapters = adapters
    if params.speculative.draft.mparams.path:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    if params.cpuparams_batch.n_threads < 1:
        params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    draft = params.speculative.draft
    draft.cpuparams.n_threads = params.cpuparams.n_threads
    draft.cpuparams_batch.n_threads = params.cpuparams_batch.n_threads
    return params


def _value(flag: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise ValueError(f"{flag} needs a value")
    return value


def _assign(params: Any, name: str, value: Any) -> None:
    *owners, field = name.split(".")
    for owner in owners:
        params = getattr(params, owner)
    setattr(params, field, value)


def main() -> None:
    parent = os.getppid()
    try:
        import xllamacpp

        server = xllamacpp.Server(parameters(sys.argv[1:]))  # listens and loads before it returns
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    # The default action of the signal ends the process at once. The C++ handler would only end its loop.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while server and os.getppid() == parent:
        time.sleep(1)
    os._exit(0)  # does not wait for running requests


if __name__ == "__main__":
    main()
