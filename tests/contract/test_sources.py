# SPDX-License-Identifier: Apache-2.0
"""Sources of models, tested through load_model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge.options import GenerateConfig, LoadConfig

from ..parts.models.tiny import Words, WordsBackend


def _is_gguf(source: str) -> bool:
    return source.endswith(".gguf") and os.path.exists(source)


@pytest.fixture(autouse=True)
def gguf(no_backends: None, monkeypatch: pytest.MonkeyPatch, home: Path) -> WordsBackend:
    """The default backend, which reads files, and "echo", which accepts any model name."""
    monkeypatch.chdir(home)
    ib.register(backend := WordsBackend("gguf", loads=_is_gguf))
    return backend


@pytest.fixture
def echo() -> WordsBackend:
    ib.register(backend := WordsBackend("echo", loads=lambda source: source != "refused"))
    return backend


@pytest.fixture
def http() -> WordsBackend:
    ib.register(backend := WordsBackend("http", loads=lambda source: source.startswith("http")))
    return backend


def _configure(home: Path, text: str) -> Path:
    path = home / ".config" / "inference-bridge" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _loaded(backend: WordsBackend) -> Words:
    (model,) = backend.loaded
    return model


# ---------------------------------------------------------------- paths


def test_a_path_is_taken_as_it_is(home: Path, gguf: WordsBackend) -> None:
    (home / "a.gguf").touch()
    for source in ("a.gguf", "./a.gguf", str(home / "a.gguf"), home / "a.gguf", Path("a.gguf"), "gguf:a.gguf"):
        ib.load_model(source)
        assert Path(gguf.loaded.pop().source).resolve() == (home / "a.gguf").resolve()


def test_a_tilde_is_the_home_directory(home: Path, gguf: WordsBackend) -> None:
    (home / "a.gguf").touch()
    for source in ("~/a.gguf", "gguf:~/a.gguf", Path("~/a.gguf")):
        ib.load_model(source)
        assert gguf.loaded.pop().source == str(home / "a.gguf")


def test_the_error_for_a_missing_path_suggests_a_similar_file(home: Path, gguf: WordsBackend) -> None:
    (home / "model-Q4_K_M.gguf").touch()
    with pytest.raises(ib.ModelNotFoundError, match=rf"no model at {home}/model-Q4_K.gguf: did you mean 'model-Q4_K_M"):
        ib.load_model(home / "model-Q4_K.gguf")
    with pytest.raises(ib.ModelNotFoundError, match=r"cannot be read \(No such file or directory\)"):
        ib.load_model("./nowhere/model.gguf")


def test_a_path_object_is_not_split_at_a_colon(home: Path, gguf: WordsBackend) -> None:
    with pytest.raises(ib.ModelNotFoundError, match=f"no model at {home}/gguf:x"):
        ib.load_model(Path("gguf:x"))


def test_a_path_that_no_backend_can_read_is_an_error(home: Path) -> None:
    (home / "notes.txt").touch()
    with pytest.raises(ib.NoBackendAvailableError, match=r"none of the available backends can load 'notes\.txt'"):
        ib.load_model("notes.txt")


# ---------------------------------------------------------------- backend:model


def test_a_named_backend_receives_the_rest_of_the_source(echo: WordsBackend) -> None:
    for source, given in (("echo:anything", "anything"), ("echo:a:b", "a:b"), ("echo:~/x", "~/x")):
        ib.load_model(source)
        assert echo.loaded.pop().source == given
    ib.load_model("anything", backend="echo")
    assert echo.loaded.pop().source == "anything"


def test_a_source_refused_by_its_named_backend_is_not_found(echo: WordsBackend) -> None:
    with pytest.raises(ib.ModelNotFoundError, match="model 'refused' not found"):
        ib.load_model("echo:refused")


def test_two_backends_named(echo: WordsBackend) -> None:
    with pytest.raises(ValueError, match="'echo:x' names the backend 'echo', but backend='gguf'"):
        ib.load_model("echo:x", backend="gguf")
    ib.load_model("echo:x", backend="echo")


def test_a_misspelt_backend_is_pointed_out(echo: WordsBackend) -> None:
    with pytest.raises(ib.ModelNotFoundError, match="model 'ehco:x' not found: did you mean 'echo:'"):
        ib.load_model("ehco:x")


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize("source", ["http://host:8080", "https://host/v1", "HTTPS://host"])
def test_a_url_goes_to_the_backend_that_takes_it(http: WordsBackend, source: str) -> None:
    http.loads = lambda url: url.lower().startswith("http")
    ib.load_model(source)
    assert _loaded(http).source == source


def test_a_url_with_its_backend(http: WordsBackend, echo: WordsBackend) -> None:
    ib.load_model("http:https://host/v1")
    ib.load_model("echo:https://host/v1")
    assert _loaded(http).source == _loaded(echo).source == "https://host/v1"


# ---------------------------------------------------------------- discovered names


def test_a_discovered_name_is_its_path(gguf: WordsBackend, demo_model_path: Path) -> None:
    for source in ("SmolLM2-135M-Instruct.Q4_1", "gguf:SmolLM2-135M-Instruct.Q4_1"):
        ib.load_model(source)
        assert Path(gguf.loaded.pop().source) == demo_model_path


def test_a_discovered_name_takes_precedence_over_the_named_backend(echo: WordsBackend, demo_model_path: Path) -> None:
    ib.load_model("echo:SmolLM2-135M-Instruct.Q4_1")
    assert Path(_loaded(echo).source) == demo_model_path


def test_a_discovered_model_that_the_named_backend_does_not_read(demo_model_path: Path) -> None:
    ib.register(names := WordsBackend("names", loads=lambda source: "/" not in source))
    ib.load_model("names:SmolLM2-135M-Instruct.Q4_1")
    assert _loaded(names).source == "SmolLM2-135M-Instruct.Q4_1"
    ib.register(nothing := WordsBackend("nothing", loads=lambda _: False))
    ib.load_model("nothing:SmolLM2-135M-Instruct.Q4_1")
    assert Path(_loaded(nothing).source) == demo_model_path  # the backend reports the reason


def test_the_error_for_an_unknown_name_suggests_a_similar_name_and_lists_the_places(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "more").mkdir()
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "more"))
    with pytest.raises(ib.ModelNotFoundError) as error:
        ib.load_model("SmolLM2-135M-Instruct")
    message = str(error.value)
    assert "model 'SmolLM2-135M-Instruct' not found: did you mean 'SmolLM2-135M-Instruct.Q4_1'" in message
    assert str(home / "more") in message
    assert str(home / ".config" / "inference-bridge" / "config.toml") in message


def test_a_damaged_model_is_named_with_its_problem(
    home: Path, gguf: WordsBackend, demo_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "more").mkdir()
    with demo_model_path.open("rb") as file:
        (home / "more" / "cut.gguf").write_bytes(file.read(3 << 20))
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "more"))
    with pytest.raises(ib.ModelLoadError, match=rf"{home}/more/cut.gguf can.t be loaded: it ends at byte"):
        ib.load_model("cut")
    assert not gguf.loaded


# ---------------------------------------------------------------- configured names


def test_a_configured_name_has_its_settings(home: Path, gguf: WordsBackend) -> None:
    (home / "a.gguf").touch()
    _configure(
        home,
        """
        [models.fast]
        source = "~/a.gguf"
        context_length = 4096
        device = "cpu"
        [models.fast.options]
        max_tokens = 2
        """,
    )
    model = ib.load_model("fast")
    assert _loaded(gguf).source == str(home / "a.gguf")
    assert _loaded(gguf).config == LoadConfig(context_length=4096, device="cpu")
    assert model.defaults == GenerateConfig(max_tokens=2)
    assert model.generate("one two three").text() == "one two"
    assert model.generate("one two three", max_tokens=1).text() == "one"


def test_options_of_the_caller_override_the_settings(home: Path, gguf: WordsBackend) -> None:
    (home / "a.gguf").touch()
    _configure(home, '[models.fast]\nsource = "~/a.gguf"\ncontext_length = 4096\ndevice = "cpu"\n')
    ib.load_model("fast", config=LoadConfig(context_length=100), device="gpu")
    assert gguf.loaded.pop().config == LoadConfig(context_length=100, device="gpu")
    ib.load_model("fast", context_length=0)  # the default, but said
    assert gguf.loaded.pop().config == LoadConfig(device="cpu")


@pytest.mark.parametrize(
    ("setting", "default"),
    [
        ("gpu_layers = 0", -1),
        ("context_length = 4096", 0),
        ("threads = 1", 0),
        ("chat_template = '{{ messages }}'", ""),
        ("adapters = ['a.gguf']", ()),
        ("mmproj = 'mmproj.gguf'", ""),
        ("device = 'cpu'", ""),
        ("keep_alive = 60", 0),
        ("headers = { a = 'b' }", {}),
        ("extra = { a = 1 }", {}),
    ],
)
def test_a_setting_of_the_file_can_be_undone(
    home: Path, gguf: WordsBackend, setting: str, default: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a.gguf").touch()
    _configure(home, f'[models.fast]\nsource = "~/a.gguf"\nbatch_size = 7\n{setting}\n')
    name = setting.split(maxsplit=1)[0]
    monkeypatch.setattr(WordsBackend, "load_options", None)
    ib.load_model("fast")
    configured = gguf.loaded.pop().config
    assert configured is not None
    assert configured.set_fields().keys() == {"batch_size", name}
    for given in ({"config": LoadConfig(**{name: default})}, {name: default}):
        ib.load_model("fast", **given)
        assert gguf.loaded.pop().config == LoadConfig(batch_size=7)


def test_the_backend_of_a_configured_name(home: Path, gguf: WordsBackend, echo: WordsBackend) -> None:
    _configure(
        home,
        """
        [models]
        key.source = "thing"
        key.backend = "echo"
        prefix.source = "echo:thing"
        plain.source = "thing"
        """,
    )
    for source, backend in (("key", None), ("prefix", None), ("echo:plain", None), ("plain", "echo")):
        ib.load_model(source, backend=backend)
        assert echo.loaded.pop().source == "thing"
    (home / "thing").touch()
    ib.load_model("gguf:key")  # the caller's choice goes over the file's
    assert _loaded(gguf).source == "thing"


def test_a_configured_name_comes_before_a_file_of_that_name(home: Path, gguf: WordsBackend) -> None:
    (home / "a.gguf").touch()
    (home / "b.gguf").touch()
    _configure(home, '[models."b.gguf"]\nsource = "~/a.gguf"\n')
    ib.load_model("b.gguf")
    ib.load_model("./b.gguf")
    assert [Path(model.source).name for model in gguf.loaded] == ["a.gguf", "b.gguf"]


def test_the_error_for_a_missing_configured_source_has_its_name(home: Path) -> None:
    _configure(home, '[models]\ngone.source = "~/gone.gguf"\nlost.source = "nowhere-at-all"\n')
    with pytest.raises(ib.ModelNotFoundError, match=r"gone\.gguf \(.* the source of 'gone'\)"):
        ib.load_model("gone")
    with pytest.raises(ib.ModelNotFoundError, match=r"the source of 'lost'"):
        ib.load_model("lost")
    with pytest.raises(ib.ModelNotFoundError, match=r"'losst' not found: did you mean 'lost'"):
        ib.load_model("losst")


def test_a_wrong_configuration_is_reported_when_a_name_is_looked_up(home: Path, gguf: WordsBackend) -> None:
    path = _configure(home, "[models.a]\nsorce = 'x'\n")
    with pytest.raises(ib.ConfigError, match=str(path)):
        ib.load_model("a")
    (home / "a.gguf").touch()
    ib.load_model(home / "a.gguf")  # needs no configuration
    assert gguf.loaded


@pytest.mark.parametrize(
    ("prefix", "meant"),
    [("lama_cpp", "llama_cpp"), ("mxl", "mlx"), ("https", "http"), ("ollama", None), ("vllm", None)],
)
def test_another_program_is_not_taken_for_a_misspelled_backend(prefix: str, meant: str | None) -> None:
    for backend in ("llm", "llama_cpp", "mlx", "http"):
        ib.register(WordsBackend(backend, loads=lambda _: False))
    with pytest.raises(ib.ModelNotFoundError) as caught:
        ib.load_model(f"{prefix}:nothing-like-it")
    assert re.findall(r"did you mean '([^']*)'", str(caught.value)) == ([f"{meant}:"] if meant else [])
    with pytest.raises(ib.BackendNotFoundError) as named:
        ib.load_model("nothing-like-it", backend=prefix)
    assert re.findall(r"did you mean '([^']*)'", str(named.value)) == ([meant] if meant else [])


def test_the_beginning_of_several_backends_names_each() -> None:
    for backend in ("llm", "llama_cpp", "llama_server"):
        ib.register(WordsBackend(backend, loads=lambda _: False))
    with pytest.raises(ib.BackendNotFoundError, match="did you mean 'llama_cpp' or 'llama_server'"):
        ib.get("llama")
