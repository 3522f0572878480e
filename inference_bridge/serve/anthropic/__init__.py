# SPDX-License-Identifier: Apache-2.0
"""Anthropic's API: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations
