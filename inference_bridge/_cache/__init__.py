# SPDX-License-Identifier: Apache-2.0
"""What is remembered in this user's cache directory: searches for models, and the models in installed packages."""

from __future__ import annotations
