# SPDX-License-Identifier: Apache-2.0
"""LangChain chat models and embeddings over `TextModel`: planned, nothing is exported yet."""

from __future__ import annotations
