# SPDX-License-Identifier: Apache-2.0
"""The contents of this user's cache directory: results of model searches, and the models in installed packages."""

from __future__ import annotations
