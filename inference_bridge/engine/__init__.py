# SPDX-License-Identifier: Apache-2.0
"""What the backends that run a model in this process share."""
