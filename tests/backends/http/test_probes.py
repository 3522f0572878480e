# SPDX-License-Identifier: Apache-2.0
"""Capabilities of a vLLM server's model, detected with /tokenize."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_bridge.backends.http.detection.probes import probe


def server(*, images: bool = False, audios: bool = False, variable: str = "", opener: str = "") -> Any:
    """A /tokenize for a model that takes these, whose template reads `variable` and ends with `opener`."""

    def post(path: str, fields: Any) -> Any:
        assert path == "/tokenize"
        said = json.dumps(fields["messages"])
        if ("image_url" in said and not images) or ("input_audio" in said and not audios):
            return None  # it refuses
        value = fields.get("chat_template_kwargs", {}).get(variable)
        return {"tokens": [1, hash(value) % 1000], "token_strs": ["a", opener]}

    return post


@pytest.mark.parametrize(
    ("able", "capabilities", "if_asked", "by_degree"),
    [
        ({}, set(), False, False),
        ({"images": True}, {"images"}, False, False),
        ({"audios": True}, {"audios"}, False, False),
        ({"variable": "enable_thinking"}, {"reasoning"}, True, False),
        ({"variable": "thinking"}, {"reasoning"}, True, False),
        ({"variable": "reasoning_effort"}, {"reasoning"}, False, True),
        ({"opener": "<think>"}, {"reasoning"}, False, False),
    ],
)
def test_capabilities_are_detected(able: Any, capabilities: set[str], if_asked: bool, by_degree: bool) -> None:
    found = probe(server(**able))
    assert found is not None
    assert (set(found.capabilities), found.reasons_if_asked, found.reasons_by_degree) == (
        capabilities,
        if_asked,
        by_degree,
    )


def test_a_server_that_cannot_tokenize_conversations_has_unknown_capabilities() -> None:
    assert probe(lambda path, fields: None) is None
    assert probe(lambda path, fields: {"count": 3}) is None
