# SPDX-License-Identifier: Apache-2.0
"""A GGUF model on a managed server: from a LoadConfig to llama-server's command line, and a TextModel over it."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ... import sources
from ...catalog import gguf_checks
from ...catalog.headers import gguf
from ...engine.hardware import physical_cores
from ...engine.infill import FILL_NAMES
from ...errors import BackendUnavailableError, ModelLoadError, ModelNotFoundError, UnsupportedError
from ...options import DEFAULTS, GenerateConfig, LoadConfig
from ...request import Request
from ...types import ModelInfo, Token
from ..http.detection import server_info
from ..http.facts import FillTokens, ServerFacts
from ..http.model import HttpModel
from ..http.pooled_models import HttpEmbeddingModel, HttpRankModel
from ..http.transport.connection import FIRST_TOKEN_TIMEOUT
from . import constraints
from .process import START_TIMEOUT, ServerPlan, ServerProcess
from .schemas import ServerSchemas

if TYPE_CHECKING:
    from .backend import LlamaServerBackend

DEFAULT_SLOTS = 4
ALL_LAYERS = 999
"""More than any model has; -1 means other things to other versions of llama-server."""

CONTEXT_STEP = 256
"""llama.cpp rounds the context of a slot up to a multiple of this."""

_KEEP = frozenset({"tokenizer.chat_template"})

_OURS = {
    "--model": "the source",
    "-m": "the source",
    "--ctx-size": "context_length",
    "-c": "context_length",
    "--parallel": "parallel_slots",
    "-np": "parallel_slots",
    "--mmproj": "mmproj",
    "-mm": "mmproj",
    "--model-draft": "draft_model",
    "-md": "draft_model",
    "--spec-draft-model": "draft_model",
    "--lora": "adapters",
    "--chat-template": "chat_template",
    "--chat-template-file": "chat_template",
    "--host": "",
    "--port": "",
    "--api-key": "",
    "--api-key-file": "",
    "--api-prefix": "",
    "--ssl-key-file": "",
    "--ssl-cert-file": "",
}
"""Arguments that `extra` must not hold: a load option says the same, or, where it is "", this package chooses it."""

_NAMED = {
    "--cache-type-k": "kv_cache_type",
    "-ctk": "kv_cache_type",
    "--cache-type-v": "kv_cache_type",
    "-ctv": "kv_cache_type",
    "--flash-attn": "kv_cache_type",
    "-fa": "kv_cache_type",
    "--split-mode": "split_mode",
    "-sm": "split_mode",
    "--tensor-split": "tensor_split",
    "-ts": "tensor_split",
    "--device": "device",
    "-dev": "device",
    "--spec-type": "draft_ngram",
    "--spec-ngram-simple-size-n": "draft_ngram",
    "--spec-ngram-simple-size-m": "draft_tokens",
    "--spec-draft-n-max": "draft_tokens",
    "--draft-max": "draft_tokens",
    "--threads": "threads",
    "-t": "threads",
}
"""Arguments that `extra` may only hold where the load option that sets them is not set."""


_UNSET = DEFAULTS.over(GenerateConfig(top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0))


class ServerModel(HttpModel):
    """A model on a managed llama-server. `process.pid` is the server's, while it runs."""

    def __init__(
        self,
        plan: ServerPlan,
        facts: ServerFacts,
        header: gguf.GGUFMetadata,
        meter: Callable[[int], int] | None = None,
        *,
        compiles: bool = False,
    ) -> None:
        self.process = ServerProcess(plan)
        self._schemas = ServerSchemas(plan.backend, compiles)
        self._meter = meter
        self._peak = 0
        super().__init__(plan.backend, self.process.connect, facts=facts, explain=self.process.explain, blocks=True)
        self.recommended = header.sampling
        # A model that is dropped lets its server go; at exit the kernel does.
        self._let_go = weakref.finalize(self, self.process.close)
        self._let_go.atexit = False

    def close(self) -> None:
        super().close()
        self._let_go()

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        """Check the constraints, and set what is not set as the contract has it, whatever the server would do."""
        self._schemas.check(config)
        return config.over(_UNSET)

    def _why_not(self, option: str) -> str:
        return constraints.why_not(option) if option in constraints.OPTIONS else super()._why_not(option)

    def _sent_schema(self, schema: Mapping[str, Any], *, calls: bool = False) -> Mapping[str, Any]:
        return self._schemas.sent(schema, spaced=calls)

    def _sent_grammar(self, config: GenerateConfig) -> str | None:
        return self._schemas.sent_grammar(config)

    def _run(self, request: Request) -> Iterator[Token]:
        if self.process.ready(request) is not None:
            answer = []
            for token in self._completed(request):
                answer.append(token)
                yield token
            self._schemas.check_answer(request, answer)

    def _completed(self, request: Request) -> Iterator[Token]:
        """Yield the server's tokens; a constrained answer that the limit of tokens cuts off is completed."""
        completion = self._schemas.completion(request, self.count_tokens)
        if completion is None:
            yield from super()._run(request)
            return
        try:
            for token in super()._run(request):
                yield from completion.take(token)
            rest = completion.end()
        except Exception:
            yield from completion.held  # for the error's `partial`
            raise
        yield from rest

    async def _tokens(self, request: Request) -> AsyncGenerator[Token]:
        import asyncio

        if not self.process.is_ready and await asyncio.to_thread(self.process.ready, request) is None:
            return
        async with contextlib.aclosing(self._acompleted(request)) as tokens:
            answer = []  # the request may not have all of it yet: the stream's consumer takes tokens later
            async for token in tokens:
                answer.append(token)
                yield token
        if self._schemas.is_checked(request):
            await asyncio.to_thread(self._schemas.check_answer, request, answer)

    async def _acompleted(self, request: Request) -> AsyncGenerator[Token]:
        """`_completed`, asynchronously."""
        import asyncio

        completion = None
        if self._schemas.completes(request.config):
            completion = await asyncio.to_thread(self._schemas.completion, request, self.count_tokens)
        async with contextlib.aclosing(super()._tokens(request)) as tokens:
            if completion is None:
                async for token in tokens:
                    yield token
                return
            try:
                async for token in tokens:
                    for one in completion.take(token):
                        yield one
                rest = await asyncio.to_thread(completion.end)
            except Exception:
                for one in completion.held:
                    yield one
                raise
        for one in rest:
            yield one

    def _end(self, request: Request) -> None:
        if not sys.is_finalizing():  # then what would ask is being taken apart
            active, peak = self._memory()
            request.measure(active_memory_bytes=active, peak_memory_bytes=peak)
        super()._end(request)

    def _memory(self) -> tuple[int, int]:
        """Bytes in use now and at most, on the device where the model is on one."""
        pid = self.process.pid
        if self._meter is None or pid is None:
            return self.process.memory()
        active = self._meter(pid)
        self._peak = max(self._peak, active)
        return active, self._peak


