# SPDX-License-Identifier: Apache-2.0
"""Connections to servers: sockets, requests, retries, events, and errors."""

from __future__ import annotations
