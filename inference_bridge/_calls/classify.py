# SPDX-License-Identifier: Apache-2.0
"""The arguments of `classify`, and the checks that backends share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UnsupportedError
from ..options import GenerateConfig
from ..types import BatchResult, ClassifyResult, Token
from .arguments import strings

_OPTIONS = frozenset({"return_logits", "logprobs", "timeout"})


class ClassifyCall(NamedTuple):
    """One call of `classify` or `aclassify`, with the caller's arguments, not yet checked."""

    prompts: Sequence[str]
    config: GenerateConfig | None
    labels: Sequence[str] | None
    options: Mapping[str, Any]

    def check_options(self, backend: str) -> None:
        """Raise UnsupportedError for an option that does not apply to the prediction of one token."""
        for name, value in (self.config or GenerateConfig()).with_options(self.options).set_fields().items():
            if name not in _OPTIONS and (name, value) not in (("max_tokens", 1), ("temperature", 0.0)):
                raise UnsupportedError(f"{name}={value!r} in classify", backend, "it predicts one token, greedily")

    def texts(self) -> list[str]:
        """Return the prompts as a list. Call it only once, because they may be an iterator. Raises TypeError."""
        return strings(self.prompts, "prompts")

    def label_texts(self) -> list[str] | None:
        """Return the labels as a list; None without labels. Raises TypeError, and ValueError for an empty list."""
        if self.labels is None:
            return None
        labels = strings(self.labels, "labels")
        if not labels:
            raise ValueError("labels is empty: name at least one")
        return labels


def classified(results: Iterable[BatchResult]) -> list[ClassifyResult]:
    """Return the first token of each result. Raises the error of a result that has one."""
    for result in results:
        if result.error is not None:
            raise result.error
    return [ClassifyResult(result.tokens[0] if result.tokens else Token("")) for result in results]
