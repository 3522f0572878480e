# SPDX-License-Identifier: Apache-2.0
"""Groups of tests: prompts, streams, results, text, options, tools, batches and typed questions."""

from __future__ import annotations
