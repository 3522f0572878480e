# SPDX-License-Identifier: Apache-2.0
"""Operations that generate no text: a server scores labels, typed questions and documents."""

from __future__ import annotations
