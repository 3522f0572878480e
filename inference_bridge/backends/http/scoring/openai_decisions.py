# SPDX-License-Identifier: Apache-2.0
"""Writes requests to the endpoint /v1/decisions of OpenAI's API, and reads the answers.

Source: openai/types/decision*.py of https://github.com/openai/openai-python
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ....decisions import Choice, Noul, Question
from ....decisions.deciding import Deciding
from ....errors import UnsupportedError


def body(work: Deciding) -> dict[str, Any]:
    """Return the fields of a request with all questions of a call."""
    state = work.state if isinstance(work.state, str) else json.dumps(work.state, ensure_ascii=False)
    return {"input": state, "questions": [_question(name, one) for name, one in work.questions.items()]}


def _question(name: str, asked: Question) -> dict[str, Any]:
    if isinstance(asked, Noul):
        meanings = asked.criteria or {}
        lines = [f"The answer to this question is yes: {_text(asked.instructions)}"]
        lines += [
            f"{word} means: {_text(meanings[key])}"
            for word, key in (("Yes", "true"), ("No", "false"))
            if key in meanings
        ]
        return {"type": "predicate", "name": name, "instructions": "\n".join(lines)}
    if isinstance(asked, Choice):
        choices = [
            {"value": option} | ({} if meaning is None else {"description": _text(meaning)})
            for option, meaning in asked.options.items()
        ]
        instructions = _text(asked.instructions) or "Which of these options fits best?"
        return {"type": "choice", "name": name, "instructions": instructions, "choices": choices}
    levels = [{"label": _text(level)} for level in asked.criteria]
    instructions = _text(asked.instructions) or "Which of these levels fits best?"
    return {"type": "score", "name": name, "instructions": instructions, "levels": levels}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def probabilities(asked: Question, found: Mapping[str, Any], backend: str) -> list[Any]:
    """Return the probabilities of a question's options, in their order, from the server's answer.

    Raises:
        UnsupportedError: The model declined to answer.
        KeyError, TypeError: The answer has another form.
    """
    if found["type"] == "refusal":
        raise UnsupportedError("decide", backend, f"the model declined to answer question {found.get('name')!r}")
    if isinstance(asked, Noul):
        return [found["probability"], 1.0 - found["probability"]]
    each = {one["value"]: one["probability"] for one in found["probabilities"]}
    options = asked.options if isinstance(asked, Choice) else range(len(asked.criteria))
    return [each[option] for option in options]
