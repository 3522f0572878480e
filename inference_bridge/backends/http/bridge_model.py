# SPDX-License-Identifier: Apache-2.0
"""A model on this package's own server, with every operation and option of that model."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from ..._calls.arguments import strings
from ..._calls.classify import ClassifyCall
from ..._concurrency.loops import check_asyncio
from ...decisions import Decision
from ...decisions.deciding import Deciding
from ...errors import ServerError, UnsupportedError
from ...model import TextModel
from ...options import GenerateConfig, GenerateOptions
from ...request import Request
from ...types import ClassifyResult, Message, Token
from . import bridge_format
from .jobs import Streamed
from .model import HttpModel
from .protocol import bridge_api
from .transport.call import body

if TYPE_CHECKING:
    from .bridge_facts import BridgeFacts
    from .facts import ServerFacts

_VERIFIED = 256
"""Number of verified requests to remember."""


class BridgeModel(HttpModel):
    """An `HttpModel` on this package's own server. Options that are not set have the served model's defaults."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.facts.bridge is not None
        self._bridge: BridgeFacts = self.facts.bridge
        self.defaults = self._bridge.defaults
        self.recommended = self._bridge.recommended
        self._known: OrderedDict[bytes, None] = OrderedDict()

    @property
    def wrapped(self) -> bool:  # type: ignore[override]
        return self._bridge.wrapped

    # ------------------------------------------------ requests

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        return config

    def _generation(self, prompt: str, config: GenerateConfig | None, options: Mapping[str, Any]) -> Request:
        request = TextModel._generation(self, prompt, config, options)
        self._prepare(request, "generate", bridge_api.generation(prompt, request.config))
        return request

    def _conversation(
        self, messages: Sequence[Message | Mapping[str, Any]], config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        request = TextModel._conversation(self, messages, config, options)
        self._prepare(request, "chat", bridge_api.conversation(request.messages, request.config, self._name))
        return request

    def _infilling(
        self, prefix: str, suffix: str, config: GenerateConfig | None, options: Mapping[str, Any]
    ) -> Request:
        if "infill" not in self.capabilities or not isinstance(prefix, str) or not isinstance(suffix, str):
            return TextModel._infilling(self, prefix, suffix, config, options)
        request = TextModel._generation(self, prefix, config, options)
        self._prepare(request, "infill", bridge_api.infilling(prefix, suffix, request.config))
        return request

    def _why_not(self, option: str) -> str:
        return ""

    @property
    def _takes_lists(self) -> bool:
        return False  # each prompt is sent in its own request; the server's engine batches them

    def _prepare(self, request: Request, operation: str, fields: Mapping[str, Any]) -> None:
        call = self._call(bridge_format.PREFIX + operation, {**fields, **self._extra}, ())
        request.prepared = Streamed(call, bridge_api.TokenReader)

    def _takes_long(self, request: Request) -> bool:
        return self._verification(request) is not None

    def _verify(self, request: Request) -> None:
        """Let the served model check the request, if it has something to check."""
        fields = self._verification(request)
        if fields is None:
            return
        key = hashlib.sha256(body(fields)).digest()
        if key in self._known:
            return
        with self._named():
            self._fetch(bridge_format.PREFIX + "verify", fields)
        self._known[key] = None
        with contextlib.suppress(KeyError):  # another thread was first
            while len(self._known) > _VERIFIED:
                self._known.popitem(last=False)

    def _verification(self, request: Request) -> dict[str, Any] | None:
        config = request.config
        if request.kind == "chat":
            usual = not self._bridge.verifies or bridge_api.is_usual(request.messages)
            if usual and not bridge_api.needs_verifying(config):
                return None
            fields = bridge_api.conversation(request.messages if not usual else (), config, self._name)
        elif not bridge_api.needs_verifying(config):
            return None
        else:
            fields = {"config": bridge_format.config_to_json(config)}
        return {"kind": request.kind, **fields}

    # ------------------------------------------------ generating

    def _run(self, request: Request) -> Iterator[Token]:
        with self._named():
            yield from super()._run(request)

    async def _tokens(self, request: Request) -> AsyncGenerator[Token]:
        with self._named():
            async with contextlib.aclosing(super()._tokens(request)) as tokens:
                async for token in tokens:
                    yield token

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Replace the server's backend in an UnsupportedError by this model's."""
        try:
            yield
        except UnsupportedError as error:
            raise UnsupportedError(error.feature, self._name, error.why) from error

    # ------------------------------------------------ other operations

    def _classify(self, call: ClassifyCall) -> list[ClassifyResult]:
        return self._classified(self._ask("classify", self._classify_fields(call), counts=True))

    async def _aclassify(self, call: ClassifyCall) -> list[ClassifyResult]:
        return self._classified(await self._aask("classify", self._classify_fields(call)))

    def _classify_fields(self, call: ClassifyCall) -> dict[str, Any]:
        checked = self._config(call.config, call.options, logits=True)
        fields: dict[str, Any] = {"prompts": call.texts(), "config": bridge_format.config_to_json(checked)}
        return fields if call.labels is None else fields | {"labels": strings(call.labels, "labels")}

    @staticmethod
    def _classified(answer: Any) -> list[ClassifyResult]:
        return [bridge_format.classified_from_json(one) for one in answer]

    def _decide(self, work: Deciding) -> Decision:
        return bridge_format.decision_from_json(self._ask("decide", self._decide_fields(work), counts=True))

    async def _adecide(self, work: Deciding) -> Decision:
        return bridge_format.decision_from_json(await self._aask("decide", self._decide_fields(work)))

    @staticmethod
    def _decide_fields(work: Deciding) -> dict[str, Any]:
        questions = {name: bridge_format.question_to_json(one) for name, one in work.questions.items()}
        return {"state": work.state, "questions": questions, "config": bridge_format.config_to_json(work.config)}

    def count_tokens(self, text: str) -> int:
        self._check_text(text)
        return int(self._ask("count", {"text": text}))

    # ------------------------------------------------ asking

    def _fetching(self) -> Request:
        request = super()._fetching()
        request.verifying = True  # a TypeError or ValueError comes from the served model, about the caller's arguments
        return request

    def _ask(self, operation: str, fields: Mapping[str, Any], *, counts: bool = False) -> Any:
        """Return the "data" of an answer that is not a stream. Raises what the served model raises."""
        with self._named():
            return _data(self._fetch(bridge_format.PREFIX + operation, fields, counts=counts))

    async def _aask(self, operation: str, fields: Mapping[str, Any]) -> Any:
        check_asyncio(self._name)
        with self._named():
            return _data(await self._afetch(bridge_format.PREFIX + operation, fields))


class BridgeTokenModel(BridgeModel):
    """A `BridgeModel` that implements `TokenModel`."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of `text`; see `TokenModel.tokenize`."""
        self._check_text(text)
        return list(self._ask("tokenize", {"text": text, "special": special}))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids; see `TokenModel.detokenize`."""
        self._check_open()
        return str(self._ask("detokenize", {"tokens": list(tokens)}))

    def count_chat_tokens(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> int:
        """Return the number of tokens of a rendered conversation; see `TokenModel.count_chat_tokens`."""
        request = TextModel._conversation(self, messages, config, options)
        return int(self._ask("count", bridge_api.conversation(request.messages, request.config, self._name)))


class BridgeEmbeddingModel(BridgeModel):
    """A `BridgeModel` that implements `EmbeddingModel`."""

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """Return one vector for each text, of length `info.hidden_size`.

        Args:
            texts: The texts.
            truncate: Whether to cut off the end of a text that is longer than the context.

        Raises:
            UnsupportedError: The served model can't truncate.
        """
        self._check_open()
        given = strings(texts, "texts")
        return list(self._ask("embed", {"texts": given, "truncate": truncate}, counts=True)) if given else []

    async def aembed(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[float]]:
        """`embed`, asynchronously."""
        self._check_open()
        given = strings(texts, "texts")
        return list(await self._aask("embed", {"texts": given, "truncate": truncate})) if given else []


class BridgeTokenEmbeddingModel(BridgeTokenModel, BridgeEmbeddingModel):
    """A `BridgeModel` that implements `TokenModel` and `EmbeddingModel`."""


def kind_of(facts: ServerFacts) -> type[BridgeModel]:
    """Return the class for a model. It implements the protocols that the served model implements."""
    assert facts.bridge is not None
    tokens, embeds = facts.bridge.shows_tokens, "embeddings" in facts.capabilities
    if embeds:
        return BridgeTokenEmbeddingModel if tokens else BridgeEmbeddingModel
    return BridgeTokenModel if tokens else BridgeModel


def _data(answer: Any) -> Any:
    if not isinstance(answer, Mapping) or "data" not in answer:
        raise ServerError("the server's answer has no data in it")
    return answer["data"]
