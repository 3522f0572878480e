# SPDX-License-Identifier: Apache-2.0
"""How often `decide` is right on a small labelled set, how well its probabilities are calibrated, and what 50 questions
about one text cost in one call and in 50.

Without `--model` it is the demo's SmolLM2-135M. The figures are the model's as much as this package's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.report import Calm, compare, facts, parser, report, take_turns
from inference_bridge import Noul, TextModel, load_model
from tests.parts.decision_set import Item, items

DEMO = "llama_cpp:SmolLM2-135M-Instruct.Q4_1"
BINS = 10
STATE = "The customer wrote about the weather, an invoice and a parcel that never came. " * 15
QUESTIONS = {f"q{number}": Noul(f"Is it about item {number}?") for number in range(50)}


@dataclass(frozen=True)
class Judged:
    """A question that was answered: the probability of each option, by its label, and the right one."""

    kind: str
    probabilities: dict[str, float]
    right: str

    @property
    def chosen(self) -> str:
        return max(self.probabilities, key=lambda label: self.probabilities[label])


@dataclass(frozen=True)
class Figures:
    """Of several answers.

    Attributes:
        accuracy: The share of answers whose likeliest option is the right one.
        chance: The share that guessing would get.
        brier: The mean over answers of the summed squares of what the probabilities are off (Brier 1950): 0 to 2.
        calibration_error: The mean distance between the likeliest option's probability and how often it is right, in
            BINS bins of that probability, weighted by their answers (Naeini et al. 2015).
    """

    count: int
    accuracy: float
    chance: float
    brier: float
    calibration_error: float


def figures(judged: Sequence[Judged]) -> Figures:
    """Return the figures of some answers, of which there is one at least."""
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
    """Ask a model one question of the set."""
    answer = model.decide(item.text, {"asked": item.question})["asked"]
    return Judged(item.kind, {str(label): value for label, value in answer.probabilities.items()}, item.right)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=DEMO, help=f"what to load (default: {DEMO})")
    options.add_argument("--rounds", type=int, default=5, help="runs of each (default 5, at least 2)")
    asked = options.parse_args()
    calm = Calm(asked.patience)
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
        rates = take_turns(rivals, 2 if asked.quick else asked.rounds, calm)
    lines = [
        compare("50 questions in one call", other, reach, "questions/s", rates["one call"], rates[other])
        for other, reach in (("50 calls", 0.8), ("50 calls, each with another text", 3.0))
    ]
    report(facts("llama-cpp-python", "inference-bridge") | {"model": asked.model}, lines, calm, asked.json)


def together(model: TextModel) -> None:
    model.decide(STATE, QUESTIONS)


def apart(model: TextModel) -> None:
    """Each call finds the text in the prefix cache, as the call before it left it."""
    for name, question in QUESTIONS.items():
        model.decide(STATE, {name: question})


def about_others(model: TextModel) -> None:
    """Each call evaluates its text, which begins like no other."""
    for name, question in QUESTIONS.items():
        model.decide(f"{time.monotonic_ns()} {STATE}", {name: question})


def rate(work: Callable[[TextModel], None], model: TextModel) -> float:
    """Return how many questions a second are answered."""
    begun = time.monotonic()
    work(model)
    return len(QUESTIONS) / (time.monotonic() - begun)


if __name__ == "__main__":
    main()
