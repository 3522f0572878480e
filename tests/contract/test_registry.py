# SPDX-License-Identifier: Apache-2.0
"""Backends, their order, and loading models. Sources are tested in test_sources.py."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator

import pytest

import inference_bridge as ib
from inference_bridge.options import LoadConfig

from ..parts.models.tiny import Words, WordsBackend

pytestmark = pytest.mark.usefixtures("no_backends")


# ---------------------------------------------------------------- registering


def test_register_get_names_unregister() -> None:
    first, second = WordsBackend("first"), WordsBackend("second")
    ib.register(second)
    ib.register(first)
    assert ib.names() == ["second", "first"]
    assert ib.get("first") is first
    ib.unregister("second")
    assert ib.names() == ["first"]
    with pytest.raises(ib.BackendNotFoundError):
        ib.get("second")


def test_overwriting_a_backend_emits_a_warning_that_names_both() -> None:
    class Other(WordsBackend):
        pass

    ib.register(WordsBackend())
    with pytest.warns(RuntimeWarning, match=r"'words'.*Other replaces .*WordsBackend") as record:
        ib.register(other := Other())
    assert record[0].filename == __file__
    assert ib.get("words") is other


def test_registering_the_same_object_again_is_silent() -> None:
    ib.register(backend := WordsBackend())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ib.register(backend)
    assert ib.names() == ["words"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (WordsBackend, TypeError, "pass an instance"),
        ("words", TypeError, "takes a Backend, not 'words'"),
        (WordsBackend("two words"), ValueError, "'two words'"),
        (WordsBackend("a:b"), ValueError, "identifier"),
        (WordsBackend(""), ValueError, "identifier"),
        (WordsBackend(None), ValueError, "None"),  # type: ignore[arg-type]
    ],
)
def test_an_object_that_is_not_a_backend_is_refused(wrong: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.register(wrong)  # type: ignore[arg-type]
    assert ib.names() == []


@pytest.mark.parametrize("use", [ib.get, ib.unregister])
def test_an_unknown_name_suggests_the_nearest(use: object) -> None:
    ib.register(WordsBackend("llama_cpp"))
    with pytest.raises(
        ib.BackendNotFoundError, match=r"'lama-cpp': did you mean 'llama_cpp'\? \(registered: llama_cpp"
    ):
        use("lama-cpp")  # type: ignore[operator]
    ib.unregister("llama_cpp")
    with pytest.raises(ib.BackendNotFoundError, match=r"none is registered"):
        use("lama-cpp")  # type: ignore[operator]


def test_registering_from_many_threads_keeps_every_backend() -> None:
    start = threading.Barrier(8)

    def register(thread: int) -> None:
        start.wait()
        for number in range(25):
            ib.register(WordsBackend(f"b{thread}_{number}"))
            ib.unregister(f"b{thread}_{number}") if number % 5 == 0 else ib.names()

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ib.names()) == {f"b{thread}_{number}" for thread in range(8) for number in range(25) if number % 5}


# ---------------------------------------------------------------- the default


def test_default_prefers_metal_then_rocm_then_llama_cpp_then_registration() -> None:
    for name in ("zeta", "llama_cpp", "alpha", "rocm", "metal"):
        ib.register(WordsBackend(name))
    order = []
    while ib.names():
        order.append(ib.default().name)
        ib.unregister(order[-1])
    assert order == ["metal", "rocm", "llama_cpp", "zeta", "alpha"]


def test_default_takes_the_first_that_is_available_and_can_load_the_source() -> None:
    ib.register(WordsBackend("metal", missing="no Apple GPU"))
    ib.register(WordsBackend("llama_cpp", loads=lambda source: source.endswith(".gguf")))
    ib.register(WordsBackend("http", loads=lambda source: source.startswith("http")))
    assert ib.default().name == "llama_cpp"
    assert ib.default("/models/a.gguf").name == "llama_cpp"
    assert ib.default("https://gpu.example").name == "http"


def test_default_skips_backends_that_must_be_named() -> None:
    class Wrapped(WordsBackend):
        only_when_named = True

    ib.register(Wrapped("llm"))
    with pytest.raises(ib.NoBackendAvailableError, match=r"llm: used only when it is named, as in llm:model"):
        ib.default("anything")
    ib.register(WordsBackend("other"))
    assert ib.default("anything").name == "other"


def test_environment_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    ib.register(WordsBackend("metal"))
    ib.register(WordsBackend("words", loads=lambda _: False))
    ib.register(WordsBackend("broken", missing="no engine", hint="install one"))
    monkeypatch.setenv("INFERENCE_BRIDGE_BACKEND", "words")
    assert ib.default().name == "words"
    monkeypatch.setenv("INFERENCE_BRIDGE_BACKEND", "wrods")
    with pytest.raises(ib.BackendNotFoundError, match=r"INFERENCE_BRIDGE_BACKEND.*'wrods'.*'words'"):
        ib.default()
    monkeypatch.setenv("INFERENCE_BRIDGE_BACKEND", "broken")
    with pytest.raises(ib.BackendUnavailableError, match=r"'broken' is not available: no engine\. install one"):
        ib.default()
    monkeypatch.setenv("INFERENCE_BRIDGE_BACKEND", "")
    assert ib.default().name == "metal"


def test_errors_differ_for_no_registered_no_available_and_no_suitable_backend() -> None:
    with pytest.raises(ib.NoBackendAvailableError, match=r"^no backend is registered") as none:
        ib.default()
    assert none.value.reasons == {}

    ib.register(WordsBackend("metal", missing="this is Linux"))
    ib.register(WordsBackend("llama_cpp", missing="llama-cpp-python is missing", hint="pip install it"))
    with pytest.raises(ib.NoBackendAvailableError, match=r"^no backend is available:\n") as none:
        ib.default()
    assert none.value.reasons == {
        "metal": "this is Linux",
        "llama_cpp": "llama-cpp-python is missing. pip install it",
    }
    assert "\n  llama_cpp: llama-cpp-python is missing. pip install it" in str(none.value)
    with pytest.raises(ib.NoBackendAvailableError, match=r"^no backend is available to load 'x.gguf':\n"):
        ib.default("x.gguf")

    ib.register(WordsBackend("http", loads=lambda source: source.startswith("http")))
    with pytest.raises(ib.NoBackendAvailableError, match=r"^none of the available backends can load 'x.gguf':") as none:
        ib.default("x.gguf")
    assert none.value.reasons["http"] == "it cannot load this kind of source"
    assert none.value.reasons["metal"] == "this is Linux"


def test_a_backend_whose_checks_raise_is_skipped_with_a_warning() -> None:
    class Rude(WordsBackend):
        def availability(self) -> ib.Availability:
            if self.missing:
                raise RuntimeError(self.missing)
            return ib.Availability(True)

        def can_load(self, source: str) -> bool:
            raise OSError("disk on fire")

    ib.register(Rude("metal", missing="driver mismatch"))
    ib.register(Rude("rocm"))
    with pytest.raises(ib.NoBackendAvailableError) as none:
        ib.default("x")
    assert "raised RuntimeError: driver mismatch" in none.value.reasons["metal"]
    assert "raised OSError: disk on fire" in none.value.reasons["rocm"]
    ib.register(WordsBackend("good"))
    assert ib.default("x").name == "good"


# ---------------------------------------------------------------- loading


@pytest.fixture
def backend() -> WordsBackend:
    ib.register(backend := WordsBackend())
    return backend


def test_load_model_returns_the_model_of_the_backend(backend: WordsBackend) -> None:
    with ib.load_model("words:anything") as model:
        assert model is backend.loaded[0]
        assert backend.loaded[0].source == "anything"
        assert model.backend == "words"
        assert model.generate("one two three").text() == "one two three"


def test_a_backend_name_set_by_the_model_is_kept(backend: WordsBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "backend", "words on a GPU")
    assert ib.load_model("words:x").backend == "words on a GPU"


def test_load_options_go_over_config(backend: WordsBackend) -> None:
    config = LoadConfig(context_length=100, device="cpu")
    ib.load_model("words:x", config=config, context_length=200)
    assert backend.loaded[0].config == LoadConfig(context_length=200, device="cpu")


def test_wrong_arguments_are_refused_before_loading(backend: WordsBackend) -> None:
    with pytest.raises(TypeError, match="did you mean 'context_length'"):
        ib.load_model("words:x", contxt_length=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="context_length must be at least 0"):
        ib.load_model("words:x", context_length=-1)
    with pytest.raises(TypeError, match="config must be a LoadConfig, not dict"):
        ib.load_model("words:x", config={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backend must be a backend's name, not WordsBackend"):
        ib.load_model("x", backend=backend)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a str or a path, not int"):
        ib.load_model(3)  # type: ignore[arg-type]
    for source in ("", "words:"):
        with pytest.raises(ValueError, match="does not name a model"):
            ib.load_model(source)
    assert not backend.loaded


def test_a_load_option_that_is_not_honoured_is_named(backend: WordsBackend) -> None:
    with pytest.raises(ib.UnsupportedError, match="words does not support the load option gpu_layers") as unsupported:
        ib.load_model("words:x", gpu_layers=3)
    assert unsupported.value.backend == "words"
    assert not backend.loaded
    ib.load_model("words:x", gpu_layers=-1)  # the default, which requests no feature


def test_a_backend_may_check_load_options() -> None:
    class Checks(WordsBackend):
        load_options = None

    ib.register(backend := Checks())
    ib.load_model("words:x", gpu_layers=3)
    assert backend.loaded[0].config == LoadConfig(gpu_layers=3)


def test_unknown_and_unavailable_backends(backend: WordsBackend) -> None:
    backend.missing, backend.hint = "no engine", "pip install 'inference-bridge[words]'"
    for source, name in (("words:x", None), ("x", "words"), ("words:x", "words")):
        with pytest.raises(ib.BackendUnavailableError, match=r"no engine\. pip install") as unavailable:
            ib.load_model(source, backend=name)
        assert unavailable.value.availability == ib.Availability(False, backend.missing, backend.hint)
    with pytest.raises(ib.BackendNotFoundError, match="'wrods': did you mean 'words'"):
        ib.load_model("x", backend="wrods")


def test_environment_names_the_backend_of_a_source_without_one(
    backend: WordsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ib.register(other := WordsBackend("other"))
    monkeypatch.setenv("INFERENCE_BRIDGE_BACKEND", "words")
    ib.load_model("whatever")
    ib.load_model("other:whatever")
    assert len(backend.loaded) == len(other.loaded) == 1


def test_failures_of_loading_are_typed() -> None:
    class Failing(WordsBackend):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def load_model(self, source: str, config: LoadConfig) -> ib.TextModel:
            raise self.error

    ib.register(Failing(OSError("bad magic")))
    with pytest.raises(ib.ModelLoadError, match=r"words could not load x: OSError: bad magic") as failed:
        ib.load_model("words:x")
    assert isinstance(failed.value.__cause__, OSError)

    ib.unregister("words")
    ib.register(Failing(error := ib.ModelLoadError("x is damaged")))
    with pytest.raises(ib.ModelLoadError) as failed:
        ib.load_model("words:x")
    assert failed.value is error


def test_a_backend_that_returns_no_model_is_an_error() -> None:
    class Nothing(WordsBackend):
        def load_model(self, source: str, config: LoadConfig) -> ib.TextModel:
            return None  # type: ignore[return-value]

    ib.register(Nothing())
    with pytest.raises(TypeError, match="backend 'words' returned NoneType, not a TextModel"):
        ib.load_model("words:x")


# ---------------------------------------------------------------- aload_model


class Slow(WordsBackend):
    """Waits for an event before it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loading = threading.Event()
        self.go_on = threading.Event()

    def load_model(self, source: str, config: LoadConfig) -> ib.TextModel:
        self.loading.set()
        self.go_on.wait()
        return super().load_model(source, config)


