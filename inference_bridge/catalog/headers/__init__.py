# SPDX-License-Identifier: Apache-2.0
"""Reads the descriptions of models in their files, without an engine."""

from __future__ import annotations
