# SPDX-License-Identifier: Apache-2.0
"""The rocm backend: which GPU is chosen, on trees as the kernel's driver shows them, and a real server under it.

No test needs an AMD GPU, and none can show that one computes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_server.amd_gpus import allowed, gpus
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.llama_server.rocm import RocmBackend

from ...parts.servers.managed import REAL, script, short_directory

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """A GPU's files as the driver shows them. The values are those of real cards."""

    target: int
    vram: int
    unique_id: int = 0
    cpu_cores: int = 0


RX_7900_XTX = Card(110000, 24 * GIB, 0x73E1F3C2D5A4B690)
RX_6800 = Card(100300, 16 * GIB, 0x4DD6C1A2B3E4F506)
RAPHAEL = Card(100306, GIB // 2)  # in a Ryzen 7000 desktop processor
STRIX_HALO = Card(110501, 96 * GIB)
RAVEN = Card(90002, GIB, cpu_cores=8)


def tree(root: Path, *cards: Card) -> Path:
    """The files under /sys and /dev of a machine with these cards behind its processor."""
    (root / "dev").mkdir(parents=True)
    (root / "dev/kfd").touch()
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    _node(nodes / "0", 0, {"cpu_cores_count": 16, "simd_count": 0, "drm_render_minor": 0, "gfx_target_version": 0})
    for number, card in enumerate(cards, 1):
        minor = 127 + number
        properties = {
            "cpu_cores_count": card.cpu_cores,
            "simd_count": 192,
            "mem_banks_count": 1,
            "gfx_target_version": card.target,
            "vendor_id": 4098,
            "drm_render_minor": minor,
            "unique_id": card.unique_id,
        }
        _node(nodes / str(number), 1000 + number, properties)
        for place, (heap, size) in enumerate(
            ((1, card.vram), (4, 65536))
        ):  # the frame buffer, and memory shared within groups
            bank = nodes / str(number) / f"mem_banks/{place}"
            bank.mkdir(parents=True)
            (bank / "properties").write_text(f"heap_type {heap}\nsize_in_bytes {size}\nflags 0\nwidth 384\n")
        device = root / f"sys/class/drm/renderD{minor}/device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text(f"{card.vram}\n")
        (device / "mem_info_vram_used").write_text(f"{GIB}\n")
    return root


def _node(path: Path, gpu_id: int, properties: dict[str, int]) -> None:
    path.mkdir(parents=True)
    (path / "gpu_id").write_text(f"{gpu_id}\n")
    (path / "name").write_text("\n")
    (path / "properties").write_text("".join(f"{name} {value}\n" for name, value in properties.items()))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def backend(tmp_path: Path) -> Callable[..., RocmBackend]:
    """The backend on a machine with these cards, and the real server for a binary."""

    def made(*cards: Card) -> RocmBackend:
        return RocmBackend(script(tmp_path / "llama-server", REAL), root=tree(tmp_path / "root", *cards))

    return made


# ---------------------------------------------------------------- which GPU


def test_properties_of_a_gpu(tmp_path: Path) -> None:
    first, second = gpus(tree(tmp_path, RAPHAEL, RX_7900_XTX))
    assert (first.index, first.name, first.uuid, first.integrated) == (0, "gfx1036", "", True)
    assert (second.index, second.name, second.integrated) == (1, "gfx1100", False)
    assert (second.uuid, second.vram_total, second.vram_used()) == ("GPU-73e1f3c2d5a4b690", 24 * GIB, GIB)


@pytest.mark.parametrize(
    ("cards", "chosen"),
    [
        ([RX_7900_XTX], 0),
        ([RAPHAEL, RX_7900_XTX], 1),
        ([RX_6800, RAPHAEL], 0),
        ([RX_6800, RX_7900_XTX], 1),
        ([RX_7900_XTX, RX_6800], 0),
        ([STRIX_HALO, RX_6800], 1),  # though it has more memory
        ([RAVEN, RX_6800], 1),
    ],
    ids=lambda value: "+".join(f"{card.target}" for card in value) if isinstance(value, list) else "",
)
def test_the_one_with_most_memory_and_never_an_integrated_one(
    cards: Sequence[Card], chosen: int, backend: Callable[..., RocmBackend]
) -> None:
    made = backend(*cards)
    assert made.availability().ok
    environment = made.environment(LoadConfig())
    assert environment["ROCR_VISIBLE_DEVICES"] == str(chosen)
    assert environment["HIP_VISIBLE_DEVICES"] == "0"  # of those that the runtime shows
    assert environment["CUDA_VISIBLE_DEVICES"] is None  # which HIP obeys as well


def test_memory_of_a_card_whose_driver_does_not_report_it(tmp_path: Path) -> None:
    root = tree(tmp_path, RX_6800)
    for path in root.glob("sys/class/drm/*/device/*"):
        path.unlink()
    (gpu,) = gpus(root)
    assert (gpu.vram_total, gpu.vram_used()) == (16 * GIB, 0)


def test_an_inaccessible_node_is_not_a_gpu(tmp_path: Path) -> None:
    root = tree(tmp_path, RX_6800, RX_7900_XTX)
    (root / "sys/class/kfd/kfd/topology/nodes/1/gpu_id").write_text("")  # as in a container without it
    (gpu,) = gpus(root)
    assert (gpu.index, gpu.name) == (0, "gfx1100")


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, ["gfx1030", "gfx1100"]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, ["gfx1030"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-73E1F3C2D5A4B690,1"}, ["gfx1100", "gfx1030"]),
        ({"ROCR_VISIBLE_DEVICES": "0"}, ["gfx1036"]),  # named, so no accident
        ({"ROCR_VISIBLE_DEVICES": "2,9,1"}, ["gfx1100"]),  # GPUs after an invalid entry are not visible
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": "2"}, ["gfx1100"]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["gfx1030"]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, ["gfx1100"]),
    ],
)
def test_variables_that_say_which_may_be_used(variables: dict[str, str], names: list[str], tmp_path: Path) -> None:
    found = gpus(tree(tmp_path, RAPHAEL, RX_6800, RX_7900_XTX))
    assert [gpu.name for gpu in allowed(found, variables)[0]] == names