@pytest.fixture
def slow() -> Iterator[Slow]:
    ib.register(backend := Slow())
    yield backend
    backend.go_on.set()


def _load_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "inference-bridge-load"]


async def test_aload_model_does_not_block_the_event_loop(slow: Slow) -> None:
    task = asyncio.create_task(ib.aload_model("words:x", context_length=7))
    await asyncio.to_thread(slow.loading.wait)
    slow.go_on.set()
    model = await task
    assert model is slow.loaded[0]
    assert slow.loaded[0].config == LoadConfig(context_length=7)
    assert not model.closed


async def test_aload_model_raises_as_load_model() -> None:
    with pytest.raises(ib.BackendNotFoundError):
        await ib.aload_model("x", backend="words")


async def test_a_model_loaded_after_the_await_was_cancelled_is_closed(slow: Slow) -> None:
    task = asyncio.create_task(ib.aload_model("words:x"))
    await asyncio.to_thread(slow.loading.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.go_on.set()
    for thread in _load_threads():
        thread.join()
    assert slow.loaded[0].closed
    assert slow.loaded[0].closes == 1


async def test_a_model_that_arrives_together_with_the_cancellation_is_closed(slow: Slow) -> None:
    task = asyncio.create_task(ib.aload_model("words:x"))
    await asyncio.to_thread(slow.loading.wait)
    slow.go_on.set()
    for thread in _load_threads():
        thread.join()  # the event loop is blocked, so it has not yet received the model
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.loaded[0].closed
