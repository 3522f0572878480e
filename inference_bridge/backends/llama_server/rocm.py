# SPDX-License-Identifier: Apache-2.0
"""llama_server on an AMD GPU: whether there is one, and how its server is kept to it."""

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
    """`root`: where the file system begins; `binary`: the llama-server, in place of the one that would be found."""

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
        from . import amd_gpus  # few machines come this far

        try:
            found = amd_gpus.gpus(self._root)
        except OSError as error:
            reason = f"the GPUs can't be listed: {error.filename}: {error.strerror or error}"
            return Availability(False, reason, _DRIVER)
        usable, said = amd_gpus.allowed(found, os.environ)
        if not usable:
            return _without_gpu(found, said)
        return super().availability()

    def wheel(self) -> tuple[str, ...] | None:
        return None  # the one that is usually installed knows nothing but the CPU

    def _without_program(self) -> Availability:
        return Availability(
            False,
            "no llama-server was found in PATH, and ROCM_LLAMA_SERVER_PATH names none",
            "Build or install llama.cpp with HIP, and set ROCM_LLAMA_SERVER_PATH to its llama-server",
        )

    # ------------------------------------------------ the device

    def gpu(self, config: LoadConfig) -> Gpu:
        """The GPU for a model: that which `device` names, else the one with most memory.

        Raises UnsupportedError and BackendUnavailableError.
        """
        from . import amd_gpus

        found = amd_gpus.gpus(self._root)
        if config.device is not None:
            # A GPU that is named may be integrated: it was chosen on purpose.
            for gpu in amd_gpus.named(found, config.device):
                return gpu
            there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found)
            raise UnsupportedError(
                f"device={config.device!r}", self.name, f"it is not the index or UUID of a GPU. Found: {there}"
            )
        usable, said = amd_gpus.allowed(found, os.environ)
        if not usable:
            raise BackendUnavailableError(self.name, _without_gpu(found, said))
        return max(usable, key=lambda gpu: gpu.vram_total)

    def environment(self, config: LoadConfig) -> dict[str, str | None]:
        # The runtime shows one GPU, so it is number 0 to HIP. ROCm's other variables count among those too.
        return {
            "ROCR_VISIBLE_DEVICES": str(self.gpu(config).index),
            "HIP_VISIBLE_DEVICES": "0",
            "CUDA_VISIBLE_DEVICES": None,
            "GPU_DEVICE_ORDINAL": None,
        }

    def device_arguments(self, config: LoadConfig) -> list[str]:
        return []  # the server sees no other

    def memory(self, config: LoadConfig) -> int:
        gpu = self.gpu(config)
        return max(gpu.vram_total - gpu.vram_used(), 0)

    def memory_meter(self, config: LoadConfig) -> Callable[[int], int]:
        from .amd_gpus import number_in

        gpu, processes = self.gpu(config), self._root / "sys/class/kfd/kfd/proc"

        def in_use(pid: int) -> int:
            """The process's own where the driver counts it, else the whole GPU's."""
            return number_in(processes / str(pid) / f"vram_{gpu.gpu_id}") or gpu.vram_used()

        return in_use


def _without_gpu(found: list[Gpu], said: str) -> Availability:
    if said:
        return Availability(False, f"{said} leaves no GPU of the {len(found)} there are", f"Change or unset {said}")
    if found:
        names = ", ".join(gpu.name for gpu in found)
        return Availability(
            False,
            f"the only AMD GPU is integrated ({names})",
            f"To use it all the same, set ROCR_VISIBLE_DEVICES={found[0].index}",
        )
    return Availability(False, "ROCm's driver shows no GPU to this user", _DRIVER)
