# SPDX-License-Identifier: Apache-2.0
"""The fields of ChatInferenceBridge: which model, how to load it, how to generate.

Fields that say how to generate have the names, meaning and checks of GenerateConfig's fields. A field that is None is
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
    """Maximum number of tokens to generate; -1: until the answer or the context ends. Default: 4096, and a warning
    where that cuts an answer off."""

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
    """What is added to the logits of tokens, by their ids."""

    min_tokens: int | None = None
    """Minimum number of tokens before the answer can end."""

    schema_in_prompt: bool | None = None
    """Whether the model is shown the JSON Schema of a structured answer. Default: True."""

    reasoning_budget: int | None = None
    """Maximum number of tokens of reasoning; then the answer follows."""

    logprobs: int | None = None
    """n: with each token its log probability and those of the n likeliest, in response_metadata."""

    reasoning: bool | Literal["low", "medium", "high"] | None = None
    template_options: dict[str, Any] | None = None
    timeout: float | None = None
    """Seconds for each whole operation."""

    # ------------------------------------------------ of LangChain

    streaming: bool | None = None
    """True: `invoke` streams too, for the callbacks; False: `stream` gives the answer in one piece."""

    @model_validator(mode="after")
    def _check_generating(self) -> Self:
        self.generate_config()  # the fields' types are right, so what it raises is a ValueError
        return self

    @model_validator(mode="after")
    def _set_inference_bridge_version(self) -> Self:
        add = getattr(self, "_add_version", None)
        if add is not None:  # pragma: no branch - langchain-core 1.4 has none: `make oldest` runs these tests with it
            add("inference-bridge", __version__)
        return self

    def generate_config(self) -> GenerateConfig:
        """The generation fields that are set."""
        return GenerateConfig(**{name: getattr(self, name) for name in _GENERATING})

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Return what traces record of this model: no secrets."""
        names = ("model", *(field for field in LOADING if field not in ("api_key", "headers")), *_GENERATING)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_GENERATING = tuple(name for name in GENERATE_FIELDS if name in Fields.model_fields)
