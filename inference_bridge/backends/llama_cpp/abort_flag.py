# SPDX-License-Identifier: Apache-2.0
"""A flag with which another thread stops a step of llama.cpp.

llama.cpp calls its abort callback hundreds of times in a step: 515 times for a model of 135M parameters. A callback in
Python waits for the interpreter's lock each time. While another Python thread computes, decoding with it took 1.3 to
1.8 times as long. So the callback is C's strlen, and its argument is a string. If that is not empty, the step stops.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any


class AbortFlag:
    """A thread-safe flag that C code reads without the interpreter's lock. It is not raised at first."""

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)

    def raise_(self) -> None:
        """Make the current step and all later ones fail."""
        self._text[0] = b"!"

    def install(self, params: Any) -> None:
        """Set the abort callback in llama_context_params. On Windows none is set, and a step always runs to its end.

        The flag must live as long as the context.
        """
        if os.name == "posix":
            kind = dict(params._fields_)["abort_callback"]
            params.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, kind)
            params.abort_callback_data = ctypes.cast(self._text, ctypes.c_void_p)
