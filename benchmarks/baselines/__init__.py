# SPDX-License-Identifier: Apache-2.0
"""Rivals of the benchmarks that are not installed packages, or that need a separate process."""
