# SPDX-License-Identifier: Apache-2.0
"""Finds the AMD GPUs of this machine, and those of them that may be used.

They are read from the topology of the kernel's compute driver (KFD) in sysfs, as in ROCm's own runtime. The files are
described in https://docs.kernel.org/gpu/amdgpu/ and in the topology code of rocm-smi and ROCR-Runtime. ROCm's libraries
are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_INTEGRATED = frozenset(
    # The targets of APUs in LLVM's table of AMD processors (AMDGPUUsage), in the form of gfx_target_version:
    # major * 10000 + minor * 100 + stepping. gfx942, which is an APU or a separate accelerator, is left out.
    {70000, 70005, 80001, 80100, 90002, 90009, 90012, 100103, 100303, 100305, 100306, 100307}
    | {110003, 110500, 110501, 110502, 110503}
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """An AMD GPU.

    Attributes:
        index: Its index in ROCm's runtime, which ROCR_VISIBLE_DEVICES uses.
        name: Such as "gfx1100".
        uuid: Such as "GPU-73e1f3c2d5a4b690"; "" if it has none.
        integrated: Whether it is part of the processor, and shares the machine's memory.
        vram_total: Bytes of its memory.
        gpu_id: Its number in the driver.
        device: Its directory in sysfs, or None.
    """

    index: int
    name: str
    uuid: str
    integrated: bool
    vram_total: int
    gpu_id: int
    device: Path | None

    def vram_used(self) -> int:
        """Return the bytes of its memory that all processes use. 0: the driver does not state it."""
        return 0 if self.device is None else number_in(self.device / "mem_info_vram_used")


def gpus(root: Path = Path("/")) -> list[Gpu]:
    """Return the GPUs that the driver shows to this user.

    Args:
        root: The root of the file system.

    Raises:
        OSError: The driver's files can't be read.
    """
    found: list[Gpu] = []
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    for node in sorted(nodes.iterdir(), key=lambda path: int(path.name)):
        try:
            gpu_id = int((node / "gpu_id").read_text())
            properties = _properties(node / "properties")
        except (PermissionError, ValueError):  # this container may not use it, or the file is damaged
            continue
        if not gpu_id or not properties.get("simd_count"):
            continue
        version = properties.get("gfx_target_version", 0)
        minor = properties.get("drm_render_minor", 0)
        device = root / f"sys/class/drm/renderD{minor}/device"
        unique = properties.get("unique_id", 0)
        found.append(
            Gpu(
                index=len(found),
                name=f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}",
                uuid=f"GPU-{unique:016x}" if unique else "",
                integrated=version in _INTEGRATED or properties.get("cpu_cores_count", 0) > 0,
                vram_total=number_in(device / "mem_info_vram_total") or _local_memory(node),
                gpu_id=gpu_id,
                device=device if device.exists() else None,
            )
        )
    return found


def _properties(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _local_memory(node: Path) -> int:
    """Return the bytes of the node's frame buffer: heap type 1 is visible to the processor, type 2 is not."""
    total = 0
    for bank in (node / "mem_banks").glob("*/properties"):
        properties = _properties(bank)
        if properties.get("heap_type") in (1, 2):
            total += properties.get("size_in_bytes", 0)
    return total


def number_in(path: Path) -> int:
    """Return the number in a file of the driver. 0: it can't be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def named(found: list[Gpu], names: str) -> list[Gpu]:
    """Return the GPUs that a list in the form of ROCR_VISIBLE_DEVICES names.

    As in ROCm, the list ends at the first name of no GPU.

    Args:
        found: All GPUs.
        names: Indices and UUIDs, separated by commas.
    """
    chosen: list[Gpu] = []
    for name in (part.strip() for part in names.split(",")):
        match = [gpu for gpu in found if name == str(gpu.index) or (gpu.uuid and name.lower() == gpu.uuid.lower())]
        if not match:
            break
        chosen += match
    return chosen


def allowed(found: list[Gpu], environment: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """Return the GPUs that may be used, and the environment variable that selects them.

    If no variable is set, integrated GPUs are left out: a server that puts layers on an integrated GPU and on a
    separate one crashes. HIP_VISIBLE_DEVICES, or else CUDA_VISIBLE_DEVICES, selects among the GPUs that
    ROCR_VISIBLE_DEVICES leaves.

    Args:
        found: All GPUs.
        environment: The environment variables.

    Returns:
        The GPUs, and the name of the last variable that selects among them; "" if none is set.
    """
    variable = ""
    if "ROCR_VISIBLE_DEVICES" in environment:
        variable = "ROCR_VISIBLE_DEVICES"
        found = named(found, environment[variable])
    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if name in environment:
            variable = name
            by_place = {str(place): gpu for place, gpu in enumerate(found)}
            wanted = [part.strip() for part in environment[name].split(",")]
            found = [gpu for part in wanted for gpu in ([by_place[part]] if part in by_place else named(found, part))]
            break
    return (found, variable) if variable else ([gpu for gpu in found if not gpu.integrated], "")
