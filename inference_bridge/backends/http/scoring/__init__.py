# SPDX-License-Identifier: Apache-2.0
"""Operations that generate no text: labels, typed questions and documents, scored by a server."""

from __future__ import annotations
