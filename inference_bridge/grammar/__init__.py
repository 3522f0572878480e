# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding: JSON Schemas, regular expressions and lists of texts become grammars."""

from __future__ import annotations
