# SPDX-License-Identifier: Apache-2.0
"""Load options of devices and memory are applied, or refused with a remedy."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_bridge import LoadConfig, ModelLoadError, TextModel, UnsupportedError, load_model
from inference_bridge.backends.llama_cpp import devices
from inference_bridge.backends.llama_cpp.devices import Device
from inference_bridge.backends.llama_cpp.library import lib
from inference_bridge.backends.llama_cpp.placement import Placement

without_gpu = pytest.mark.skipif(bool(devices.gpus()), reason="llama.cpp finds a GPU here")
with_gpu = pytest.mark.skipif(not devices.gpus(), reason="llama.cpp finds no GPU here")

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in the old town of Lisbon, there lived",
    "The quick brown fox jumps over the lazy dog. " * 30,
]


def load(path: Path, **options: Any) -> TextModel:
    return load_model(path, backend="llama_cpp", **options)


def logits(model: TextModel, prompt: str) -> Any:
    (result,) = model.classify([prompt], return_logits=True)
    return np.asarray(result.logits)


# ---------------------------------------------------------------- devices


@without_gpu
@pytest.mark.parametrize(
    ("name", "value"), [("device", "CUDA0"), ("split_mode", "row"), ("tensor_split", (1, 1))], ids=str
)
def test_options_of_gpus_are_refused_on_a_machine_without_a_gpu(name: str, value: Any, demo_model_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=rf"{name}.*no GPU"):
        load(demo_model_path, **{name: value})


@without_gpu
def test_options_of_gpus_that_ask_for_the_default_are_taken(demo_model_path: Path) -> None:
    load(demo_model_path, context_length=256, device="", split_mode="layer", tensor_split=()).close()


@with_gpu
def test_a_named_gpu_is_used(demo_model_path: Path) -> None:
    gpu = devices.gpus()[0]
    assert gpu.free_bytes > 0
    with load(demo_model_path, context_length=256, device=gpu.name, split_mode="none") as model:
        assert model.generate(PROMPTS[0], max_tokens=4).text()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine has them, or not: what is handed to llama.cpp can be looked at without."""
    monkeypatch.setattr(devices, "gpus", lambda: [Device("CUDA0", "one", 16), Device("CUDA1", "another", 32)])


def test_devices_are_handed_to_llama_cpp_in_the_order_they_are_named(two_gpus: None) -> None:
    params = lib.llama_model_default_params()
    kept = devices.place(params, Placement(device="cuda1, CUDA0", split_mode="row", tensor_split=(3.0, 1.0)))
    pointers = ctypes.cast(params.devices, ctypes.POINTER(ctypes.c_void_p))
    assert [pointers[0], pointers[1], pointers[2]] == [32, 16, None]
    assert params.split_mode == lib.LLAMA_SPLIT_MODE_ROW
    assert [params.tensor_split[0], params.tensor_split[1], params.tensor_split[2]] == [3.0, 1.0, 0.0]
    assert len(kept) == 2


def test_placing_nothing_leaves_llama_cpps_own_parameters(two_gpus: None) -> None:
    params, untouched = lib.llama_model_default_params(), lib.llama_model_default_params()
    devices.place(params, Placement())
    assert params.devices is None
    assert params.split_mode == untouched.split_mode


@pytest.mark.parametrize(
    ("placement", "told"),
    [
        (Placement(device="Vulkan0"), r"device='Vulkan0': the devices are CUDA0 \(one\), CUDA1 \(another\)"),
        (Placement(tensor_split=(1.0, 1.0, 1.0)), "3 numbers, and 2 devices"),
        (Placement(device="CUDA1", tensor_split=(1.0, 1.0)), "2 numbers, and 1 devices"),
    ],
    ids=["unknown", "too many shares", "too many for those named"],
)
def test_an_impossible_placement_is_refused(placement: Placement, told: str, two_gpus: None) -> None:
    with pytest.raises(UnsupportedError, match=told):
        devices.place(lib.llama_model_default_params(), placement)


# ---------------------------------------------------------------- the context's type


