# SPDX-License-Identifier: Apache-2.0
"""`regex`, `choices` and `grammar` for a managed server, which ignores a grammar that it can't compile.

So a constraint is checked with the compiler of the in-process engines before it is sent, and the answer when it has
ended. The server of the xllamacpp wheel has the same compiler (llguidance) and takes its notation. Of another
llama-server that is not known: it gets choices, in the notation that every llama-server reads.
"""

from __future__ import annotations

import re

from ...errors import UnsupportedError
from ...grammar.constraints import choices_term, lark_text, regex_term
from ...options import GenerateConfig
from ..http.protocol.gbnf import check_choices, choices_grammar

OPTIONS = ("regex", "choices", "grammar")

_HEADER = "%llguidance {}\n"
"""How a llama-server knows llguidance's notation."""

_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(?://|#).*')
"""A string, an expression or a comment of a Lark grammar."""


def options(compiles: bool) -> frozenset[str]:
    """Return the options that a server honours. `compiles`: it has llguidance."""
    return frozenset(OPTIONS if compiles else ["choices"])


def why_not(option: str) -> str:
    """Return why a server without llguidance does not honour one of `OPTIONS`, and what to do instead."""
    return (
        "it is not known whether this llama-server was built with llguidance, and whether it would enforce "
        f"{option}: use choices, the server that the extra 'server' installs, or llama_cpp"
    )


def lark(config: GenerateConfig, backend: str) -> str | None:
    """Return a Lark grammar of the answers that the constraint allows. None: there is no constraint.

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
            why = "the server leaves them out of the text, so that the answer could not be checked: use llama_cpp"
            raise UnsupportedError("grammar with special tokens", backend, why)
        if re.search(r"\bmax_tokens\b", outside):
            why = "its length in tokens could not be checked: repeat a number of times, as in /[a-z]{1,20}/"
            raise UnsupportedError("grammar with max_tokens", backend, why)
        return grammar
    return None


def check(config: GenerateConfig, backend: str, compiles: bool) -> None:
    """Check the constraint. Raises ValueError or UnsupportedError."""
    if config.choices is not None and not compiles:
        check_choices(config.choices, backend)
    lark(config, backend)


def sent(config: GenerateConfig, backend: str, compiles: bool) -> str | None:
    """Return the grammar to send to the server. None: there is no constraint."""
    if config.choices is not None and not (compiles and any("\0" in text for text in config.choices)):
        return choices_grammar(config.choices)  # with llguidance an answer can't have a special token's name in it
    grammar = lark(config, backend)
    return None if grammar is None else _HEADER + grammar
