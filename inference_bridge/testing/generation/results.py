# SPDX-License-Identifier: Apache-2.0
"""Metrics and finish reason of an operation, which other operations do not change (behaviour 3)."""

from __future__ import annotations

from typing import Any, ClassVar

from ...interfaces import StatsModel
from ...model import TextModel
from ...types import GenerateMetrics, GenerateResult
from ..base import Contract
from ..callers import Sync


class Results(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (3,)

    def test_metrics_add_up(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.prompt, **self.greedily(model))
        tokens = list(stream)
        metrics = stream.metrics
        assert isinstance(metrics, GenerateMetrics)
        assert 0 <= metrics.cached_tokens <= metrics.prompt_tokens
        assert metrics.generated_tokens > 0
        assert 0 < metrics.time_to_first_token <= metrics.total_seconds
        assert 0 <= metrics.prefill_seconds <= metrics.total_seconds
        assert 0 <= metrics.decode_seconds <= metrics.total_seconds
        assert metrics.active_memory_bytes >= 0
        if "token_ids" in model.capabilities:
            ended = 1 if stream.finish_reason == "stop" else 0  # an end token is counted, but not yielded
            assert metrics.generated_tokens == len(tokens) + ended
        assert stream.result().metrics == metrics
        assert model.metrics == metrics, "model.metrics must be the metrics of the operation that finished last"

    def test_why_it_ended_is_told_at_the_end(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.prompt, **self.greedily(model))
        assert stream.finish_reason is None
        next(stream)
        assert stream.finish_reason is None
        result = stream.result()
        assert stream.finish_reason == result.finish_reason == "length"
        assert stream.tool_calls == result.tool_calls == ()

    def test_max_tokens_is_the_limit(self, model: TextModel, caller: Sync) -> None:
        whole = self.alone(model)
        for limit in (1, 2, self.length // 2):
            result = caller.generate(model, self.prompt, **self.greedily(model, max_tokens=limit)).result()
            assert result.finish_reason == "length"
            assert 1 <= len(result.tokens) <= limit
            if "token_ids" in model.capabilities:
                assert len(result.tokens) == result.metrics.generated_tokens == limit
            if self.repeats:
                assert whole.text.startswith(result.text)

    def test_concurrent_callers_see_their_own(self, model: TextModel, caller: Sync) -> None:
        cases = self._different_operations(model)
        alone = [caller.generate(model, prompt, **options).result() for prompt, options in cases]
        together = caller.together(
            [lambda own, one=one: own.generate(model, one[0], **one[1]) for one in cases]  # type: ignore[misc]
        )
        assert [self._comparable(result) for result in together] == [self._comparable(result) for result in alone]

    def test_interleaved_streams_see_their_own(self, model: TextModel, caller: Sync) -> None:
        cases = self._different_operations(model)[: max(2, self.slots(model))]
        alone = [caller.generate(model, prompt, **options).result() for prompt, options in cases]
        if self.slots(model) < len(cases):
            cases, alone = cases[:1], alone[:1]
        streams = [caller.generate(model, prompt, **options) for prompt, options in cases]
        running = list(streams)
        while running:
            running = [stream for stream in running if next(stream, None) is not None]
        for stream, result in zip(streams, alone, strict=True):
            assert self._comparable(stream.result()) == self._comparable(result)
            assert stream.metrics.prompt_tokens == result.metrics.prompt_tokens
            assert stream.finish_reason == result.finish_reason

    def test_stats_count_every_operation(self, model: TextModel) -> None:
        if not isinstance(model, StatsModel):
            assert "stats" not in model.capabilities
            return
        before = model.stats()
        result = model.generate(self.prompt, **self.greedily(model)).result()
        with model.generate(self.endless, max_tokens=-1) as stream:
            next(stream)
        after = model.stats()
        assert after.operations == before.operations + 2
        assert after.finished["length"] == before.finished.get("length", 0) + 1
        assert after.finished["cancelled"] == before.finished.get("cancelled", 0) + 1
        assert after.generated_tokens >= before.generated_tokens + result.metrics.generated_tokens + 1
        assert after.prompt_tokens >= before.prompt_tokens + result.metrics.prompt_tokens
        assert after.total_seconds.count == after.operations
        assert after.total_seconds.percentile(100) >= result.metrics.total_seconds

    def _different_operations(self, model: TextModel) -> list[tuple[str, dict[str, Any]]]:
        """Return operations, as prompt and options, whose metrics and finish reasons differ."""
        cases = []
        for number in range(min(self.length, 8)):
            prompt, options = f"{self.prompt} " * (1 + number % 4), self.greedily(model, max_tokens=1 + number)
            if number % 2 and self.honours(model, "stop"):
                options["stop"] = model.generate(prompt, **options).text()[1:3] or None
            cases.append((prompt, options))
        return cases

    def _comparable(self, result: GenerateResult | Exception) -> object:
        """Return the parts of a result that must be the same each time. If the operation failed, raise its error."""
        if isinstance(result, Exception):
            raise result
        summary = (
            result.finish_reason,
            result.metrics.prompt_tokens,
            result.metrics.generated_tokens,
            len(result.tokens),
        )
        return (*summary, result.text) if self.repeats else summary
