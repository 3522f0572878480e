# SPDX-License-Identifier: Apache-2.0
"""Images and sounds in prompts: the projector, and checks of a file's size before it is decoded."""
