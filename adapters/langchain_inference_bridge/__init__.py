# SPDX-License-Identifier: Apache-2.0
"""Use a `TextModel` as a LangChain chat model, decision model, embedding model or reranker, and the reverse.

`LangChainTextModel` wraps a LangChain chat model as a `TextModel`. Each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat_model import ChatInferenceBridge as ChatInferenceBridge
    from .chat_model import PromptTooLongError as PromptTooLongError
    from .decisions import InferenceBridgeDecisions as InferenceBridgeDecisions
    from .embeddings import InferenceBridgeEmbeddings as InferenceBridgeEmbeddings
    from .rerank import InferenceBridgeRerank as InferenceBridgeRerank
    from .reverse import LangChainTextModel as LangChainTextModel

_MODULE_OF = {
    "ChatInferenceBridge": "chat_model",
    "PromptTooLongError": "chat_model",
    "InferenceBridgeDecisions": "decisions",
    "InferenceBridgeEmbeddings": "embeddings",
    "InferenceBridgeRerank": "rerank",
    "LangChainTextModel": "reverse",
}

__all__ = [
    "ChatInferenceBridge",
    "InferenceBridgeDecisions",
    "InferenceBridgeEmbeddings",
    "InferenceBridgeRerank",
    "LangChainTextModel",
    "PromptTooLongError",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
