# SPDX-License-Identifier: Apache-2.0
"""The `llama_cpp` backend: llama.cpp in this process."""

from __future__ import annotations
