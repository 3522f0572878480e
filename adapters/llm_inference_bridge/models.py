# SPDX-License-Identifier: Apache-2.0
"""The llm model classes of this library: synchronous and asynchronous, for local and for remote models.

Many commands of llm make such an object for every model, and a machine may have thousands of models. So this module
imports and computes as little as possible. Everything else is done at the first prompt.
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
    if "images" in kind.capabilities:  # llama.cpp also reads BMP, which has two names; most other engines read WebP
        types |= {"image/bmp", "image/x-ms-bmp"} if kind.gguf else {"image/webp"}
    return types


class _LazyOptions:
    """Creates `model.Options` when it is read. pydantic needs more time for this class than llm for 1,000 models."""

    def __get__(self, model: Bridge | None, owner: type) -> type[Options]:
        from .options import Options, options_of

        return Options if model is None else options_of(model.offer, model.can_reason)


class Keys:
    """Finds the API key of a model: in --key, in the keys of `llm keys`, or in the environment variable `key_env`."""

    offer: Offer
    needs_key: str | None
    key: str | None
    key_env_var: str | None

    def _set_key_names(self) -> None:
        kind = self.offer.kind
        if kind.key_env is not None:  # otherwise the server may not need a key
            self.needs_key, self.key_env_var = kind.key_name, kind.key_env

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """Return the API key. None: no key was found, and the model may not need one.

        Args:
            explicit_key: A key, or the name of a key that `llm keys` stores.

        Raises:
            llm.NeedsKeyException: The configuration file names an environment variable for the key, and no key was
                found.
        """
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
    """The base of the classes below. The first prompt loads the model (`loaded` says how long it stays loaded)."""

    can_stream = True

    if not TYPE_CHECKING:  # llm has attributes of these names
        Options = _LazyOptions()
        attachment_types = cached_property(lambda model: _attachment_types(model.offer.kind))

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.model_id = offer.model_id
        kind = offer.kind
        self.supports_schema, self.supports_tools, self.supports_conversation = kind.schema, kind.tools, kind.chat
        if kind.key_name is not None:
            self._set_key_names()

    if not TYPE_CHECKING:

        def __str__(self) -> str:
            problem = f" (can't be loaded: {self.offer.problem})" if self.offer.problem else ""
            return f"{super().__str__()}{problem}"

    def text_model(self) -> TextModel:
        """Return the TextModel, and load it if it is not loaded.

        Closing it frees its memory, and the next prompt loads it again.

        Raises:
            BridgeError: Loading failed; see `load_model`.
            llm.NeedsKeyException: The model needs a key, and none was found.
        """
        from . import loaded

        return loaded.load(self.offer, self.get_key(), self)

    def can_reason(self) -> bool:
        """Load the model, and return whether it can reason. True if it can't be loaded."""
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
