# SPDX-License-Identifier: Apache-2.0
"""Chat templates: what each one supports, and rendering in a process of their own."""

from __future__ import annotations
