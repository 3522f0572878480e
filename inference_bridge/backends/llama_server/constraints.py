# SPDX-License-Identifier: Apache-2.0
"""`regex`, `choices` and `grammar` for a managed server, which ignores a grammar that it can't compile.

So a constraint is compiled here, with the compiler of the in-process engines, before it is sent, and the answer is
checked when it has ended. The server of the xllamacpp wheel has the same compiler (llguidance) and its notation. It is
not known whether another llama-server has it, so that server supports only `choices`, which is sent in the notation of
every llama-server (GBNF).
"""

from __future__ import annotations

import re

from ...errors import UnsupportedError
from ...grammar.constraints import choices_term, lark_text, regex_term
from ...options import GenerateConfig
from ..http.protocol.gbnf import check_choices, choices_grammar

OPTIONS = ("regex", "choices", "grammar")

_HEADER = "%llguidance {}\n"
"""The first line by which a llama-server recognises llguidance's notation."""

_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(?://|#).*')
"""A string, a regular expression or a comment in a Lark grammar."""


def options(compiles: bool) -> frozenset[str]:
    """Return the options that a server honours.

    Args:
        compiles: Whether the server has llguidance.
    """
    return frozenset(OPTIONS if compiles else ["choices"])


def why_not(option: str) -> str:
    """Return why a server without llguidance does not honour one of `OPTIONS`, and what to do instead."""
    return (
        "it is not known whether this llama-server was built with llguidance, and whether it would enforce "
        f"{option}: use choices, the server that the extra 'server' installs, or llama_cpp"
    )


def lark(config: GenerateConfig, backend: str) -> str | None:
    """Return a Lark grammar of the answers that the constraint allows. None: there is no constraint.

    Args:
        config: The options.
        backend: The name of the backend, for errors.

    Raises:
        ValueError: The constraint is invalid.
        UnsupportedError: It can't be enforced.
    """
    if config.regex is not None:
        return f"start: T\nT: {regex_term(config.regex, backend)}"
    if config.choices is not None:
        return f"start: T\nT: {choices_term(config.choices)}"
    if config.grammar is not None:
        grammar = lark_text(config.grammar)
        outside = _LITERAL.sub(" ", grammar)
        if "<" in outside:
            why = "the server leaves them out of the text, so the answer could not be checked: use llama_cpp"
            raise UnsupportedError("grammar with special tokens", backend, why)
        if re.search(r"\bmax_tokens\b", outside):
            why = "the number of tokens could not be checked: limit the repetitions instead, as in /[a-z]{1,20}/"
            raise UnsupportedError("grammar with max_tokens", backend, why)
        return grammar
    return None


def check(config: GenerateConfig, backend: str, compiles: bool) -> None:
    """Check the constraint.

    Args:
        config: The options.
        backend: The name of the backend, for errors.
        compiles: Whether the server has llguidance.

    Raises:
        ValueError: The constraint is invalid.
        UnsupportedError: It can't be enforced.
    """
    if config.choices is not None and not compiles:
        check_choices(config.choices, backend)
    lark(config, backend)


def sent(config: GenerateConfig, backend: str, compiles: bool) -> str | None:
    """Return the grammar to send to the server. None: no constraint is set. It takes the arguments of `check`."""
    if config.choices is not None and not (compiles and any("\0" in text for text in config.choices)):
        return choices_grammar(config.choices)  # GBNF also allows names of special tokens in an answer
    grammar = lark(config, backend)
    return None if grammar is None else _HEADER + grammar
