# SPDX-License-Identifier: Apache-2.0
"""OpenAI's /v1/responses, with answers kept in memory for `previous_response_id`."""

from __future__ import annotations
