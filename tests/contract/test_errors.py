# SPDX-License-Identifier: Apache-2.0
"""Error messages contain no control characters of terminals."""

from __future__ import annotations

import pytest

from inference_bridge.chat.templates.template import ChatTemplateError
from inference_bridge.errors import ModelLoadError, NoBackendAvailableError, ServerError, printable

HOSTILE = "\x1b]0;title\x07 \x9b31m \r \u202e \ud800 \x00"


@pytest.mark.parametrize("kind", [ModelLoadError, ServerError, ChatTemplateError])
def test_the_text_of_an_error_is_printable(kind: type[Exception]) -> None:
    shown = str(kind(f"a\n\tb {HOSTILE}"))
    assert shown.startswith("a\n\tb \ufffd]0;title\ufffd ")
    assert all(one.isprintable() for one in shown if one not in "\n\t")
    assert HOSTILE not in f"{kind(HOSTILE)!r}"


def test_an_error_of_many_lines_is_printable() -> None:
    assert "\x1b" not in str(NoBackendAvailableError("none\x1b", {"a": "b\x1b"}))


def test_printable_text_is_not_changed() -> None:
    text = "Größe 5\u00a0kB — 模型 😀\n\tnext"
    assert printable(text) == text
