# SPDX-License-Identifier: Apache-2.0
"""Recognises the message with which each server refuses a prompt that is too long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_N = r"(?P<{}>\d[\d,]{{0,14}})"


def _sentence(text: str) -> re.Pattern[str]:
    """Compile `text`, in which {prompt}, {context} and the other names stand for numbers, and … for anything."""
    for name in ("prompt", "context", "completion", "total", "characters", "most", "bound"):
        text = text.replace("{" + name + "}", _N.format(name))
    return re.compile(text.replace("…", ".{0,160}?"), re.IGNORECASE | re.DOTALL)


_SENTENCES = tuple(
    map(
        _sentence,
        (
            # vLLM
            r"maximum context length is {context} tokens…prompt contains (?P<least>at least )?{prompt} input tokens",
            r"maximum context length is {context} tokens…prompt contains {characters} characters"
            r" \(more than {most} characters, which is the upper bound for {bound} input tokens",
            r"passed {prompt} input tokens and requested {completion} output tokens"
            r"…context length is (?:only )?{context}",
            r"maximum context length is {context} tokens and your request has {prompt} input tokens",
            r"maximum context length is {context} tokens…your (?:request|prompt) has {prompt} (?:input )?tokens",
            r"prompt \(length {prompt}\) is longer than the maximum model length of {context}",
            # OpenAI, DeepSeek, OpenRouter, llama-cpp-python, older vLLM
            r"maximum context length is {context} tokens…requested (?:about )?{total} tokens\s*"
            r"\({prompt} (?:in|of) (?:the messages|your prompt|text input)",
            r"maximum context length is {context} tokens…(?:resulted in|requested) (?:about )?{prompt} tokens",
            r"exceed the configured limit of {context} tokens…resulted in {prompt} tokens",
            r"requested tokens \({prompt}\) exceed context window of {context}",
            # llama-server
            r"request \({prompt} tokens\) exceeds the available context size \({context} tokens\)",
            # A text of /embeddings or /rerank, which is evaluated in one piece. Its status is 500.
            r"input \({prompt} tokens\) is too large to process…current batch size: {context}\)",
            # SGLang
            r"input \({prompt} tokens\) is longer than the model's context length \({context} tokens\)",
            r"maximum context length of {context} tokens…{prompt} tokens from the input…{completion} tokens for the",
            # TGI, Together
            r"`inputs` tokens \+ `max_new_tokens` must be <= {context}\. Given: {prompt} `inputs` tokens"
            r" and {completion}",
            r"`inputs` must have less than {context} tokens\. Given: {prompt}",
            # LM Studio
            r"keep the first {prompt} tokens when context the overflows…context length of only {context} tokens",
            # Anthropic
            r"prompt is too long: {prompt} tokens > {context} maximum",
            r"exceed context limit: {prompt} \+ {completion} > {context}",
            # Mistral, Gemini, xAI, Fireworks, Cohere, TabbyAPI
            r"prompt contains {prompt} tokens…too large for model with {context} maximum context length",
            r"input token count \({prompt}\) exceeds the maximum number of tokens allowed \({context}\)",
            r"maximum prompt length is {context} but the request contains {prompt} tokens",
            r"prompt is too long: {prompt}, model maximum context length: {context}",
            r"tokens in the prompt cannot exceed {context} - received {prompt}",
            r"prompt length (?:of )?{prompt} (?:is greater than|exceeds)(?: the)? max_?(?:imum)?[ _]seq(?:uence)?"
            r"_?(?: ?len(?:gth)?)?(?: of)? {context}",
        ),
    )
)
"""A sentence with more information comes before one with less. `total` includes the completion. The prompt has
`characters` characters; the server assumes that `bound` tokens have at most `most` characters."""


@dataclass(frozen=True)
class TooLong:
    """The lengths in a refusal.

    Attributes:
        prompt: Number of tokens of the prompt.
        context: Maximum number of tokens, for the prompt alone or with its completion.
        at_least: Whether the prompt may have more than `prompt` tokens.
    """

    prompt: int
    context: int
    at_least: bool = False

    @property
    def room(self) -> int:
        """Number of tokens that could follow the prompt. It is 0 or less if the prompt itself is too long."""
        return self.context - self.prompt


def too_long(content: Any, said: str) -> TooLong | None:
    """Return the lengths in a refusal. None if it contains none.

    Args:
        content: The JSON of the answer.
        said: The message in it.
    """
    error = content.get("error") if isinstance(content, Mapping) else None
    if isinstance(error, Mapping):
        prompt, context = error.get("n_prompt_tokens"), error.get("n_ctx")
        if type(prompt) is int and type(context) is int:
            return TooLong(prompt, context)
    for sentence in _SENTENCES:
        if match := sentence.search(said):
            groups = match.groupdict()
            least = groups.pop("least", None) is not None
            numbers = {name: int(value.replace(",", "")) for name, value in groups.items()}
            if "characters" in numbers:
                least = True
                numbers["prompt"] = -(-numbers["characters"] * numbers["bound"] // max(numbers["most"], 1))
            return TooLong(numbers["prompt"], numbers["context"], least)
    return None
