# SPDX-License-Identifier: Apache-2.0
"""The backend langchain: models that LangChain's init_chat_model makes, as load_model's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

import inference_bridge as ib
from inference_bridge import (
    BackendUnavailableError,
    ModelLoadError,
    ModelNotFoundError,
    NoBackendAvailableError,
    UnsupportedError,
    load_model,
)
from langchain_inference_bridge import LangChainTextModel
from langchain_inference_bridge.plugin import LangChainBackend


def test_the_backend_is_registered_by_its_entry_point_without_imports() -> None:
    code = (
        "import json, sys, inference_bridge as ib; names = ib.names(); ib.get('langchain').availability(); "
        "print(json.dumps([names, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    names, modules = json.loads(done.stdout)
    assert "langchain" in names
    assert not {"langchain", "langchain_core", "pydantic"} & set(modules)


def test_a_model_is_made_by_its_name() -> None:
    with load_model("langchain:openai:tiny", api_key="hush", parallel_slots=3) as model:
        assert isinstance(model, LangChainTextModel)
        assert isinstance(model.chat_model, ChatOpenAI)
        assert model.chat_model.openai_api_key is not None
        assert model.chat_model.openai_api_key.get_secret_value() == "hush"  # type: ignore[union-attr]
        assert (model.model_type, model.backend, model.parallel) == ("tiny", "langchain", 3)
        assert {"chat", "tools", "json_schema"} <= model.capabilities
        assert {"temperature", "max_tokens", "stop"} <= model.options
        assert "hush" not in repr(model)


def test_extra_has_the_arguments_of_the_chat_model() -> None:
    extra = {"model_provider": "openai", "base_url": "http://localhost:1/v1", "max_retries": 0}
    with load_model("langchain:my-model", api_key="hush", extra=extra) as model:
        assert isinstance(model, LangChainTextModel)
        chat: Any = model.chat_model
        assert (chat.model_name, chat.openai_api_base, chat.max_retries) == ("my-model", "http://localhost:1/v1", 0)
    with pytest.raises(TypeError, match="extra must be a mapping"):
        load_model("langchain:openai:tiny", extra=["--base-url"])


def test_the_backend_is_used_only_if_named() -> None:
    backend = ib.get("langchain")
    assert isinstance(backend, LangChainBackend)
    assert backend.can_load("openai:gpt-5")
    assert not any(map(backend.can_load, ("/models/a.gguf", "./a.gguf", "~/a.gguf", "https://gpu.example/v1")))
    with pytest.raises(NoBackendAvailableError) as caught:
        ib.default("openai:gpt-5")
    assert caught.value.reasons["langchain"] == "used only when it is named, as in langchain:model"


def test_the_error_without_langchain_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "langchain_inference_bridge.plugin.find_spec", lambda name: None if name == "langchain" else find_spec(name)
    )
    with pytest.raises(BackendUnavailableError, match="langchain is not installed. Run: pip install langchain"):
        load_model("langchain:openai:gpt-5")


def test_the_error_without_the_provider_s_package_names_it() -> None:
    with pytest.raises(BackendUnavailableError, match="pip install langchain-upstage"):
        load_model("langchain:upstage:solar-pro")


def test_an_unknown_provider_is_not_found() -> None:
    for source in ("my-model", "nobody:my-model"):
        with pytest.raises(ModelNotFoundError, match=f"langchain does not know the model '{source}'"):
            load_model(f"langchain:{source}")
    with pytest.raises(UnsupportedError, match="context_length"):
        load_model("langchain:openai:tiny", context_length=100)


def test_errors_do_not_contain_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelLoadError, match=r"could not load 'openai:tiny': OpenAIError: .*api_key"):
        load_model("langchain:openai:tiny")
    with pytest.raises(ModelLoadError, match="temperature") as caught:
        load_model("langchain:openai:tiny", api_key="hush", extra={"temperature": "hot hush"})
    error: BaseException | None = caught.value
    while error is not None:
        assert "hush" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
