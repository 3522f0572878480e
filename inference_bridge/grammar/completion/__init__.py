# SPDX-License-Identifier: Apache-2.0
"""The shortest text that completes a constrained answer, so that it fits into its budget of tokens."""

from __future__ import annotations
