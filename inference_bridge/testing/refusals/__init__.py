# SPDX-License-Identifier: Apache-2.0
"""Groups of tests: wrong arguments, unsupported options and capabilities, and failures during an operation."""

from __future__ import annotations
