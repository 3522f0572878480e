# SPDX-License-Identifier: Apache-2.0
"""Selects the server of an operation, and limits the number of running operations."""

from __future__ import annotations
