# SPDX-License-Identifier: Apache-2.0
"""OpenAI's completions and embeddings, and /v1/rerank and /tokenize, which other servers of that API also have."""

from __future__ import annotations
