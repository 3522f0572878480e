# SPDX-License-Identifier: Apache-2.0
"""The fields of ChatInferenceBridge: which model, how to load it, how to generate.

They carry the names and the meaning of LoadConfig's and GenerateConfig's fields, whose checks
are applied to them. A field that is None was not set.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from inference_bridge import GenerateConfig, LoadConfig, TextModel, __version__
from inference_bridge.errors import did_you_mean
from inference_bridge.options import GENERATE_FIELDS, LOAD_FIELDS

_PathLike = str | os.PathLike[str]


class Fields(BaseChatModel):
    # a wrong value may be a key, so errors don't show it
    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    model: str | None = None
    """What to load: "backend:name", a path, an http(s) URL, or a configured or discovered name."""

    text_model: TextModel | None = Field(default=None, exclude=True, repr=False)
    """A loaded model, in place of `model`. It stays its owner's: `close()` leaves it open."""

    # ------------------------------------------------ how to load it

    context_length: int | None = None
    """Tokens one operation may use. Default: the model's own, as far as memory allows."""

    gpu_layers: int | None = None
    """Layers on the GPU. Default: all."""

    parallel_slots: int | None = None
    """Operations that decode at once. Default: the backend's, 4 in process."""

    threads: int | None = None
    batch_size: int | None = None
    chat_template: str | None = None
    """A Jinja template in place of the model's own."""

    adapters: _PathLike | list[_PathLike] | None = None
    """Paths of LoRA adapters."""

    draft_model: _PathLike | None = None
    mmproj: _PathLike | None = None
    device: str | None = None
    keep_alive: float | None = None
    server_model: str | None = None
    """The name a server knows its model by: LoadConfig's `model`."""

    api_key: SecretStr | None = None
    headers: dict[str, str] | None = Field(default=None, repr=False)
    connect_timeout: float | None = None
    first_token_timeout: float | None = None
    ca_bundle: _PathLike | None = None
    extra: dict[str, Any] | list[str] | None = None
    """Handed to the engine as it is."""

    # ------------------------------------------------ how to generate

    max_tokens: int | None = None
    """Default: -1, until the answer or the context ends."""

    temperature: float | None = None
    """0: always the likeliest token. Default: the sampling the model's files recommend, else 0."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_tokens: list[int] | None = None
    seed: int | None = None
    logprobs: int | None = None
    """n: with each token its log probability and those of the n likeliest, in response_metadata."""

    reasoning: bool | Literal["low", "medium", "high"] | None = None
    template_options: dict[str, Any] | None = None
    timeout: float | None = None
    """Seconds for each whole operation."""

    # ------------------------------------------------ LangChain's own

    streaming: bool | None = None
    """True: `invoke` streams too, for the callbacks; False: `stream` gives the answer in one piece."""

    max_retries: int | None = Field(default=None, ge=0)
    """How often a server that fails for the moment is asked again. Default: 0."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"{cls.__name__} has no field {name!r}{did_you_mean(name, cls.model_fields)}")
        return values

    @field_validator("model", mode="before")
    @classmethod
    def _check_model(cls, value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, str) and "@" in urlsplit(value).netloc:
            raise ValueError("a URL with a user or password in it would show in traces: use api_key or headers")
        return value

    @field_validator("adapters", "draft_model", "mmproj", "ca_bundle")
    @classmethod
    def _paths_as_str(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [os.fspath(path) for path in value]
        return None if value is None else os.fspath(value)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        try:
            self.load_config()
            self.generate_config()
        except TypeError as error:
            raise ValueError(str(error)) from None
        if (self.model is None) == (self.text_model is None):
            raise ValueError('set one of model, such as "llama_cpp:name", and text_model')
        if self.text_model is not None and self.load_config().set_fields():
            name = next(name for name in _LOADING if getattr(self, name) is not None)
            raise ValueError(f"{name} says how to load a model, and text_model is loaded")
        return self

    @model_validator(mode="after")
    def _set_inference_bridge_version(self) -> Self:
        add = getattr(self, "_add_version", None)  # not in langchain-core 1.4
        if add is not None:
            add("inference-bridge", __version__)
        return self

    def load_config(self) -> LoadConfig:
        """The load fields that are set."""
        given = {name: getattr(self, field) for field, name in _LOADING.items()}
        if self.api_key is not None:
            given["api_key"] = self.api_key.get_secret_value()
        return LoadConfig().with_options(given)

    def generate_config(self) -> GenerateConfig:
        """The generation fields that are set."""
        return GenerateConfig(**{name: getattr(self, name) for name in _GENERATING})

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What traces say of this model: no secrets."""
        names = ("model", *(field for field in _LOADING if field not in ("api_key", "headers")), *_GENERATING)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_LOADING = {"server_model" if name == "model" else name: name for name in LOAD_FIELDS}
"""Fields that say how to load a model, with their names in LoadConfig."""

_GENERATING = tuple(name for name in GENERATE_FIELDS if name in Fields.model_fields)
