# SPDX-License-Identifier: Apache-2.0
"""One contract, TextModel, for every engine that runs a language model locally or on your own servers.

    from inference_bridge import Message, load_model

    with load_model("llama_cpp:SmolLM2-135M-Instruct.Q4_1") as model:
        for token in model.chat([Message("user", "Why is the sky blue?")], max_tokens=64):
            print(token.text, end="")

Each name is imported when it is first used. A program that only imports this package, as every `llm` command
does, therefore loads nothing else.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from typing would take longer than the rest of this module
if TYPE_CHECKING:
    from .availability import Availability as Availability
    from .backend import Backend as Backend
    from .batch import AsyncBatchStream as AsyncBatchStream
    from .batch import BatchStream as BatchStream
    from .catalog.discovery import discover as discover
    from .catalog.found import DiscoveredModel as DiscoveredModel
    from .decisions import Choice as Choice
    from .decisions import ChoiceAnswer as ChoiceAnswer
    from .decisions import Decision as Decision
    from .decisions import Noul as Noul
    from .decisions import NoulAnswer as NoulAnswer
    from .decisions import Score as Score
    from .decisions import ScoreAnswer as ScoreAnswer
    from .errors import BackendNotFoundError as BackendNotFoundError
    from .errors import BackendUnavailableError as BackendUnavailableError
    from .errors import BridgeError as BridgeError
    from .errors import ConfigError as ConfigError
    from .errors import ContextLengthExceededError as ContextLengthExceededError
    from .errors import GenerationError as GenerationError
    from .errors import GenerationTimeoutError as GenerationTimeoutError
    from .errors import ModelClosedError as ModelClosedError
    from .errors import ModelLoadError as ModelLoadError
    from .errors import ModelNotFoundError as ModelNotFoundError
    from .errors import NoBackendAvailableError as NoBackendAvailableError
    from .errors import ServerCrashedError as ServerCrashedError
    from .errors import ServerError as ServerError
    from .errors import ToolCallCutError as ToolCallCutError
    from .errors import UnsupportedError as UnsupportedError
    from .hookspecs import hookimpl as hookimpl
    from .interfaces import BatchModel as BatchModel
    from .interfaces import EmbeddingModel as EmbeddingModel
    from .interfaces import RankModel as RankModel
    from .interfaces import StatsModel as StatsModel
    from .loading import aload_model as aload_model
    from .loading import load_model as load_model
    from .model import TextModel as TextModel
    from .observability import prometheus as prometheus
    from .options import GenerateConfig as GenerateConfig
    from .options import GenerateOptions as GenerateOptions
    from .options import LoadConfig as LoadConfig
    from .options import LoadOptions as LoadOptions
    from .options import ReasoningEffort as ReasoningEffort
    from .registry import default as default
    from .registry import get as get
    from .registry import names as names
    from .registry import register as register
    from .registry import unregister as unregister
    from .request import Request as Request
    from .stats import Distribution as Distribution
    from .stats import GenerateStats as GenerateStats
    from .streams import AsyncTokenStream as AsyncTokenStream
    from .streams import TokenStream as TokenStream
    from .types import Attachment as Attachment
    from .types import BatchResult as BatchResult
    from .types import ClassifyResult as ClassifyResult
    from .types import FinishReason as FinishReason
    from .types import GenerateMetrics as GenerateMetrics
    from .types import GenerateResult as GenerateResult
    from .types import Message as Message
    from .types import ModelInfo as ModelInfo
    from .types import Ranked as Ranked
    from .types import Token as Token
    from .types import TokenKind as TokenKind
    from .types import Tool as Tool
    from .types import ToolCall as ToolCall
    from .types import ToolCallDelta as ToolCallDelta
    from .types import TopLogprob as TopLogprob

__version__ = "0.1.0"

_HOMES = {
    "availability": "Availability",
    "backend": "Backend",
    "batch": "AsyncBatchStream BatchStream",
    "catalog.discovery": "discover",
    "catalog.found": "DiscoveredModel",
    "decisions": "Choice ChoiceAnswer Decision Noul NoulAnswer Score ScoreAnswer",
    "errors": (
        "BackendNotFoundError BackendUnavailableError BridgeError ConfigError ContextLengthExceededError "
        "GenerationError GenerationTimeoutError ModelClosedError ModelLoadError ModelNotFoundError "
        "NoBackendAvailableError ServerCrashedError ServerError ToolCallCutError UnsupportedError"
    ),
    "hookspecs": "hookimpl",
    "loading": "aload_model load_model",
    "interfaces": "BatchModel EmbeddingModel RankModel StatsModel",
    "model": "TextModel",
    "observability": "prometheus",
    "options": "GenerateConfig GenerateOptions LoadConfig LoadOptions ReasoningEffort",
    "registry": "default get names register unregister",
    "request": "Request",
    "stats": "Distribution GenerateStats",
    "streams": "AsyncTokenStream TokenStream",
    "types": (
        "Attachment BatchResult ClassifyResult FinishReason GenerateMetrics GenerateResult Message "
        "ModelInfo Ranked Token TokenKind Tool ToolCall ToolCallDelta TopLogprob"
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - strings, all of them


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
