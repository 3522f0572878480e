# SPDX-License-Identifier: Apache-2.0
"""Typed questions over HTTP: the System One API (/v1/systemone) and OpenAI's decisions (/v1/decisions)."""

from __future__ import annotations
