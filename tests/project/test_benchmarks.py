# SPDX-License-Identifier: Apache-2.0
"""Measurement of processor time in the benchmarks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.decisions import Judged, figures
from benchmarks.report import taken_by_us
from inference_bridge import Choice, Noul, Score
from tests.parts.decision_set import items

ROOT = Path(__file__).resolve().parents[2]

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_what_our_ended_children_took_is_not_taken_by_others() -> None:
    before = taken_by_us()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    # The system cuts the time in user code and that in the kernel to hundredths, each by itself.
    assert taken_by_us() - before > 0.27


def test_make_gpu_names_tests_that_exist() -> None:
    assert [path for path in gpu.TESTS if not (ROOT / path).is_file()] == []


def judged(right: str, **probabilities: float) -> Judged:
    return Judged("choice", probabilities, right)


def test_figures_of_answers_that_are_sure_and_right_are_the_best() -> None:
    told = figures([judged("a", a=1.0, b=0.0), judged("b", a=0.0, b=1.0)])
    assert (told.count, told.accuracy, told.chance, told.brier, told.calibration_error) == (2, 1.0, 0.5, 0.0, 0.0)


def test_figures_of_answers_that_are_surer_than_they_are_right() -> None:
    """Both say 0.8, and one of two is right."""
    told = figures([judged("a", a=0.8, b=0.2), judged("b", a=0.8, b=0.2)])
    assert told.accuracy == 0.5
    assert told.brier == pytest.approx((2 * 0.2**2 + 2 * 0.8**2) / 2)
    assert told.calibration_error == pytest.approx(0.3)


def test_the_labelled_set_has_an_answer_among_the_options_of_each_question() -> None:
    listed = list(items())
    assert len(listed) >= 60
    assert {item.kind for item in listed} == {"noul", "choice", "score"}
    assert len({item.text for item in listed}) == len(listed)
    for item in listed:
        question = item.question
        labels = {"true", "false"} if isinstance(question, Noul) else set(map(str, _labels(question)))
        assert item.right in labels


def _labels(question: Choice | Score) -> Iterable[object]:
    return question.criteria if isinstance(question, Choice) else range(len(question.criteria))
