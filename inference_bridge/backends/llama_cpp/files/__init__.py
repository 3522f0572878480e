# SPDX-License-Identifier: Apache-2.0
"""Reading of model files: first a trial load in a child process, then a load in a separate thread of this one."""

from __future__ import annotations
