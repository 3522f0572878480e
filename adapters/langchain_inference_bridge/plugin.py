# SPDX-License-Identifier: Apache-2.0
"""The backend `langchain`: any chat model that LangChain's init_chat_model can create.

    load_model("langchain:openai:gpt-5")

The registry of backends imports this module. LangChain itself is imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inference_bridge import (
    Availability,
    Backend,
    BackendUnavailableError,
    ModelLoadError,
    ModelNotFoundError,
    hookimpl,
)

if TYPE_CHECKING:
    from inference_bridge import LoadConfig, TextModel


class LangChainBackend(Backend):
    """Sources are "provider:model", or a model's name from which init_chat_model infers the provider.

    Load options: `extra` is a mapping of arguments for the provider's chat model, such as base_url. `api_key` is passed
    to the chat model; without it, the chat model looks for a key as it does without this library. `parallel_slots` is
    the maximum number of operations of a batch that are sent at once.
    """

    name = "langchain"
    only_when_named = True
    capabilities = frozenset({"chat", "images", "json_schema", "tools"})
    load_options = frozenset({"api_key", "extra", "parallel_slots"})

    def availability(self) -> Availability:
        if find_spec("langchain") is not None:
            return Availability(True)
        hint = "Run: pip install langchain, and the package of the model's provider, such as langchain-openai"
        return Availability(False, "the package langchain is not installed", hint)

    def can_load(self, source: str) -> bool:
        return not source.lower().startswith(("http://", "https://", "/", "~", "./", "../"))

    def load_model(self, source: str, config: LoadConfig) -> TextModel:
        from langchain.chat_models import init_chat_model

        from .reverse import LangChainTextModel

        extra = config.extra or {}
        if not isinstance(extra, Mapping):
            raise TypeError("extra must be a mapping of arguments for the chat model, such as {'base_url': …}")
        fields: dict[str, Any] = dict(extra)
        if config.api_key is not None:
            fields["api_key"] = config.api_key
        try:
            chat_model = init_chat_model(source, **fields)
        except ImportError as error:
            raise BackendUnavailableError(self.name, Availability(False, str(error))) from error
        except Exception as error:
            raise _failure(error, source, config.api_key) from None  # its own text and traceback may show the key
        return LangChainTextModel(chat_model, parallel=config.parallel_slots or 8)


def _failure(error: Exception, source: str, api_key: str | None) -> Exception:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):  # pydantic's own text shows all values, including the key
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        message = "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}" for problem in problems)
    else:
        message = str(error)
    if api_key is not None:
        message = message.replace(api_key, "***")
    if type(error) is ValueError:  # init_chat_model does not know the provider, or can't infer it
        return ModelNotFoundError(f"langchain does not know the model {source!r}: {message}")
    return ModelLoadError(f"langchain could not load {source!r}: {type(error).__name__}: {message}")


@hookimpl
def register_backends(register: Callable[[Backend], None]) -> None:
    register(LangChainBackend())
