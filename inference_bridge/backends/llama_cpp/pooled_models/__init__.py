# SPDX-License-Identifier: Apache-2.0
"""Models that pool the hidden states of a text into one vector (embeddings) or one score (reranking)."""

from __future__ import annotations
