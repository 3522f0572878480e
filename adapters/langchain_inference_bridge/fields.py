# SPDX-License-Identifier: Apache-2.0
"""The fields of ChatInferenceBridge: which model, how to load it, how to generate.

The fields for generating have the names, the meaning and the checks of GenerateConfig's fields. A field that is None is
not set.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from langchain_core.language_models import BaseChatModel
from pydantic import model_validator

from inference_bridge import GenerateConfig, __version__
from inference_bridge.authoring import GENERATE_FIELDS

from .loading import LOADING, Loading


class Fields(Loading, BaseChatModel):
    max_tokens: int | None = None
    """Maximum number of tokens to generate; -1: until the answer or the context ends. Default: 4096, with a warning
    if that cuts off an answer."""

    temperature: float | None = None
    """0: always the most likely token. Default: the sampling that the model's files recommend, else 0.8 with top_k 40,
    top_p 0.95 and min_p 0.05."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_tokens: list[int] | None = None
    seed: int | None = None
    regex: str | None = None
    """The whole answer matches this regular expression."""

    choices: list[str] | None = None
    """The answer is one of these texts."""

    grammar: str | None = None
    """The answer follows this grammar, in Lark, from its rule `start`."""

    logit_bias: dict[int, float] | None = None
    """Numbers to add to the logits of tokens, by token id."""

    min_tokens: int | None = None
    """Minimum number of tokens before the answer can end."""

    schema_in_prompt: bool | None = None
    """Whether the model is shown the JSON Schema of a structured answer. Default: True."""

    reasoning_budget: int | None = None
    """Maximum number of tokens of reasoning; then the answer follows."""

    logprobs: int | None = None
    """n: response_metadata contains the log probability of each token, and those of the n most likely tokens."""

    reasoning: bool | Literal["low", "medium", "high"] | None = None
    template_options: dict[str, Any] | None = None
    timeout: float | None = None
    """Maximum seconds for each operation."""

    # ------------------------------------------------ LangChain's own

    streaming: bool | None = None
    """True: `invoke` streams too, for the callbacks; False: `stream` gives the answer in one piece."""

    @model_validator(mode="after")
    def _check_generating(self) -> Self:
        self.generate_config()  # raises only ValueError, because pydantic has checked the types of the fields
        return self

    @model_validator(mode="after")
    def _set_inference_bridge_version(self) -> Self:
        add = getattr(self, "_add_version", None)
        if add is not None:  # pragma: no branch - langchain-core 1.4 lacks it: `make oldest` runs these tests with 1.4
            add("inference-bridge", __version__)
        return self

    def generate_config(self) -> GenerateConfig:
        """Return the fields for generating that are set."""
        return GenerateConfig(**{name: getattr(self, name) for name in _GENERATING})

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Return the fields that traces record. They contain no secrets."""
        names = ("model", *(field for field in LOADING if field not in ("api_key", "headers")), *_GENERATING)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_GENERATING = tuple(name for name in GENERATE_FIELDS if name in Fields.model_fields)
