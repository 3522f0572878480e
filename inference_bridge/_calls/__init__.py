# SPDX-License-Identifier: Apache-2.0
"""Turns the arguments of a call into its Request: checks, options, several answers, and the state of the model."""

from __future__ import annotations
