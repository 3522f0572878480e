# SPDX-License-Identifier: Apache-2.0
"""Concurrency shared by every backend: mailboxes, threads for synchronous engines, cooperative event loops."""

from __future__ import annotations
