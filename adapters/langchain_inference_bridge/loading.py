# SPDX-License-Identifier: Apache-2.0
"""The common base of this package's LangChain classes: which model to load, how to load it, and how to close it.

The fields have the names, the meaning and the checks of LoadConfig's fields. A field that is None is not set.
"""

from __future__ import annotations

import asyncio
import os
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from inference_bridge import LoadConfig, ServerError, TextModel
from inference_bridge.authoring import LOAD_FIELDS, did_you_mean

from . import shared

_PathLike = str | os.PathLike[str]

_TEMPORARY = (None, 408, 429, 500, 502, 503, 504)
"""HTTP statuses of temporary failures. None: the server did not answer."""


class Loading(Serializable):
    # Errors do not show wrong values, because a wrong value may be a key.
    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    model: str | None = None
    """What to load: "backend:name", a path, an http(s) URL, or a configured or discovered name."""

    text_model: TextModel | None = Field(default=None, exclude=True, repr=False)
    """A loaded model, in place of `model`. `close()` does not close it."""

    # ------------------------------------------------ how to load it

    context_length: int | None = None
    """Maximum number of tokens of one operation. Default: the model's own, if memory allows."""

    gpu_layers: int | None = None
    """Layers on the GPU. Default: all."""

    parallel_slots: int | None = None
    """Number of operations that decode at once. Default: the backend's, 4 in process."""

    threads: int | None = None
    batch_size: int | None = None
    chat_template: str | None = None
    """A Jinja template in place of the model's own."""

    adapters: _PathLike | list[_PathLike] | None = None
    """Paths of LoRA adapters."""

    draft_model: _PathLike | None = None
    draft_ngram: int | None = None
    draft_tokens: int | None = None
    mmproj: _PathLike | None = None
    device: str | None = None
    split_mode: Literal["layer", "row", "none"] | None = None
    tensor_split: list[float] | None = None
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] | None = None
    """The type of the numbers in the KV cache. Default: "f16"."""

    memory_limit: int | None = None
    """Maximum number of bytes for the weights and the context together. Default: no limit."""

    deterministic: bool | None = None
    """True: on a CPU a result does not depend on other running operations. Default: False, which is faster."""

    vet: bool | None = None
    """Whether a model file is first loaded in a child process, to test it. Default: True."""

    prefix_cache_size: int | str | None = None
    """Maximum size of the prefix cache on disk, in bytes or as a text such as "2GiB". Default: 0, no cache on disk."""

    keep_alive: float | str | None = None
    server_model: str | None = None
    """The name of the model on its server: `model` in LoadConfig."""

    api_key: SecretStr | None = None
    headers: dict[str, str] | None = Field(default=None, repr=False)
    connect_timeout: float | None = None
    first_token_timeout: float | None = None
    ca_bundle: _PathLike | None = None
    defaults: Literal["contract", "server"] | None = None
    """Over http, "server" leaves unset sampling options to the server. Default: "contract"."""

    extra: dict[str, Any] | list[str] | None = None
    """Passed to the engine unchanged."""

    max_retries: int | None = Field(default=None, ge=0)
    """Maximum number of retries after a temporary failure of a server. Default: 0."""

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
            raise ValueError("traces would show the user and password in the URL: use api_key or headers instead")
        return value

    @field_validator("adapters", "draft_model", "mmproj", "ca_bundle")
    @classmethod
    def _paths_as_str(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [os.fspath(path) for path in value]
        return None if value is None else os.fspath(value)

    @model_validator(mode="after")
    def _check_loading(self) -> Self:
        given = self.load_config().set_fields()  # raises only ValueError: pydantic has checked the types of the fields
        if (self.model is None) == (self.text_model is None):
            raise ValueError('set either model, such as "llama_cpp:name", or text_model')
        if self.text_model is not None and given:
            name = next(name for name in LOADING if getattr(self, name) is not None)
            raise ValueError(f"{name} is an option for loading a model, but text_model is already loaded")
        return self

    def load_config(self) -> LoadConfig:
        """Return the load options that are set."""
        given = {name: getattr(self, field) for field, name in LOADING.items()}
        if self.api_key is not None:
            given["api_key"] = self.api_key.get_secret_value()
        return LoadConfig().with_options(given)

    # ------------------------------------------------ the model's life

    @cached_property
    def _holder(self) -> shared.Holder:  # not a private attribute: pydantic compares those
        return shared.Holder()

    def load(self) -> TextModel:
        """Return the TextModel, and load it if it is not loaded yet. Raises what `load_model` raises."""
        return self._load(None)

    async def aload(self) -> TextModel:
        return await self._aload(None)

    def close(self) -> None:
        """Release the model. It is closed if no other LangChain object of this process uses it.

        The next use loads it again. A `text_model` is not closed.
        """
        shared.release(self._holder)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _load(self, override: str | None) -> TextModel:
        source = self._source(override)
        if source is None:
            return cast(TextModel, self.text_model)
        return self._known(shared.load(source, self.load_config(), self._holder), override)

    async def _aload(self, override: str | None) -> TextModel:
        source = self._source(override)
        if source is None:
            return cast(TextModel, self.text_model)
        return self._known(await shared.aload(source, self.load_config(), self._holder), override)

    def _source(self, override: str | None) -> str | None:
        """Return the source to load, or None if the model was given as `text_model`."""
        if override is not None and self.text_model is not None:
            raise ValueError(f"model={override!r} can't replace text_model: create a chat model with model= instead")
        return override or self.model

    def _known(self, model: TextModel, override: str | None) -> TextModel:
        """Return the model. Subclasses may record its properties: this is called before each use of a model.

        Args:
            model: The loaded model.
            override: The source that the call named in place of `model`.
        """
        return model

    def _pause(self, error: ServerError, attempt: int) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            ServerError: `error`: it is not temporary, or `max_retries` attempts were made.
        """
        if attempt >= (self.max_retries or 0) or error.status not in _TEMPORARY:
            raise error
        return float(min(0.5 * 2**attempt, 8.0))

    def __copy__(self) -> Self:
        copied = super().__copy__()
        for name in ("_holder", "_serialized"):  # computed for the original, from which the copy may differ
            copied.__dict__.pop(name, None)
        return copied

    # ------------------------------------------------ serialisation

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "INFERENCE_BRIDGE_API_KEY", "headers": "INFERENCE_BRIDGE_HEADERS"}

    def to_json(self) -> Any:
        """Return LangChain's serialised form, without secrets. A model made from a `text_model` has none."""
        if self.text_model is not None:
            return self.to_json_not_implemented()
        written: dict[str, Any] = dict(super().to_json())
        # LangChain's versions differ in the fields that they leave out.
        return written | {"kwargs": {name: value for name, value in written["kwargs"].items() if value is not None}}


LOADING = {"server_model" if name == "model" else name: name for name in LOAD_FIELDS}
"""The fields for loading a model, with their names in LoadConfig."""
