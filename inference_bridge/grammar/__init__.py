# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding: JSON Schema to grammars."""

from __future__ import annotations
