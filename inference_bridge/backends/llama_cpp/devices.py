# SPDX-License-Identifier: Apache-2.0
"""List the GPUs that this build of llama.cpp can use, and select the ones for a model.

llama-cpp-python does not declare ggml's device registry, but the library that it loads contains it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from ...errors import UnsupportedError
from .library import lib, start
from .placement import Placement

_GPU_TYPES = frozenset({1, 2})
"""ggml's GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU."""

_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
"""llama.cpp's LLAMA_SPLIT_MODE_NONE and so on."""


class Device(NamedTuple):
    """A GPU: its name in llama.cpp ("CUDA0"), its description, and ggml's pointer to it."""

    name: str
    description: str
    pointer: int

    @property
    def free_bytes(self) -> int:
        """Bytes of its memory that are free at the moment."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _function("memory", None, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t))(
            self.pointer, ctypes.byref(free), ctypes.byref(total)
        )
        return free.value


def gpus() -> list[Device]:
    """Return all GPUs that llama.cpp can use, in its order. The list is empty if it was built for the CPU only."""
    start()
    count = lib._lib.ggml_backend_dev_count
    get = lib._lib.ggml_backend_dev_get
    count.restype, get.restype, get.argtypes = ctypes.c_size_t, ctypes.c_void_p, [ctypes.c_size_t]
    kind, name, description = (
        _function("type", ctypes.c_int),
        _function("name", ctypes.c_char_p),
        _function("description", ctypes.c_char_p),
    )
    pointers = [get(index) for index in range(count())]
    return [
        Device(name(pointer).decode(), (description(pointer) or b"").decode(), pointer)
        for pointer in pointers
        if kind(pointer) in _GPU_TYPES
    ]


def used(placement: Placement) -> list[Device]:
    """Return the GPUs that a model with this placement uses.

    Args:
        placement: Where the weights are stored.

    Raises:
        UnsupportedError: `device` names a GPU that llama.cpp does not find.
    """
    found = gpus()
    if not placement.device:
        return found
    by_name = {device.name.lower(): device for device in found}
    asked = [name.strip() for name in placement.device.split(",")]
    for name in asked:
        if name.lower() not in by_name:
            raise UnsupportedError(f"device={placement.device!r}", "llama_cpp", _available(found))
    return [by_name[name.lower()] for name in asked]


def free_bytes(placement: Placement) -> int:
    """Return the free memory of all GPUs that a model with this placement uses, in bytes. Raises UnsupportedError."""
    return sum(device.free_bytes for device in used(placement))


def place(params: Any, placement: Placement) -> Sequence[object]:
    """Set the devices in a model's parameters.

    Args:
        params: llama_model_params.
        placement: Where the weights are stored.

    Returns:
        The objects that `params` points to. Keep them until the model is loaded.

    Raises:
        UnsupportedError: An option is for GPUs, and llama.cpp finds none; or there are not enough GPUs for
            `tensor_split`; or `device` names an unknown one.
    """
    options = placement.gpu_options
    if not options:
        return ()
    found = used(placement)
    if not found:
        raise UnsupportedError(next(iter(options)), "llama_cpp", _available(found))
    params.split_mode = _SPLIT_MODES[placement.split_mode]
    kept: list[object] = []
    if placement.device:
        pointers = (ctypes.c_void_p * (len(found) + 1))(*[device.pointer for device in found], None)
        params.devices = ctypes.cast(pointers, ctypes.c_void_p)
        kept.append(pointers)
    if placement.tensor_split:
        if len(placement.tensor_split) > len(found):
            why = f"it has {len(placement.tensor_split)} numbers, and {len(found)} devices are used"
            raise UnsupportedError(f"tensor_split={placement.tensor_split}", "llama_cpp", why)
        shares = (ctypes.c_float * int(lib.llama_max_devices()))(*placement.tensor_split)
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        kept.append(shares)
    return kept


def _available(found: Sequence[Device]) -> str:
    """Return a sentence for an error that lists the GPUs."""
    if not found:
        return "this build of llama.cpp finds no GPU: see the GPU page of the documentation"
    return "the devices are " + ", ".join(f"{device.name} ({device.description})" for device in found)


@cache
def _function(name: str, result: Any, *more: Any) -> Any:
    """Return the C function ggml_backend_dev_<name>, whose first argument is a device."""
    prototype = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *more)
    return prototype((f"ggml_backend_dev_{name}", lib._lib))
