# SPDX-License-Identifier: Apache-2.0
"""OpenAI's completions and embeddings, and the routes that other servers of that API add: /v1/rerank and /tokenize."""

from __future__ import annotations
