# SPDX-License-Identifier: Apache-2.0
"""llama_server on an AMD GPU: whether this machine has one, and how the server is limited to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...availability import Availability
from ...errors import BackendUnavailableError, UnsupportedError
from .backend import LlamaServerBackend

if TYPE_CHECKING:
    from ...options import LoadConfig
    from .amd_gpus import Gpu

_DRIVER = "Install the amdgpu driver: https://rocm.docs.amd.com"


class RocmBackend(LlamaServerBackend):
    """The backend.

    Args:
        binary: The llama-server to run. None: see `program`.
        root: The root of the file system, in which the driver's files are.
    """

    name = "rocm"
    load_options = LlamaServerBackend.load_options - {"split_mode", "tensor_split"}  # a model is on one GPU
    named_by = ("rocm_llama_server", "ROCM_LLAMA_SERVER_PATH", "llama_server", "LLAMA_SERVER_PATH")

    def __init__(self, binary: str | os.PathLike[str] | None = None, *, root: str | os.PathLike[str] = "/") -> None:
        super().__init__(binary)
        self._root = Path(root)

    def availability(self) -> Availability:
        device = self._root / "dev/kfd"
        if not device.exists():
            return Availability(False, "no AMD GPU with the ROCm driver was found: /dev/kfd is missing", _DRIVER)
        if not os.access(device, os.R_OK | os.W_OK):
            return Availability(
                False,
                "this user may not open /dev/kfd",
                "Run: sudo usermod -aG render,video $USER, and log in again (in a container: --device /dev/kfd)",
            )
        from . import amd_gpus  # imported only here, because few machines have the driver

        try:
            found = amd_gpus.gpus(self._root)
        except OSError as error:
            reason = f"the GPUs can't be listed: {error.filename}: {error.strerror or error}"
            return Availability(False, reason, _DRIVER)
        usable, variable = amd_gpus.allowed(found, os.environ)
        if not usable:
            return _without_gpu(found, variable)
        return super().availability()

    def wheel(self) -> tuple[str, ...] | None:
        return None  # the wheel that is usually installed supports only the CPU

    def _without_program(self) -> Availability:
        return Availability(
            False,
            "no llama-server was found in PATH, and ROCM_LLAMA_SERVER_PATH is not set",
            "Build or install llama.cpp with HIP, and set ROCM_LLAMA_SERVER_PATH to its llama-server",
        )

    # ------------------------------------------------ the device

    def gpu(self, config: LoadConfig) -> Gpu:
        """Return the GPU for a model: the one that `device` names, else the one with the most memory.

        Args:
            config: The load options.

        Raises:
            UnsupportedError: `device` names no GPU.
            BackendUnavailableError: No GPU may be used.
        """
        from . import amd_gpus

        found = amd_gpus.gpus(self._root)
        if config.device is not None:
            # Named GPUs may be integrated, because they were chosen explicitly.
            for gpu in amd_gpus.named(found, config.device):
                return gpu
            known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found)
            raise UnsupportedError(
                f"device={config.device!r}", self.name, f"it is not the index or UUID of a GPU. Found: {known}"
            )
        usable, variable = amd_gpus.allowed(found, os.environ)
        if not usable:
            raise BackendUnavailableError(self.name, _without_gpu(found, variable))
        return max(usable, key=lambda gpu: gpu.vram_total)

    def environment(self, config: LoadConfig) -> dict[str, str | None]:
        # ROCm's runtime shows only this GPU, so its number in HIP is 0. The other variables would number it in the same
        # way, so they are removed.
        return {
            "ROCR_VISIBLE_DEVICES": str(self.gpu(config).index),
            "HIP_VISIBLE_DEVICES": "0",
            "CUDA_VISIBLE_DEVICES": None,
            "GPU_DEVICE_ORDINAL": None,
        }

    def device_arguments(self, config: LoadConfig) -> list[str]:
        return []  # the server sees only one GPU

    def memory(self, config: LoadConfig) -> int:
        gpu = self.gpu(config)
        return max(gpu.vram_total - gpu.vram_used(), 0)

    def memory_meter(self, config: LoadConfig) -> Callable[[int], int]:
        from .amd_gpus import number_in

        gpu, processes = self.gpu(config), self._root / "sys/class/kfd/kfd/proc"

        def in_use(pid: int) -> int:
            """Return the bytes that the process uses, if the driver counts them, else those of all processes."""
            return number_in(processes / str(pid) / f"vram_{gpu.gpu_id}") or gpu.vram_used()

        return in_use


def _without_gpu(found: list[Gpu], variable: str) -> Availability:
    if variable:
        why = f"{variable} excludes all {len(found)} GPUs"
        return Availability(False, why, f"Change or unset {variable}")
    if found:
        names = ", ".join(gpu.name for gpu in found)
        return Availability(
            False,
            f"the only AMD GPU is integrated ({names})",
            f"To use it nevertheless, set ROCR_VISIBLE_DEVICES={found[0].index}",
        )
    return Availability(False, "ROCm's driver shows no GPU to this user", _DRIVER)
