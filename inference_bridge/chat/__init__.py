# SPDX-License-Identifier: Apache-2.0
"""Messages to prompts, and generated text to messages: templates, reasoning, tool calls."""

from __future__ import annotations
