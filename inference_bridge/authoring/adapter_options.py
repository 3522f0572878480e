# SPDX-License-Identifier: Apache-2.0
"""The options that the adapters pass on for a call: their users expect other defaults than the contract's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import GenerateConfig

if TYPE_CHECKING:
    from ..model import TextModel

ADAPTER_MAX_TOKENS = 4096
"""The most tokens of an answer in llm and LangChain, where nothing sets max_tokens."""

CUSTOMARY_SAMPLING = GenerateConfig(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
"""How llama.cpp samples by default, and what users of llm and LangChain expect where nothing says how to sample."""


def settled(asked: GenerateConfig, model: TextModel) -> GenerateConfig:
    """The options that an adapter passes on for a call.

    Args:
        asked: What the user set.
        model: The loaded model. What its configured name sets comes after `asked`.

    Returns:
        Both, with the defaults that users of llm and LangChain expect where neither sets a field: at most
        `ADAPTER_MAX_TOKENS`, and, without a temperature, the sampling that the model's files recommend, over
        llama.cpp's customary one. A 0 that was asked for switches off what is recommended. An option that the model
        does not have is left out. A wrapped model gets what was set alone.
    """
    config = asked.over(model.defaults)
    if model.wrapped:
        return config.over(GenerateConfig(max_tokens=-1))
    if config.temperature is None:
        customary = {k: v for k, v in CUSTOMARY_SAMPLING.set_fields().items() if k in model.options}
        config = config.over(model.recommended).over(GenerateConfig(**customary))
    context_length = model.info.context_length
    # A bound that the context keeps by itself is not sent: some servers refuse one that their context can't hold.
    bounded = 0 < context_length <= ADAPTER_MAX_TOKENS
    return config.over(GenerateConfig(max_tokens=-1 if bounded else ADAPTER_MAX_TOKENS))


def cut_off(config: GenerateConfig, generated_tokens: int) -> str:
    """Say what cut off an answer whose finish reason is "length", and how to get a longer one.

    Args:
        config: The options that the answer was generated with.
        generated_tokens: How many tokens it has.
    """
    limit = config.max_tokens or -1
    if 0 < limit <= generated_tokens:
        return f"the answer was cut off after {limit} tokens: set a higher max_tokens"
    return (
        f"the answer was cut off after {generated_tokens} tokens, where the context window is full: "
        "load the model with a larger context_length"
    )