@pytest.mark.parametrize(("kind", "tolerance"), [("q8_0", 3.0), ("q4_0", 12.0)])
def test_a_quantised_context_takes_less_memory_and_changes_logits_little(
    kind: Any, tolerance: float, demo_model_path: Path
) -> None:
    with load(demo_model_path, context_length=512, parallel_slots=1) as model:
        full, expected = model.info, [logits(model, prompt) for prompt in PROMPTS]
    with load(demo_model_path, context_length=512, parallel_slots=1, kv_cache_type=kind) as model:
        info, got = model.info, [logits(model, prompt) for prompt in PROMPTS]
        params = model._engine._context._params  # type: ignore[attr-defined]
        assert params.type_k == params.type_v == {"q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}[kind]
    assert (full.kv_cache_type, info.kv_cache_type) == ("f16", kind)
    assert info.context_bytes < full.context_bytes * (0.54 if kind == "q8_0" else 0.29)
    assert max(np.abs(one - other).max() for one, other in zip(got, expected, strict=True)) < tolerance
    assert any(np.abs(one - other).max() > 0 for one, other in zip(got, expected, strict=True))


def test_a_quantised_context_is_the_same_after_it_has_grown(demo_model_path: Path) -> None:
    story = "The quick brown fox jumps over the lazy dog. " * 40
    seen = []
    for length in (1024, 4096):
        with load(demo_model_path, context_length=length, parallel_slots=2, kv_cache_type="q8_0") as model:
            model.generate(PROMPTS[0], max_tokens=1).text()
            seen.append(logits(model, story))
            context = model._engine._context  # type: ignore[attr-defined]
            assert 512 <= context.length <= length
            again = model.generate(PROMPTS[0], max_tokens=1)
            again.text()
            assert again.metrics.cached_tokens > 0  # the previous contents have been moved
    assert np.array_equal(*seen)


def test_a_quantised_context_needs_what_deterministic_turns_off(demo_model_path: Path) -> None:
    if devices.gpus():
        pytest.skip("flash attention is on with a GPU")
    with pytest.raises(UnsupportedError, match=r"kv_cache_type='q8_0'.*deterministic"):
        load(demo_model_path, kv_cache_type="q8_0", deterministic=True)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"kv_cache_type": "q8_0"}, "type_k"),
        ({"kv_cache_type": "q8_0"}, "flash_attn_type"),
        ({"threads": 2}, "n_threads_batch"),
    ],
    ids=str,
)
def test_extra_can_not_set_what_another_option_sets(
    options: dict[str, Any], parameter: str, demo_model_path: Path
) -> None:
    with pytest.raises(TypeError, match=rf"{parameter}.*{next(iter(options))}"):
        load(demo_model_path, extra={parameter: 1}, **options)


# ---------------------------------------------------------------- the limit


def test_info_has_the_memory_in_use(demo_model_path: Path) -> None:
    with load(demo_model_path, context_length=300, parallel_slots=2) as model:
        assert model.info.weights_bytes == demo_model_path.stat().st_size
        # 30 layers, 3 heads of 64 for keys and for values, 2 bytes each, in two slots of whole blocks.
        assert model.info.context_bytes == 30 * 3 * 64 * 2 * 2 * 512 * 2


def test_the_context_stays_within_the_limit(demo_model_path: Path) -> None:
    limit = demo_model_path.stat().st_size + (100 << 20)
    with load(demo_model_path, memory_limit=limit) as model:
        first = model.info
        assert 512 < first.context_length < 8192
        assert limit - (30 << 20) < first.weights_bytes + first.context_bytes <= limit
    with load(demo_model_path, memory_limit=limit, kv_cache_type="q4_0") as model:
        assert model.info.context_length > 3 * first.context_length
        assert model.info.weights_bytes + model.info.context_bytes <= limit
    with load(demo_model_path, memory_limit=0) as model:
        assert model.info.context_length == 8192


@pytest.mark.parametrize(
    ("room", "options", "told"),
    [
        (-1, {}, "Raise memory_limit, or choose a smaller model"),
        (1 << 20, {}, "there is room for 0 tokens in each slot. Raise memory_limit"),
        (50 << 20, {"context_length": 2048, "parallel_slots": 2}, "room for 1024 tokens in each slot. Lower"),
    ],
    ids=["weights", "nothing left", "context"],
)
def test_a_model_that_does_not_fit_into_the_limit_is_refused(
    room: int, options: dict[str, Any], told: str, demo_model_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=told):
        load(demo_model_path, memory_limit=demo_model_path.stat().st_size + room, **options)


def test_options_of_a_config_have_the_same_effect(demo_model_path: Path) -> None:
    config = LoadConfig(context_length=256, kv_cache_type="q8_0", memory_limit=1 << 40)
    with load_model(demo_model_path, backend="llama_cpp", config=config) as model:
        assert model.info.kv_cache_type == "q8_0"
