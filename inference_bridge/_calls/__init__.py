# SPDX-License-Identifier: Apache-2.0
"""From the arguments of a call to its Request: checks, options, several answers, and the state of the model."""

from __future__ import annotations
