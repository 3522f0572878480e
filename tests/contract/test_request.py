# SPDX-License-Identifier: Apache-2.0
"""The time of a request."""

from __future__ import annotations

import pytest

from inference_bridge import GenerateConfig
from inference_bridge.request import Request


def test_seconds_spent_before_the_request_was_made_count() -> None:
    request = Request("generate", GenerateConfig(timeout=10.0), spent=4.0)
    request.begin()
    assert request.deadline is not None
    assert request.deadline - request.started == pytest.approx(6.0)


def test_a_request_whose_time_was_spent_before_it_was_made_is_over_at_once() -> None:
    request = Request("generate", GenerateConfig(timeout=10.0), spent=11.0)
    request.begin()
    assert request.remaining() == 0.0
