# SPDX-License-Identifier: Apache-2.0
"""A flag that llama.cpp reads through a callback, to stop a step or the reading of a model.

llama.cpp calls the callback from its own threads many times in a step, and after every tensor that it reads. A
callback in Python would wait for the interpreter's lock each time, up to 5 ms while another thread computes, and 273
times for the smallest model. So the callback is C's strlen, and its argument is a string that is empty or not.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# A progress callback has two arguments, a float and the pointer. strlen gets the pointer only if floats are passed in
# separate registers (System V ABI for x86-64, Arm's for AArch64). With another ABI it would read arbitrary memory.
_MACHINES = frozenset({"x86_64", "amd64", "aarch64", "arm64"})


def _from_c() -> Any:
    if os.name != "posix" or os.uname().machine not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return ctypes.CDLL(None).strlen


_strlen = _from_c()
IS_FREE = _strlen is not None
"""Whether the callback needs no interpreter lock."""


class Flag:
    """A thread-safe boolean that C code can read, on most machines without the interpreter's lock."""

    def __init__(self, up: bool) -> None:
        self._text = ctypes.create_string_buffer(b"!" if up else b"", 2)

    def __bool__(self) -> bool:
        return bool(self._text.value)

    def set(self, up: bool) -> None:
        self._text[0] = b"!" if up else b"\0"

    def answers(self, params: Any, name: str, data: str) -> None:
        """Install the flag as the callback in field `name` of a parameter struct; field `data` holds its argument."""
        kind = dict(params._fields_)[name]
        if _strlen is None:
            setattr(params, name, kind(lambda *_: bool(self)))
        else:
            setattr(params, name, ctypes.cast(_strlen, kind))
            setattr(params, data, ctypes.cast(self._text, ctypes.c_void_p))


ALWAYS = Flag(True)