class ServerEmbeddingModel(ServerModel, HttpEmbeddingModel):
    """An embedding model on a managed llama-server: it generates nothing."""


class ServerRankModel(ServerModel, HttpRankModel):
    """A reranker on a managed llama-server: it generates nothing."""


def load(backend: LlamaServerBackend, source: str, config: LoadConfig) -> ServerModel:
    """The model in the GGUF file `source`, whose server starts when it is first needed.

    Raises ModelNotFoundError, ModelLoadError, UnsupportedError and BackendUnavailableError.
    """
    availability = backend.availability()
    program = backend.program() if availability else None
    if program is None:
        raise BackendUnavailableError(backend.name, availability)
    path = _existing(source, "model")
    if config.mmproj is None:
        config = config.with_options({"mmproj": gguf_checks.projector_of(path)})
    header = gguf.read_metadata(path, keep=_KEEP)
    gguf_checks.check(header)
    slots = config.parallel_slots or DEFAULT_SLOTS
    arguments = ["--model", path, "--parallel", str(slots)]
    arguments += ["--n-gpu-layers", str(ALL_LAYERS if config.gpu_layers in (None, -1) else config.gpu_layers)]
    arguments += ["--threads", str(config.threads or physical_cores())]
    # What older versions have the other way round.
    arguments += ["--jinja", "--no-context-shift"]
    if config.batch_size:
        arguments += ["--batch-size", str(config.batch_size), "--ubatch-size", str(config.batch_size)]
    arguments += backend.device_arguments(config)
    if config.kv_cache_type is not None:  # llama.cpp wants flash attention for it
        arguments += ["--cache-type-k", config.kv_cache_type, "--cache-type-v", config.kv_cache_type]
        arguments += ["--flash-attn", "on"]
    files = []
    for flag, given in _companions(backend.name, config):
        arguments += [flag, given]
        files.append(given)
    weights = gguf_checks.weights_bytes(header, files)
    arguments += _drafts(backend.name, config)
    if header.embeds:
        arguments += ["--embeddings", *(["--pooling", "rank"] if header.ranks else [])]
    arguments += _extra(config)
    plan = ServerPlan(
        backend=backend.name,
        program=program,
        arguments=tuple(arguments),
        model=path,
        context_length=config.context_length or 0,
        slots=slots,
        environment=backend.environment(config),
        chat_template=config.chat_template,
        start_timeout=config.connect_timeout or START_TIMEOUT,
        first_token_timeout=config.first_token_timeout or FIRST_TOKEN_TIMEOUT,
    )
    length = _context_length(backend, header, weights, config, slots)
    plan = replace(plan, context_length=length)
    if header.embeds and not config.batch_size:  # a text is evaluated in one piece, or not at all
        plan = replace(plan, arguments=("--batch-size", str(length), "--ubatch-size", str(length), *plan.arguments))
    facts = _facts(header, weights, config, length, slots)
    kind = ServerRankModel if header.ranks else ServerEmbeddingModel if header.embeds else ServerModel
    compiles = program == backend.wheel()
    if not header.embeds:
        facts = replace(facts, options=facts.options | constraints.options(compiles))
    return kind(plan, facts, header, backend.memory_meter(config), compiles=compiles)


