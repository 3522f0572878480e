# SPDX-License-Identifier: Apache-2.0
"""Classifies on a server: predicts one token for each prompt, or computes the probabilities of labels.

llama-server returns the probability of any token before sampling. `n_probs` lists the most likely tokens. For another
token, `logit_bias` forces the server to choose it, which does not change the reported probability. So labels are scored
as in process: over all their tokens (see engine.classify). vLLM returns the probability of every token of a prompt, so
each label is sent after the prompt.

Other servers list only the most likely tokens. There a label has a probability only if it is exactly one of these
tokens. Any other label is refused, because its probability would be a guess.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ....engine.classify import Evaluation, Plan
from ....engine.classify import plan as plan_classification
from ....errors import ServerError, UnsupportedError
from ....options import GenerateConfig
from ....types import ClassifyResult, Token, TopLogprob
from ..facts import ServerFacts
from ..protocol.llama_api import logprobs_of
from ..protocol.ollama_api import completion, first_token
from ..protocol.openai_api import old_logprobs
from ..servers import SERVERS, WHOLE

SCORED = 50
"""Number of most likely tokens that llama-server lists to score labels. Other tokens are requested one by one."""

_FORCED = 10_000.0
"""A bias larger than any difference of logits."""

_PLAIN = "a"

Task = tuple[str, dict[str, Any], tuple[str, ...], Callable[[Any], None]]
"""A request to make: its path, its body, its private texts, and the function that is called with its answer."""


class Classification:
    """Plans the requests of one `classify`, and reads their answers.

    `steps` yields lists of requests. The requests of a list may run at the same time; the next list may be requested
    only when they are answered. After the last list, `results` returns the results.
    """

    def __init__(
        self,
        facts: ServerFacts,
        prompts: Sequence[str],
        labels: Sequence[Sequence[str]] | None,
        *,
        top: int,
        timeout: float | None,
        backend: str,
        rendered: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`rendered`: the prompts as token ids, which are sent to vLLM instead of the texts."""
        self._backend = backend
        self._rendered = rendered
        self.timeout = timeout
        self._begun = time.monotonic()
        self._facts = facts
        self._prompts = prompts
        self._labels = labels
        self._top = top
        self._plan: Plan | None = None
        self._results: list[ClassifyResult | None] = [None] * len(prompts)
        self._texts: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._encoded: dict[tuple[str, bool], list[int]] = {}

    @property
    def spent(self) -> float:
        """Seconds since the call began: its timeout is that of all its requests together."""
        return time.monotonic() - self._begun

    def steps(self) -> Iterator[list[Task]]:
        if self._facts.server == "vllm" and self._labels is not None:
            if self._rendered is not None:
                yield [self._tokenizing_label(label) for label in sorted({one for own in self._labels for one in own})]
            each = zip(self._prompts, self._labels, strict=True)
            yield [self._following(place, prompt, labels) for place, (prompt, labels) in enumerate(each)]
        elif self._facts.server == "llama-cpp-python" and self._labels is not None:
            yield [self._counting(text) for text in self._texts_of(self._labels)]
            yield [self._listing(place, prompt) for place, prompt in enumerate(self._prompts)]
        elif not self._facts.native:
            yield [self._listing(place, prompt) for place, prompt in enumerate(self._prompts)]
        elif self._labels is None:
            yield [self._tokenizing(_PLAIN, special=False)]
            yield [self._prediction(place, prompt) for place, prompt in enumerate(self._prompts)]
        else:
            yield [self._tokenizing(_PLAIN, special=False), *map(self._tokenizing, self._texts_of(self._labels))]
            self._plan = plan = plan_classification(
                self._prompts, self._labels, self._tokens, top=self._top, keep=False
            )
            yield [self._evaluating(evaluation, SCORED) for evaluation in plan.order()]
            yield [
                self._scoring(evaluation, token)
                for evaluation in plan.order()
                for token in sorted(evaluation.wanted - evaluation.logprobs.keys())
            ]
            # The remaining tokens end within a character: the server does not report them alone.
            rest = [evaluation for evaluation in plan.order() if evaluation.wanted - evaluation.logprobs.keys()]
            yield [self._evaluating(evaluation, self._facts.info.vocab_size or WHOLE) for evaluation in rest]

    def _texts_of(self, labels: Sequence[Sequence[str]]) -> list[str]:
        """Return every prompt, alone and followed by each of its labels."""
        each = zip(self._prompts, labels, strict=True)
        return list(dict.fromkeys(prompt + label for prompt, own in each for label in ("", *own)))

    def results(self) -> list[ClassifyResult]:
        if self._plan is not None:
            return self._plan.results(lambda token: self._texts.get(token, ""))
        return [result for result in self._results if result is not None]

    # ------------------------------------------------ llama-server

    def _tokens(self, text: str) -> list[int]:
        return self._encoded[text, True]

    def _tokenizing(self, text: str, special: bool = True) -> Task:
        def take(answer: Any) -> None:
            self._encoded[text, special] = token_ids(answer)

        return "/tokenize", {"content": text, "add_special": special, "parse_special": special}, (text,), take

    def _prediction(self, place: int, prompt: str) -> Task:
        def take(answer: Any) -> None:
            _, top = logprobs_of(_probabilities(answer))
            best = top[0]
            logprob = best.logprob if self._top else None
            self._results[place] = ClassifyResult(Token(best.text, best.id, logprob, top[: self._top]))

        return self._asking(prompt, max(self._top, 1), self._any, (prompt,), take)

    def _evaluating(self, evaluation: Evaluation, count: int) -> Task:
        def take(answer: Any) -> None:
            _, listed = logprobs_of(_probabilities(answer))
            for one in listed[: max(evaluation.top, 1)]:
                self._texts[one.id or 0] = one.text
            evaluation.logprobs.update((one.id or 0, one.logprob) for one in listed)
            evaluation.best = listed[0].id or 0
            evaluation.likeliest = tuple(one.id or 0 for one in listed[: evaluation.top])

        return self._asking(evaluation.tokens, max(evaluation.top, count), self._any, (), take)

    def _scoring(self, evaluation: Evaluation, token: int) -> Task:
        def take(answer: Any) -> None:
            if answer.get("completion_probabilities"):
                entry = _probabilities(answer)
                if entry.get("id") != token:
                    raise ServerError("the server gave the probability of another token than it was asked for")
                evaluation.logprobs[token] = float(entry["logprob"])

        return self._asking(evaluation.tokens, 1, token, (), take)

    @property
    def _any(self) -> int:
        """A token that the server is forced to choose, if only the listed probabilities are needed. It is a whole
        character, because the server would not report the probabilities of an incomplete one."""
        return self._encoded[_PLAIN, False][0]

    @staticmethod
    def _asking(
        prompt: str | Sequence[int], count: int, chosen: int, private: tuple[str, ...], take: Callable[[Any], None]
    ) -> Task:
        fields = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": 1,
            "n_probs": count,
            "logit_bias": [[chosen, _FORCED]],
            "temperature": 0.0,
            "cache_prompt": True,
            "stream": False,
        }
        return "/completion", fields, private, take

    # ------------------------------------------------ vLLM

    def _following(self, place: int, prompt: str, labels: Sequence[str]) -> Task:
        """Return one request for the prompt, alone and followed by each label: the log probabilities of all tokens."""
        sent: Sequence[Any]
        if self._rendered is None:
            texts = sent = [prompt, *(prompt + label for label in labels)]
        else:
            ids, prompt, texts = list(self._rendered[place]), "", ["", *labels]
            sent = [ids, *(ids + self._encoded[label, False] for label in labels)]

        def take(answer: Any) -> None:
            try:
                choices = sorted(answer["choices"], key=lambda choice: choice["index"])
                encoded = {text: list(choice["prompt_token_ids"]) for text, choice in zip(texts, choices, strict=True)}
                told = [choice["prompt_logprobs"] for choice in choices]
                known = [(tuple(encoded[text]), one) for text, one in zip(texts, told, strict=True)]
                plan = plan_classification([prompt], [labels], encoded.__getitem__, top=0, keep=False)
                for tokens, evaluation in plan.evaluations.items():
                    for full, logprobs in known:
                        if len(full) > len(tokens) and full[: len(tokens)] == tokens:
                            token = full[len(tokens)]
                            evaluation.logprobs[token] = float(logprobs[len(tokens)][str(token)]["logprob"])
                (scored,) = plan.results(lambda _: "")
                token = self._first_token(choices[0])
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                why = "the server does not tell the probabilities of a prompt's tokens: a newer vLLM does"
                raise UnsupportedError("labels in classify", self._backend, why) from error
            self._results[place] = replace(scored, token=token)

        fields = {
            "prompt": sent,
            "max_tokens": 1,
            "temperature": 0.0,
            "stream": False,
            "logprobs": max(self._top, 1),
            "prompt_logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": False,
        }
        return self._facts.api + "/completions", fields, tuple(texts), take

    def _tokenizing_label(self, label: str) -> Task:
        def take(answer: Any) -> None:
            self._encoded[label, False] = token_ids(answer)

        return "/tokenize", {"prompt": label, "add_special_tokens": False}, (label,), take

    def _first_token(self, choice: Mapping[str, Any]) -> Token:
        entries = old_logprobs(choice.get("logprobs"))
        logprob, top = logprobs_of(entries[0] if entries else {})
        ids = choice.get("token_ids") or [None]
        return Token(str(choice.get("text") or ""), ids[0], logprob if self._top else None, top[: self._top])

    # ------------------------------------------------ other servers

    def _counting(self, text: str) -> Task:
        def take(answer: Any) -> None:
            count = answer.get("count") if isinstance(answer, Mapping) else None
            if not isinstance(count, int):
                raise ServerError("the server's answer to counting tokens has no 'count' in it")
            self._counts[text] = count

        return "/extras/tokenize/count", {"input": text}, (text,), take

    def _listing(self, place: int, prompt: str) -> Task:
        server = self._facts.server
        if server == "ollama":
            return self._ollama_listing(place, prompt)
        count = self._top if self._labels is None else max(self._top, SERVERS[server].listed)
        fields: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "stream": False}
        if server == "mlx-lm":
            fields |= {"logprobs": True, "top_logprobs": max(count, 1)}
        elif count:
            fields["logprobs"] = count
        if server == "vllm":
            fields["return_tokens_as_token_ids"] = False
        return self._facts.api + "/completions", fields, (prompt,), partial(self._take_listing, place)

    def _ollama_listing(self, place: int, prompt: str) -> Task:
        def take(answer: Any) -> None:
            try:
                entry = first_token(answer)
            except (KeyError, TypeError, IndexError, AttributeError):
                raise ServerError("the server's answer has no completion in it") from None
            self._take_entry(place, str(answer["response"]), entry)

        count = self._top if self._labels is None else max(self._top, SERVERS["ollama"].listed)
        config = GenerateConfig(max_tokens=1, temperature=0.0, logprobs=count)
        return "/api/generate", completion(prompt, config) | {"stream": False}, (prompt,), take

    def _take_listing(self, place: int, answer: Any) -> None:
        try:
            choice = answer["choices"][0]
            text = str(choice.get("text") or "")
            entries = old_logprobs(choice.get("logprobs"))
        except (KeyError, TypeError, IndexError, AttributeError):
            raise ServerError("the server's answer has no completion in it") from None
        self._take_entry(place, text, entries[0] if entries else {})

    def _take_entry(self, place: int, text: str, entry: Mapping[str, Any]) -> None:
        logprob, top = logprobs_of(entry)
        token = Token(text, entry.get("id"), logprob if self._top else None, top[: self._top])
        if self._labels is None:
            self._results[place] = ClassifyResult(token)
            return
        scores, mass = self._label_scores(self._prompts[place], self._labels[place], top)
        label = max(scores, key=lambda label: scores[label])
        self._results[place] = ClassifyResult(token, None, label, scores, mass)

    def _label_scores(
        self, prompt: str, labels: Sequence[str], listed: Sequence[TopLogprob]
    ) -> tuple[dict[str, float], float]:
        logprobs: dict[str, float] = {}
        for label in labels:
            found = [one for one in listed if label in (one.text, _plain(one.text))]
            where = f"the label {label!r} in labels"
            if not found:
                why = (
                    f"it is not one of the {len(listed)} likeliest tokens, and the server tells no other probabilities"
                )
                raise UnsupportedError(where, self._backend, why)
            if len(found) > 1 or self._counts.get(prompt + label, 1) - self._counts.get(prompt, 0) != 1:
                why = "it is not one token behind this prompt, and the server tells only the next token's probability"
                raise UnsupportedError(where, self._backend, why)
            logprobs[label] = found[0].logprob
        peak = max(logprobs.values())
        weights = {label: math.exp(value - peak) for label, value in logprobs.items()}
        total = sum(weights.values())
        return {label: weight / total for label, weight in weights.items()}, min(total * math.exp(peak), 1.0)


def token_ids(answer: Any) -> list[int]:
    """Return the token ids in an answer of /tokenize. Raises ServerError if it has none."""
    tokens = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(tokens, list):
        raise ServerError("the server's answer to /tokenize has no tokens in it")
    return tokens


def _probabilities(answer: Any) -> Mapping[str, Any]:
    """Return the entry of the predicted token."""
    try:
        entry = answer["completion_probabilities"][0]
        if not entry["top_logprobs"]:
            raise KeyError
    except (KeyError, TypeError, IndexError):
        raise ServerError("the server's answer has no probabilities in it") from None
    return entry  # type: ignore[no-any-return]


def _plain(token: str) -> str:
    """A token as text, where a server shows it as its vocabulary writes it."""
    return token.replace("\u0120", " ").replace("\u2581", " ").replace("\u010a", "\n")
