# SPDX-License-Identifier: Apache-2.0
"""Compare the probabilities that `classify` gives labels on a vLLM server with those of the server's own answers.

    SUITE_URL=http://127.0.0.1:8000 SUITE_KEY=… python -m tests.servers.labels [--sets 200]

The expected value comes from one request for each prompt and label: `echo` with the log probability of every token of
the prompt. It prints the largest difference, and the five label sets that differ most. The exit status is 1 where a
difference is over the bound.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2

from inference_bridge import TextModel, load_model

BOUND = 1e-3

PROMPTS = (
    "The capital of France is",
    "Review: I hate it. It is",
    "Is the sky blue? Answer yes or no:",
    "Sentiment of 'I love it' (positive/negative): ",
    "Translate to German: dog ->",
    "2 + 2 =",
    "def add(a, b):\n    return",
    "Der Himmel ist",
    "Once upon a time there was a",
    "<|im_start|>user\nIs water wet?<|im_end|>\n<|im_start|>assistant\n",
)

LABELS = (
    (" Paris", " London", " zebra", " Zanzibar", " Rome", " Berlin"),
    (" good", " bad", " neither good nor bad", " good enough", " goodness", " awful"),
    ("yes", "no", "Yes", "No", "YES", "maybe", "I do not know"),
    (" yes", " no", " Yes", " No", " perhaps", " yes and no"),
    ("positive", "negative", "neutral", " positive", " negative"),
    (" 4", " four", " 5", " 22", " 4.0", "4"),
    (" a + b", " a", " a - b", " b", " None", " a*b\n"),
    (" blau", " grau", " gr\u00fcn", " \u65e5\u672c\u8a9e", " \U0001f389", " na\u00efve"),
    (" little girl", " little boy", " little", " king", " kingdom", " giraffe with a hat"),
    ("A", "B", "C", "D", "AB", "AA"),
)


def label_sets(count: int) -> Iterator[tuple[Sequence[str], list[str]]]:
    """`count` label sets, always the same: two to five labels, and the prompts that are asked together."""
    chance = random.Random(7)
    for begin in range(0, count, len(PROMPTS)):
        pool = [label for group in chance.sample(LABELS, 2) for label in group]
        labels = chance.sample(list(dict.fromkeys(pool)), chance.randint(2, 5))
        yield PROMPTS[: count - begin], labels


class Truth:
    """Asks a vLLM server for the log probability of texts, without this package."""

    def __init__(self, address: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(base_url=address, headers=headers, timeout=600, trust_env=False)
        self._model = self._client.get("/v1/models").json()["data"][0]["id"]

    def __enter__(self) -> Truth:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _post(self, path: str, **fields: Any) -> Any:
        answer = self._client.post(path, json={"model": self._model, **fields})
        answer.raise_for_status()
        return answer.json()

    def _tokens(self, text: str) -> list[int]:
        return list(self._post("/tokenize", prompt=text)["tokens"])

    def _logprobs(self, text: str) -> list[float]:
        fields = {"echo": True, "logprobs": 0, "max_tokens": 1, "temperature": 0}
        (choice,) = self._post("/v1/completions", prompt=text, **fields)["choices"]
        return list(choice["logprobs"]["token_logprobs"])

    def scores(self, prompt: str, labels: Sequence[str]) -> dict[str, float]:
        """The probability of each label, given that one of them follows the prompt, and not a longer one."""
        texts = {label: self._tokens(prompt + label) for label in labels}
        both = [self._tokens(prompt), *texts.values()]
        least = min(map(len, texts.values())) - 1
        shared = next((at for at in range(least) if len({tuple(one[: at + 1]) for one in both}) > 1), least)
        sums = {label: sum(self._logprobs(prompt + label)[max(shared, 1) : len(ids)]) for label, ids in texts.items()}
        peak = max(sums.values())
        own: dict[str, float] = {}
        for label in sorted(labels, key=lambda one: -len(texts[one])):
            ids = texts[label]
            longer = sum(value for other, value in own.items() if texts[other][: len(ids)] == ids)
            own[label] = max(math.exp(sums[label] - peak) - longer, 0.0)
        total = sum(own.values())
        return {label: own[label] / total for label in labels}


def differences(model: TextModel, truth: Truth, count: int) -> list[tuple[float, str, dict[str, tuple[float, float]]]]:
    """For each label set, in falling order: the largest difference, the prompt, and for each label both values."""
    out = []
    for prompts, labels in label_sets(count):
        for prompt, result in zip(prompts, model.classify(prompts, labels=labels), strict=True):
            expected = truth.scores(prompt, labels)
            assert result.scores is not None
            pairs = {label: (result.scores[label], expected[label]) for label in labels}
            out.append((max(abs(one - other) for one, other in pairs.values()), prompt, pairs))
    return sorted(out, key=lambda one: -one[0])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the probabilities of labels with the server's own.")
    parser.add_argument("--sets", type=int, default=200, help="pairs of a prompt and a label set (default 200)")
    asked = parser.parse_args()
    address, key = os.environ["SUITE_URL"], os.environ.get("SUITE_KEY")
    with load_model(address, api_key=key) as model, Truth(address, key) as truth:
        found = differences(model, truth, asked.sets)
    for worst, prompt, pairs in found[:5]:
        shown = ", ".join(f"{label!r}: {one:.5f} for {other:.5f}" for label, (one, other) in pairs.items())
        sys.stdout.write(f"{worst:.6f}  {prompt!r}  {shown}\n")
    over = sum(1 for worst, _, _ in found if worst > BOUND)
    sys.stdout.write(f"{len(found)} label sets, largest difference {found[0][0]:.6f}, {over} over {BOUND}\n")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
