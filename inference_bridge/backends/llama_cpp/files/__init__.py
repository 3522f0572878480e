# SPDX-License-Identifier: Apache-2.0
"""Model files: read in a thread of their own, after a child process has loaded them once."""

from __future__ import annotations