def _existing(path: str, what: str) -> str:
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise ModelNotFoundError(f"the {what} {path} does not exist")
    return path


def _context_length(
    backend: LlamaServerBackend, header: gguf.GGUFMetadata, weights: int, config: LoadConfig, slots: int
) -> int:
    asked, own = config.context_length or 0, header.info.context_length
    if asked > own > 0 and "--override-kv" not in (config.extra or {}):
        why = f"llama-server gives an operation at most the {own} tokens that the model was trained for"
        raise UnsupportedError(f"context_length={asked}", backend.name, why)
    if config.memory_limit and config.draft_model is not None:
        why = "the draft model's context would not be counted: leave one of them out"
        raise UnsupportedError("memory_limit with draft_model", backend.name, why)
    kv_cache_type = config.kv_cache_type or "f16"
    most = gguf_checks.left_for_context(header, weights, asked, slots, config.memory_limit or 0, kv_cache_type)
    free = max(backend.memory(config) - weights, 0)
    length = gguf_checks.context_length(header, asked, slots, free, kv_cache_type=kv_cache_type, most=most)
    rounded = -(-length // CONTEXT_STEP) * CONTEXT_STEP
    return min(rounded, own) if length <= own else rounded


def _companions(backend: str, config: LoadConfig) -> Iterator[tuple[str, str]]:
    """The files beside the model: llama-server's flag for each, and its absolute path."""
    for given in config.adapters or ():
        path = _existing(given, "LoRA adapter")
        if gguf.read_metadata(path).kind != "adapter":
            raise ModelLoadError(f"{path} is not a LoRA adapter in GGUF format")
        if "," in path:
            raise UnsupportedError(f"the adapter {path}", backend, "llama-server takes a comma for the end of a path")
        yield "--lora", path
    if config.mmproj is not None:
        path = _existing(config.mmproj, "projector (mmproj)")
        gguf_checks.check_projector(gguf.read_metadata(path))
        yield "--mmproj", path
    if config.draft_model is not None:
        path = os.path.abspath(sources.locate(sources.parse(config.draft_model, None, ()), None))
        gguf_checks.check(gguf.read_metadata(path))
        yield "--model-draft", path


def _drafts(backend: str, config: LoadConfig) -> list[str]:
    """What has the server guess several tokens at once, and check them in one step. Raises UnsupportedError."""
    arguments = []
    tokens = "--spec-draft-n-max"
    if config.draft_ngram:
        if config.draft_model is not None:
            raise UnsupportedError("draft_ngram with draft_model", backend, "set one of them")
        if 0 < (config.draft_tokens or 0) < config.draft_ngram:
            what = f"draft_tokens={config.draft_tokens} with draft_ngram={config.draft_ngram}"
            raise UnsupportedError(what, backend, "llama-server guesses nothing shorter than what it looks for")
        arguments = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(config.draft_ngram)]
        tokens = "--spec-ngram-simple-size-m"
    elif config.draft_tokens and config.draft_model is None:
        why = "nothing drafts tokens: set draft_model or draft_ngram too"
        raise UnsupportedError("draft_tokens", backend, why)
    return arguments + ([tokens, str(config.draft_tokens)] if config.draft_tokens else [])


