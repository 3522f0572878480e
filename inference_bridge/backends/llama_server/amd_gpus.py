# SPDX-License-Identifier: Apache-2.0
"""Which AMD GPUs there are, and which of them may be used.

They are found in the topology that the kernel's compute driver (KFD) shows in sysfs, as ROCm's own runtime
does: https://docs.kernel.org/gpu/amdgpu/ and rocm-smi's and ROCR-Runtime's topology code describe the files.
Nothing here needs ROCm's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_INTEGRATED = frozenset(
    # The targets of APUs in LLVM's table of AMD processors (AMDGPUUsage), as gfx_target_version has them:
    # major * 10000 + minor * 100 + stepping. gfx942, an accelerator that exists as both, is not among them.
    {70000, 70005, 80001, 80100, 90002, 90009, 90012, 100103, 100303, 100305, 100306, 100307}
    | {110003, 110500, 110501, 110502, 110503}
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """An AMD GPU.

    index        its place in the order of ROCm's runtime, which ROCR_VISIBLE_DEVICES counts by
    name         as "gfx1100"
    uuid         as "GPU-73e1f3c2d5a4b690", "" where it has none
    integrated   part of the processor, with a share of the machine's memory
    vram_total   bytes
    """

    index: int
    name: str
    uuid: str
    integrated: bool
    vram_total: int
    gpu_id: int
    device: Path | None

    def vram_used(self) -> int:
        """Bytes of its memory in use by anybody; 0 where the driver does not say."""
        return 0 if self.device is None else number_in(self.device / "mem_info_vram_used")


def gpus(root: Path = Path("/")) -> list[Gpu]:
    """The GPUs that the driver shows to this user. Raises OSError where its files can't be read."""
    found: list[Gpu] = []
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    for node in sorted(nodes.iterdir(), key=lambda path: int(path.name)):
        try:
            gpu_id = int((node / "gpu_id").read_text())
            properties = _properties(node / "properties")
        except (PermissionError, ValueError):  # withheld from this container, or damaged
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
    """Bytes of the node's banks of frame buffer (heap types 1, seen by the processor, and 2, not)."""
    total = 0
    for bank in (node / "mem_banks").glob("*/properties"):
        properties = _properties(bank)
        if properties.get("heap_type") in (1, 2):
            total += properties.get("size_in_bytes", 0)
    return total


def number_in(path: Path) -> int:
    """The number that a file of the driver's holds; 0 where it does not say."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def named(found: list[Gpu], names: str) -> list[Gpu]:
    """Those of `found` that a list as in ROCR_VISIBLE_DEVICES names, up to the first that is none, as ROCm has it."""
    chosen: list[Gpu] = []
    for name in (part.strip() for part in names.split(",")):
        match = [gpu for gpu in found if name == str(gpu.index) or (gpu.uuid and name.lower() == gpu.uuid.lower())]
        if not match:
            break
        chosen += match
    return chosen


def allowed(found: list[Gpu], environment: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """The GPUs that may be used, and the variable that says so: "" where none does.

    Without one the integrated are left out: they come by accident, and a server that puts layers on one
    beside a real card crashes. HIP_VISIBLE_DEVICES, or else CUDA_VISIBLE_DEVICES, counts within what
    ROCR_VISIBLE_DEVICES leaves.
    """
    said = ""
    if "ROCR_VISIBLE_DEVICES" in environment:
        said = "ROCR_VISIBLE_DEVICES"
        found = named(found, environment[said])
    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if name in environment:
            said = name
            by_place = {str(place): gpu for place, gpu in enumerate(found)}
            wanted = [part.strip() for part in environment[name].split(",")]
            found = [gpu for part in wanted for gpu in ([by_place[part]] if part in by_place else named(found, part))]
            break
    return (found, said) if said else ([gpu for gpu in found if not gpu.integrated], "")
