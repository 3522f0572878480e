# SPDX-License-Identifier: Apache-2.0
"""Which models are on this machine: search, model stores, GGUF and MLX headers, the configuration file."""

from __future__ import annotations
