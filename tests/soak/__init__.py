# SPDX-License-Identifier: Apache-2.0
"""Programs that try an engine for minutes, and print figures: `python -m tests.soak` lists them."""
