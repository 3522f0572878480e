# SPDX-License-Identifier: Apache-2.0
"""What is sent to servers and how their answers are read."""

from __future__ import annotations
