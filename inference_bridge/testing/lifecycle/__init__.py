# SPDX-License-Identifier: Apache-2.0
"""Groups of tests: concurrency, closing, operations during close(), processes and leaks."""

from __future__ import annotations
