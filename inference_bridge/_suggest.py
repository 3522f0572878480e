# SPDX-License-Identifier: Apache-2.0
"""Suggestions in messages about unknown names: "did you mean …?"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ELSEWHERE = {
    "n_ctx": "context_length",
    "num_ctx": "context_length",
    "ctx_size": "context_length",
    "max_model_len": "context_length",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_length": "max_tokens",
    "n_gpu_layers": "gpu_layers",
    "num_gpu": "gpu_layers",
    "ngl": "gpu_layers",
    "n_threads": "threads",
    "num_thread": "threads",
    "n_batch": "batch_size",
    "repetition_penalty": "repeat_penalty",
    "stop_sequences": "stop",
    "stop_token_ids": "stop_tokens",
    "reasoning_effort": "reasoning",
    "enable_thinking": "reasoning",
    "chat_template_kwargs": "template_options",
    "response_format": "json_schema",
}
"""Names of options in other programs, each with the name of that option here."""

_SIMILARITY = 0.7
"""How similar a name must be to count as a misspelling, from 0 (nothing in common) to 1 (the same name)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name.

    Args:
        name: The unknown name.
        known: The known names.

    Returns:
        ": did you mean 'x'?", where x is a known name that is similar to `name`, or the option that other programs call
        `name`. "" if there is none.
    """
    import difflib

    folded = {one.lower(): one for one in known}
    other = _ELSEWHERE.get(name.lower())
    if other in folded:
        return suggest([folded[other]])
    near = difflib.get_close_matches(name.lower(), folded, 1, _SIMILARITY)
    if not near:  # `name` may be a word of a longer name, such as context in context_length
        near = sorted((one for one in folded if name.lower() in one.split("_") and len(name) > 3), key=len)[:1]
    return suggest(folded[match] for match in near)


def backends_alike(name: str, known: Sequence[str]) -> list[str]:
    """Return the backends that `name` may mean: those that begin with it, else the most similar one.

    A misspelling keeps the first letter. Names of other programs, such as vllm, only end like a backend's.
    """
    import difflib

    name = name.lower()
    longer = [backend for backend in known if len(name) > 3 and backend.startswith(name)]
    if longer:
        return longer
    alike = [f"{backend}:" for backend in known if backend[:1] == name[:1]]
    # With the colon, a name of three letters may have two of them swapped.
    return [backend.removesuffix(":") for backend in difflib.get_close_matches(f"{name}:", alike, 1, _SIMILARITY)]


def suggest(near: Iterable[str]) -> str:
    """Return ": did you mean 'a' or 'b'?" for the names in `near`, or "" if there are none."""
    choice = " or ".join(repr(name) for name in near)
    return f": did you mean {choice}?" if choice else ""
