# SPDX-License-Identifier: Apache-2.0
"""Code shared by the backends that run a model in this process."""
