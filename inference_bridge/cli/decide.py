# SPDX-License-Identifier: Apache-2.0
"""The command `decide`: typed questions about a text, at the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import loading
from ..decisions import Answer, Choice, ChoiceAnswer, Noul, NoulAnswer, Question, Score
from . import tables

_SEPARATOR = "|"


def decide(
    source: str,
    state: str,
    *,
    file: str | None,
    nouls: Sequence[tuple[str, str]],
    choices: Sequence[tuple[str, str, str]],
    scores: Sequence[tuple[str, str, str]],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask the model, and print the answers.

    Raises:
        click.UsageError: There are no questions, one is wrong, or a name is used twice.
        BridgeError: As `load_model` and `TextModel.decide`.
    """
    try:
        questions = _questions(file, nouls, choices, scores)
        with loading.load_model(source) as model:
            decision = model.decide(state, questions, timeout=timeout)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        tables.show_json({name: answer.to_dict() for name, answer in decision.answers.items()})
        return
    rows = [[name, *_row(answer)] for name, answer in decision.answers.items()]
    tables.show(["QUESTION", "ANSWER", "CONFIDENCE", "MASS", "PROBABILITIES"], rows)


def _row(answer: Answer) -> list[object]:
    if isinstance(answer, NoulAnswer):
        told = "yes" if answer.noul > 0.5 else "no"
    elif isinstance(answer, ChoiceAnswer):
        told = answer.choice
    else:
        told = f"{answer.score:.2f}"
    mass = "" if answer.mass is None else f"{answer.mass:.3f}"
    each = ", ".join(f"{option} {probability:.3f}" for option, probability in answer.probabilities.items())
    return [told, f"{answer.confidence:.3f}", mass, each]


def _questions(
    file: str | None,
    nouls: Sequence[tuple[str, str]],
    choices: Sequence[tuple[str, str, str]],
    scores: Sequence[tuple[str, str, str]],
) -> dict[str, Question | dict[str, Any]]:
    given: list[tuple[str, Question | dict[str, Any]]] = []
    if file is not None:
        try:
            read = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the questions in {file} can't be read: {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"{file} holds no JSON object of questions by their names")
        given += read.items()
    given += [(name, Noul(asked)) for name, asked in nouls]
    given += [(name, Choice(_parts(options), asked)) for name, asked, options in choices]
    given += [(name, Score(_parts(levels), asked)) for name, asked, levels in scores]
    questions: dict[str, Question | dict[str, Any]] = {}
    for name, question in given:
        if name in questions:
            raise ValueError(f"two questions are called {name!r}")
        questions[name] = question
    if not questions:
        raise ValueError("ask at least one question: --noul, --choice, --score or --questions")
    return questions


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(_SEPARATOR)]
