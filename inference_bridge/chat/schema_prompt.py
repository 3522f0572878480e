# SPDX-License-Identifier: Apache-2.0
"""Shows a model the JSON Schema of its answer, so that the titles and descriptions in it have a meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..options import GenerateConfig, is_forced
from ..types import Message
from .generic_tools import text_before


def with_schema(messages: Sequence[Message], config: GenerateConfig, *, shown: bool = True) -> Sequence[Message]:
    """Return the conversation with the schema in its system message.

    Args:
        messages: The conversation.
        config: The options; `json_schema` and `schema_in_prompt` are read. No schema is added for a forced tool call,
            because the model is shown the tool.
        shown: Whether to add the schema if `schema_in_prompt` is not set.
    """
    wanted = shown if config.schema_in_prompt is None else config.schema_in_prompt
    if config.json_schema is None or not wanted or is_forced(config.tool_choice):
        return messages
    schema = json.dumps(config.json_schema, ensure_ascii=False)
    text = f"# Output format\n\nAnswer with JSON that satisfies this JSON Schema:\n{schema}"
    first = messages[0].role if messages else "system"
    return text_before(messages, text, first if first == "developer" else "system")