@pytest.mark.parametrize("device", ["0", "GPU-4dd6c1a2b3e4f506"])
def test_the_device_option_names_one(device: str, backend: Callable[..., RocmBackend]) -> None:
    made = backend(RX_6800, RX_7900_XTX)
    assert made.environment(LoadConfig(device=device))["ROCR_VISIBLE_DEVICES"] == "0"
    with pytest.raises(
        ib.UnsupportedError, match=r"device='7': it is not the index or UUID of a GPU. Found: 0 \(gfx1030\)"
    ):
        made.environment(LoadConfig(device="7"))


def test_the_context_length_fits_into_the_memory_of_the_card(
    demo_model_path: Path, backend: Callable[..., RocmBackend]
) -> None:
    made = backend(Card(100300, GIB + (600 << 20)))
    model = made.load_model(str(demo_model_path), LoadConfig())
    # 600 MiB are free; the weights take 94, and 23,040 bytes a token 70 % of the rest for four slots.
    assert model.info.context_length == 3840
    model.close()


# ---------------------------------------------------------------- availability


def test_no_driver(tmp_path: Path) -> None:
    availability = RocmBackend(root=tmp_path).availability()
    assert not availability
    assert availability.reason == "no AMD GPU with the ROCm driver was found: /dev/kfd is missing"
    assert "amdgpu driver" in availability.hint


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, RX_6800)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "kfd")  # root may open anything
    availability = RocmBackend(root=root).availability()
    assert availability.reason == "this user may not open /dev/kfd"
    assert "usermod -aG render,video" in availability.hint


