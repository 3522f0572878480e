# SPDX-License-Identifier: Apache-2.0
"""Groups of tests: wrong arguments, unsupported options and failures during an operation."""

from __future__ import annotations
