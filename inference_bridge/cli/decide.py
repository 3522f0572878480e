# SPDX-License-Identifier: Apache-2.0
"""The command `decide`: answers typed questions about a text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import loading
from ..decisions import Answer, Choice, ChoiceAnswer, Noul, NoulAnswer, Question, Score
from . import tables
from .progress import waiting

_SEPARATOR = "|"


def decide(
    source: str,
    text: str | None,
    *,
    file: str | None,
    nouls: Sequence[tuple[str, str]],
    choices: Sequence[tuple[str, str, str]],
    scores: Sequence[tuple[str, str, str]],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask the model about the text, or about standard input, and print the answers.

    Args:
        source: The model, as `load_model` takes it.
        text: The text. None: standard input is read.
        file: A file with a JSON object of questions by name.
        nouls: Yes/no questions: name and question.
        choices: Choices: name, question, and options with "|" between them.
        scores: Scores: name, question, and levels with "|" between them.
        timeout: Maximum seconds for all questions. None: no limit.
        as_json: Print JSON.

    Raises:
        click.UsageError: There are no questions or no text, a question is wrong, or two questions have one name.
        BridgeError: As `load_model` and `TextModel.decide`.
    """
    try:
        questions = _questions(file, nouls, choices, scores)
        state = _checked(_typed() if text is None else text)
        with waiting(os.path.basename(source)) as progress, loading.load_model(source) as model:
            progress.loaded(f"answers {len(questions)} question{'' if len(questions) == 1 else 's'}")
            decision = model.decide(state, questions, timeout=timeout)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        tables.show_json({name: answer.to_dict() for name, answer in decision.answers.items()})
        return
    rows = [[name, *_row(answer)] for name, answer in decision.answers.items()]
    tables.show(["QUESTION", "ANSWER", "CONFIDENCE", "MASS", "PROBABILITIES"], rows)


def _typed() -> str:
    if sys.stdin.isatty():
        click.echo("Type the text, and then Ctrl-D on a line of its own", err=True)
    return sys.stdin.read()


def _checked(text: str) -> str:
    """Return the text. Raises ValueError if it is empty, or if its bytes are not UTF-8."""
    if not text.strip():
        raise ValueError("the text is empty: give it after the model, or pipe it to the command")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not UTF-8 (at character {error.start + 1}): convert it, for example with "
            "iconv -f latin1 -t utf-8"
        ) from None
    return text


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
            raise ValueError(f"{file} must hold a JSON object that maps names to questions")
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
