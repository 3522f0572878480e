# SPDX-License-Identifier: Apache-2.0
"""Images and sounds in prompts: the projector, and what a file says of its size before it is decoded."""
