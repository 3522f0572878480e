# SPDX-License-Identifier: Apache-2.0
"""Groups of tests: prompts, streams, results, text, sampling, tools, context, batches and typed questions."""

from __future__ import annotations
