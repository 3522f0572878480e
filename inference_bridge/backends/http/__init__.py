# SPDX-License-Identifier: Apache-2.0
"""The `http` backend: llama-server and OpenAI-compatible servers on any machine."""

from __future__ import annotations
