# SPDX-License-Identifier: Apache-2.0
"""Which server an operation goes to, and how many operations are in flight."""

from __future__ import annotations
