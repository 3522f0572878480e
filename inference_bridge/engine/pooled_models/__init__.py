# SPDX-License-Identifier: Apache-2.0
"""Code shared by embedding models and rerankers of the in-process backends."""

from __future__ import annotations
