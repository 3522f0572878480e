# SPDX-License-Identifier: Apache-2.0
"""The commands that list, download, name and recommend models."""

from __future__ import annotations
