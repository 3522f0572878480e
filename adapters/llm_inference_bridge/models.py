# SPDX-License-Identifier: Apache-2.0
"""The classes with which llm runs a model of this library: llm.Model and llm.AsyncModel.

Many commands of llm make such an object for each model, of which there may be thousands. So this module imports
and computes as little as possible; the rest is done at the first prompt.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import llm
from llm.parts import StreamEvent

from .catalog import Kind, Offer

if TYPE_CHECKING:
    from inference_bridge import TextModel

    from .options import Options

_ATTACHMENT_TYPES = {
    "images": frozenset({"image/gif", "image/jpeg", "image/png"}),
    "audios": frozenset({"audio/mpeg", "audio/wav"}),
}
"""The attachment types that llm passes to a model with that capability."""


def _attachment_types(kind: Kind) -> set[str]:
    types = set().union(*(types for name, types in _ATTACHMENT_TYPES.items() if name in kind.capabilities))
    if "images" in kind.capabilities:  # what llama.cpp reads beside those, by both its names, or most others do
        types |= {"image/bmp", "image/x-ms-bmp"} if kind.gguf else {"image/webp"}
    return types


class _OptionsWhenAsked:
    """Makes `model.Options` when it is first read: pydantic needs longer for it than for a thousand models."""

    def __get__(self, model: Bridge | None, owner: type) -> type[Options]:
        from .options import Options, options_of

        return Options if model is None else options_of(model.offer, model.can_reason)


class Keys:
    """Finds a model's API key: in --key, in `llm keys set NAME`, or in the variable named in its configuration."""

    offer: Offer
    needs_key: str | None
    key: str | None
    key_env_var: str | None

    def _tell_of_key(self) -> None:
        kind = self.offer.kind
        if kind.key_env is not None:  # without one it may do without a key
            self.needs_key, self.key_env_var = kind.key_name, kind.key_env

    def get_key(self, explicit_key: str | None = None) -> str | None:
        kind = self.offer.kind
        if kind.key_name is None:
            return None
        key = self.key or llm.get_key(explicit_key, kind.key_name, kind.key_env)
        if key is None and kind.key_env is not None:
            raise llm.NeedsKeyException(
                f"No key found - add one using 'llm keys set {kind.key_name}' "
                f"or set the {kind.key_env} environment variable"
            )
        return key


class Bridge(Keys):
    """The base of sync and async, local and remote models. The first prompt loads the model, and it stays loaded."""

    can_stream = True

    if not TYPE_CHECKING:  # llm has attributes of these names
        Options = _OptionsWhenAsked()
        attachment_types = cached_property(lambda model: _attachment_types(model.offer.kind))

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.model_id = offer.model_id
        kind = offer.kind
        self.supports_schema, self.supports_tools, self.supports_conversation = kind.schema, kind.tools, kind.chat
        if kind.key_name is not None:
            self._tell_of_key()

    if not TYPE_CHECKING:

        def __str__(self) -> str:
            problem = f" (can't be loaded: {self.offer.problem})" if self.offer.problem else ""
            return f"{super().__str__()}{problem}"

    def text_model(self) -> TextModel:
        """The loaded model. Closing it frees its memory, and the next prompt loads it again."""
        from . import loaded

        return loaded.load(self.offer, self.get_key(), self)

    def can_reason(self) -> bool:
        """Return whether the model can reason. This loads the model; True if it can't be loaded."""
        from inference_bridge import BridgeError

        try:
            return "reasoning" in self.text_model().capabilities
        except (BridgeError, llm.ModelError):
            return True


class InferenceBridge(Bridge, llm.Model):
    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str | StreamEvent]:
        from .answers import answer

        return answer(self, prompt, response, conversation, None)


class AsyncInferenceBridge(Bridge, llm.AsyncModel):
    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse, conversation: llm.AsyncConversation | None
    ) -> AsyncGenerator[str | StreamEvent, None]:
        from .answers import aanswer

        return aanswer(self, prompt, response, conversation, None)


class RemoteInferenceBridge(Bridge, llm.KeyModel):
    """A model on a server, which may need an API key."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
        key: str | None,
    ) -> Iterator[str | StreamEvent]:
        from .answers import answer

        return answer(self, prompt, response, conversation, key)


class AsyncRemoteInferenceBridge(Bridge, llm.AsyncKeyModel):
    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        from .answers import aanswer

        return aanswer(self, prompt, response, conversation, key)
