# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: longest common prefixes, and the cache on disk."""

from __future__ import annotations
