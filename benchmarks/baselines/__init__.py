# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compare with, where that is no package one could import."""
