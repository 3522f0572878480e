# SPDX-License-Identifier: Apache-2.0
"""Detects which server answers at an address, and what it supports."""

from __future__ import annotations
