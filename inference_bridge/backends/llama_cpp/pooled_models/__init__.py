# SPDX-License-Identifier: Apache-2.0
"""Models that pool what they compute of a text: into a vector (embeddings), or into a score (rerank)."""

from __future__ import annotations