def _extra(config: LoadConfig) -> list[str]:
    extra = config.extra or {}
    if isinstance(extra, Mapping):
        if extra:
            raise TypeError("extra must be a list of llama-server's arguments for this backend, not a mapping")
        return []
    for argument in extra:
        flag = argument.partition("=")[0]
        if flag in _OURS:
            advice = f"set {_OURS[flag]} instead" if _OURS[flag] else "it is chosen for each server"
            raise ValueError(f"extra must not hold {flag}: {advice}")
        if flag in _NAMED and getattr(config, _NAMED[flag]) is not None:
            raise ValueError(f"extra must not hold {flag} where {_NAMED[flag]} is set: leave one of them out")
    return list(extra)


def _facts(header: gguf.GGUFMetadata, weights: int, config: LoadConfig, length: int, slots: int) -> ServerFacts:
    """What the server would say of itself: known from the files, so that it need not run to be asked."""
    projector = gguf.read_metadata(config.mmproj).values if config.mmproj is not None else {}
    template = config.chat_template or header.text("tokenizer.chat_template") or "chatml"  # llama-server's own
    known = template if config.chat_template else template + header.text("tokenizer.chat_template.tool_use")
    props = {
        "total_slots": slots,
        "chat_template": template,
        "chat_template_caps": {"supports_tools": "tools" in known, "supports_tool_calls": "tool_calls" in known},
        "modalities": {
            "vision": projector.get("clip.has_vision_encoder") is True,
            "audio": projector.get("clip.has_audio_encoder") is True,
        },
    }
    facts = server_info._facts("llama.cpp", True, "/v1", None, {}, props)
    kv_cache_type = config.kv_cache_type or "f16"
    per_token = gguf_checks.bytes_per_token(header, kv_cache_type)
    info: ModelInfo = replace(
        header.info,
        context_length=length,
        weights_bytes=weights,
        context_bytes=gguf_checks.round_up(length) * slots * per_token,
        kv_cache_type=kv_cache_type,
    )
    fill = _fill_tokens(header)
    if fill is not None:
        facts = replace(facts, fill=fill, capabilities=facts.capabilities | {"infill"})
    kind = "rerank" if header.ranks else "embeddings"
    capabilities = frozenset({kind, "stats"}) if header.embeds else facts.capabilities
    return replace(
        facts,
        model_type=header.architecture,
        info=info,
        capabilities=capabilities,
        takes_media=config.mmproj is not None,
    )


def _fill_tokens(header: gguf.GGUFMetadata) -> FillTokens | None:
    """The model's tokens for fill in the middle, if it has them.

    The server would end the beginning of the prompt with what it adds to the end of texts, for a model that wants it.
    """
    ends = ("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token")
    if header.embeds or any(header.values.get(key) is True for key in ends):
        return None
    ids = gguf.token_ids(header, FILL_NAMES)
    return None if ids is None else FillTokens(None, *ids)
