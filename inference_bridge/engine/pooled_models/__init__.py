# SPDX-License-Identifier: Apache-2.0
"""Models that give a vector or a score for each text: what the engines' embedding models and rerankers share."""

from __future__ import annotations
