# SPDX-License-Identifier: Apache-2.0
"""How llama.cpp is told to stop: it asks again and again, by a callback whose answer is yes or no.

It asks from its own threads in every step, and for every tensor that it reads. A function of Python would have to wait
each time for the interpreter's lock, 5 ms while another thread computes: 273 times for the smallest model. So the
callback is strlen, of C, and what it is given is a text that is empty or not.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# Of a progress callback's arguments, a float and the pointer, strlen takes the pointer where floats are passed in
# registers of their own (System V's ABI for x86-64, Arm's for AArch64): in others it could read anything.
_MACHINES = frozenset({"x86_64", "amd64", "aarch64", "arm64"})


def _from_c() -> Any:
    if os.name != "posix" or os.uname().machine not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return ctypes.CDLL(None).strlen


_strlen = _from_c()
IS_FREE = _strlen is not None
"""Whether asking takes no lock."""


class Flag:
    """Up or down; set from any thread, and asked for without the interpreter's lock where that can be done."""

    def __init__(self, up: bool) -> None:
        self._text = ctypes.create_string_buffer(b"!" if up else b"", 2)

    def __bool__(self) -> bool:
        return bool(self._text.value)

    def set(self, up: bool) -> None:
        self._text[0] = b"!" if up else b"\0"

    def answers(self, params: Any, name: str, data: str) -> None:
        """Have the flag be what the callback `name` of a parameter struct answers, whose data is its field `data`."""
        kind = dict(params._fields_)[name]
        if _strlen is None:
            setattr(params, name, kind(lambda *_: bool(self)))
        else:
            setattr(params, name, ctypes.cast(_strlen, kind))
            setattr(params, data, ctypes.cast(self._text, ctypes.c_void_p))


ALWAYS = Flag(True)
