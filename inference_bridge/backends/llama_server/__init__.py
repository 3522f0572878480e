# SPDX-License-Identifier: Apache-2.0
"""The `llama_server` and `rocm` backends: a managed llama-server process."""

from __future__ import annotations