@pytest.mark.parametrize(
    ("cards", "variables", "reason", "hint"),
    [
        ((), {}, "ROCm's driver shows no GPU to this user", "amdgpu"),
        ((RAPHAEL,), {}, r"the only AMD GPU is integrated \(gfx1036\)", "set ROCR_VISIBLE_DEVICES=0"),
        ((RX_6800,), {"HIP_VISIBLE_DEVICES": "-1"}, "HIP_VISIBLE_DEVICES excludes all 1 GPUs", "unset"),
    ],
    ids=["none", "integrated", "hidden"],
)
def test_no_gpu(
    cards: Sequence[Card],
    variables: dict[str, str],
    reason: str,
    hint: str,
    demo_model_path: Path,
    backend: Callable[..., RocmBackend],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = backend(*cards)
    with pytest.raises(ib.BackendUnavailableError, match=reason) as caught:
        made.load_model(str(demo_model_path), LoadConfig())
    assert hint in made.availability().hint
    assert hint in str(caught.value)
    with pytest.raises(ib.BackendUnavailableError, match=reason):  # the variable may be set after the first check
        made.environment(LoadConfig())


def test_an_integrated_gpu_that_is_named_is_used(
    backend: Callable[..., RocmBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0")
    made = backend(STRIX_HALO)
    assert made.availability().ok
    assert made.environment(LoadConfig())["ROCR_VISIBLE_DEVICES"] == "0"


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    root = tree(tmp_path, RX_6800)
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    (nodes / "1/properties").unlink()
    (nodes / "1/properties").mkdir()
    availability = RocmBackend(root=root).availability()
    assert not availability
    assert "the GPUs can't be listed" in availability.reason
    assert "properties" in availability.reason


def test_no_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's server is not used instead: it computes on the CPU."""
    monkeypatch.setenv("PATH", "/nowhere")
    availability = RocmBackend(root=tree(tmp_path, RX_6800)).availability()
    assert availability.reason.startswith("no llama-server was found")
    assert "ROCM_LLAMA_SERVER_PATH" in availability.hint


def test_the_binary_of_rocm_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RocmBackend(root=tree(tmp_path / "root", RX_6800))
    for name in ("LLAMA_SERVER_PATH", "ROCM_LLAMA_SERVER_PATH"):
        path = script(tmp_path / name, REAL)
        monkeypatch.setenv(name, str(path))
        assert backend.program() == (str(path),)


def test_rocm_is_unavailable_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ib.get("rocm").availability().reason or Path("/dev/kfd").exists()


# ---------------------------------------------------------------- a real server under it


@pytest.fixture
def runtime(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with short_directory() as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        yield path


def test_the_server_sees_one_gpu_and_its_memory_is_reported(
    demo_model_path: Path, backend: Callable[..., RocmBackend], runtime: Path, tmp_path: Path
) -> None:
    made = backend(RAPHAEL, RX_7900_XTX)
    config = LoadConfig(context_length=512, parallel_slots=1, threads=1)
    with made.load_model(str(demo_model_path), config) as model:
        assert isinstance(model, ServerModel)
        stream = model.generate("The capital of France is", max_tokens=1)
        assert stream.text() == " Paris"
        assert (stream.metrics.active_memory_bytes, stream.metrics.peak_memory_bytes) == (GIB, GIB)
        environment = psutil.Process(model.process.pid).environ()
        assert {name: value for name, value in environment.items() if name.endswith("VISIBLE_DEVICES")} == {
            "ROCR_VISIBLE_DEVICES": "1",
            "HIP_VISIBLE_DEVICES": "0",
        }
        # If the driver counts memory by process, that number is reported.
        counted = tmp_path / f"root/sys/class/kfd/kfd/proc/{model.process.pid}"
        counted.mkdir(parents=True)
        (counted / "vram_1002").write_text(f"{3 * GIB}\n")
        again = model.generate("The capital of France is", max_tokens=1)
        again.text()
        assert again.metrics.active_memory_bytes == 3 * GIB


LLM = """
import runpy, sys
from inference_bridge import register
from inference_bridge.backends.llama_server.rocm import RocmBackend
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    register(RocmBackend(root=sys.argv.pop(1)))
runpy.run_module("llm", run_name="__main__", alter_sys=True)
"""


def test_llm_on_a_machine_with_an_amd_gpu(
    demo_model_path: Path, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command line, on a recorded tree, with a real server underneath."""
    root = tree(tmp_path / "root", RAPHAEL, RX_7900_XTX)
    binary = script(
        tmp_path / "llama-server", f'env > {tmp_path}/environment; echo "$@" > {tmp_path}/arguments; {REAL}'
    )

    def llm(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", LLM, str(root), *arguments],
            env=os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge", "ROCM_LLAMA_SERVER_PATH": str(binary)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    ids = [model["model_id"] for model in json.loads(llm("models", "--json"))]
    assert "rocm:SmolLM2-135M-Instruct.Q4_1" in ids
    question = "What is the capital of France? Answer in one sentence."
    assert (
        llm("-m", "rocm:SmolLM2-135M-Instruct.Q4_1", "-o", "temperature", "0", question)
        == "The capital of France is Paris.\n"
    )
    assert "ROCR_VISIBLE_DEVICES=1\n" in (tmp_path / "environment").read_text()
    assert str(demo_model_path) in (tmp_path / "arguments").read_text()
