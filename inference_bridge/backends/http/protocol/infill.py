# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle prompts for a llama-server, made of token ids as in process.

The server's /infill is not used. It cuts off a prefix or suffix that is longer than its batch, without an error, and
for some models it adds invented file names before the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ....engine.infill import FILL_NAMES
from ....errors import ServerError
from ..facts import FillTokens


def find(ask: Callable[[Mapping[str, Any]], Any]) -> FillTokens | None:
    """Find the model's tokens for fill in the middle.

    Args:
        ask: Posts a body to /tokenize and returns the answer.

    Returns:
        The tokens; None if the model has none, or the server does not return them.
    """
    every = " ".join(name for names in FILL_NAMES for name in names)
    try:
        told = ask({"content": every, "add_special": False, "parse_special": True, "with_pieces": True})["tokens"]
        ids = {one["piece"]: one["id"] for one in told if isinstance(one["piece"], str)}
        names = next((names for names in FILL_NAMES if all(type(ids.get(name)) is int for name in names)), None)
        if names is None:
            return None
        begins = ask({"content": "", "add_special": True, "parse_special": False})["tokens"][:1]
        return FillTokens(tuple(map(int, begins)), *(ids[name] for name in names))
    except (LookupError, TypeError, ValueError, ServerError):
        return None


def tokenize_fields(tokens: FillTokens, prefix: str, suffix: str) -> dict[str, Any]:
    """Return the body of a request to /tokenize for the prompt. Names of special tokens in the texts are plain text."""
    content = [tokens.prefix, prefix, tokens.suffix, suffix, tokens.middle]
    # The server adds the tokens that begin a prompt to the first part, if that is a text.
    begins: Sequence[int | str] = [""] if tokens.begins is None else tokens.begins
    return {
        "content": [*begins, *(part for part in content if part != "")],
        "add_special": tokens.begins is None,
        "parse_special": False,
    }


def prompt_of(answer: Any) -> Sequence[int]:
    """Return the prompt, from the answer of /tokenize. Raises ServerError if it has none."""
    ids = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ServerError("the server's answer to /tokenize has no tokens in it")
    return ids
