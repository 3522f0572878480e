# SPDX-License-Identifier: Apache-2.0
"""Measure `decide`: its accuracy and calibration on a small labelled set, and its speed for 50 questions about one
text, in one call and in 50 calls.

Without `--model`, the model is the demo's SmolLM2-135M. Accuracy and calibration depend mostly on the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns
from inference_bridge import Noul, TextModel, load_model
from tests.parts.decision_set import Item, items

DEMO = "llama_cpp:SmolLM2-135M-Instruct.Q4_1"
BINS = 10
STATE = "The customer wrote about the weather, an invoice and a parcel that never came. " * 15
QUESTIONS = {f"q{number}": Noul(f"Is it about item {number}?") for number in range(50)}


@dataclass(frozen=True)
class Judged:
    """A question that was answered: the probability of each option by its label, and the label of the right option."""

    kind: str
    probabilities: dict[str, float]
    right: str

    @property
    def chosen(self) -> str:
        return max(self.probabilities, key=lambda label: self.probabilities[label])


@dataclass(frozen=True)
class Figures:
    """Figures about several answers.

    Attributes:
        count: Number of answers.
        accuracy: Share of answers whose most likely option is right.
        chance: The accuracy of random guesses.
        brier: Brier score (Brier 1950), from 0 to 2: the mean over answers of the sum of squared errors of the options'
            probabilities.
        calibration_error: Expected calibration error (Naeini et al. 2015): the mean difference between the most likely
            option's probability and the accuracy, over BINS bins of that probability, weighted by number of answers.
    """

    count: int
    accuracy: float
    chance: float
    brier: float
    calibration_error: float


def figures(judged: Sequence[Judged]) -> Figures:
    """Return the figures of some answers, at least one."""
    bins: dict[int, list[Judged]] = {}
    for one in judged:
        sure = one.probabilities[one.chosen]
        bins.setdefault(min(int(sure * BINS), BINS - 1), []).append(one)
    return Figures(
        len(judged),
        _mean(one.chosen == one.right for one in judged),
        _mean(1 / len(one.probabilities) for one in judged),
        _mean(sum((value - (label == one.right)) ** 2 for label, value in one.probabilities.items()) for one in judged),
        sum(
            len(group)
            / len(judged)
            * abs(
                _mean(one.chosen == one.right for one in group) - _mean(one.probabilities[one.chosen] for one in group)
            )
            for group in bins.values()
        ),
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def judge(model: TextModel, item: Item) -> Judged:
    """Ask a model one question of the labelled set."""
    answer = model.decide(item.text, {"asked": item.question})["asked"]
    return Judged(item.kind, {str(label): value for label, value in answer.probabilities.items()}, item.right)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=DEMO, help=f"the model to load (default: {DEMO})")
    options.add_argument("--rounds", type=int, default=5, help="runs of each (default 5, at least 2)")
    asked = options.parse_args()
    idle = IdleMachine(asked.idle_wait)
    with load_model(asked.model) as model:
        judged = [judge(model, item) for item in items()]
        print(f"{'':8} questions  accuracy  by chance  Brier  calibration error")
        for kind in ("noul", "choice", "score", "all"):
            told = figures([one for one in judged if kind in (one.kind, "all")])
            print(
                f"{kind:8} {told.count:9}  {told.accuracy:8.3f}  {told.chance:9.3f}  {told.brier:5.3f}"
                f"  {told.calibration_error:17.3f}"
            )
        rivals = {
            "one call": partial(rate, together, model),
            "50 calls": partial(rate, apart, model),
            "50 calls, each with another text": partial(rate, about_others, model),
        }
        rates = take_turns(rivals, 2 if asked.quick else asked.rounds, idle)
    lines = [
        compare("50 questions in one call", other, reach, "questions/s", rates["one call"], rates[other])
        for other, reach in (("50 calls", 0.8), ("50 calls, each with another text", 3.0))
    ]
    report(facts("llama-cpp-python", "inference-bridge") | {"model": asked.model}, lines, idle, asked.json)


def together(model: TextModel) -> None:
    """Ask in one call."""
    model.decide(STATE, QUESTIONS)


def apart(model: TextModel) -> None:
    """Ask in 50 calls. Each call finds the text in the prefix cache."""
    for name, question in QUESTIONS.items():
        model.decide(STATE, {name: question})


def about_others(model: TextModel) -> None:
    """Ask in 50 calls about different texts. Each call evaluates its text, whose beginning is unique."""
    for name, question in QUESTIONS.items():
        model.decide(f"{time.monotonic_ns()} {STATE}", {name: question})


def rate(work: Callable[[TextModel], None], model: TextModel) -> float:
    """Return how many questions a second are answered."""
    begun = time.monotonic()
    work(model)
    return len(QUESTIONS) / (time.monotonic() - begun)


if __name__ == "__main__":
    main()
