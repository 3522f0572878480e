# SPDX-License-Identifier: Apache-2.0
"""The options that the adapters pass on for a call, with the defaults that users of llm and LangChain expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import GenerateConfig

if TYPE_CHECKING:
    from ..model import TextModel

ADAPTER_MAX_TOKENS = 4096
"""Maximum number of tokens of an answer in llm and LangChain, if max_tokens is not set."""

CUSTOMARY_SAMPLING = GenerateConfig(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
"""The default sampling of llama.cpp. llm and LangChain use it if the user and the model's files set no sampling."""


def settled(user_options: GenerateConfig, model: TextModel) -> GenerateConfig:
    """Return the options that an adapter passes on for a call.

    Args:
        user_options: The options that the user set.
        model: The loaded model. Its `defaults` apply where `user_options` sets nothing.

    Returns:
        These options, with the defaults that users of llm and LangChain expect. max_tokens is `ADAPTER_MAX_TOKENS`; -1
        if the context window is not larger. If no temperature is set, the sampling that the model's files recommend is
        used, and where they recommend nothing, llama.cpp's default sampling. A sampling option that the model does not
        support is left out. A wrapped model gets only the options that were set.
    """
    config = user_options.over(model.defaults)
    if model.wrapped:
        return config.over(GenerateConfig(max_tokens=-1))
    if config.temperature is None:
        customary = {k: v for k, v in CUSTOMARY_SAMPLING.set_fields().items() if k in model.options}
        config = config.over(model.recommended).over(GenerateConfig(**customary))
    context_length = model.info.context_length
    # A small context window is a limit by itself. Some servers refuse a max_tokens that their context can't hold.
    bounded = 0 < context_length <= ADAPTER_MAX_TOKENS
    return config.over(GenerateConfig(max_tokens=-1 if bounded else ADAPTER_MAX_TOKENS))


def cut_off(config: GenerateConfig, generated_tokens: int) -> str:
    """Return a message that says why an answer was cut off, and how to get a longer one.

    Args:
        config: The options with which the answer was generated.
        generated_tokens: Number of tokens of the answer, whose finish reason is "length".
    """
    limit = config.max_tokens or -1
    if 0 < limit <= generated_tokens:
        return f"the answer was cut off after {limit} tokens: set a higher max_tokens"
    return (
        f"the answer was cut off after {generated_tokens} tokens, where the context window is full: "
        "load the model with a larger context_length"
    )
