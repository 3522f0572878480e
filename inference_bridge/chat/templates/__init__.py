# SPDX-License-Identifier: Apache-2.0
"""Chat templates: what each one supports, and how they are rendered in a separate process."""

from __future__ import annotations
