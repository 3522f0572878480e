# SPDX-License-Identifier: Apache-2.0
"""What model files say about their model, read without an engine."""

from __future__ import annotations
