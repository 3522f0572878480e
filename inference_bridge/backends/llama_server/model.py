# SPDX-License-Identifier: Apache-2.0
"""A GGUF model on a managed server: llama-server's command line from a LoadConfig, and the TextModel."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ... import sources
from ..._calls.arguments import check_token_ids
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
from ..http.transport.call import Reader
from ..http.transport.connection import FIRST_TOKEN_TIMEOUT
from . import constraints
from .process import START_TIMEOUT, ServerPlan, ServerProcess
from .schemas import ServerSchemas

if TYPE_CHECKING:
    from .backend import LlamaServerBackend

DEFAULT_SLOTS = 4
ALL_LAYERS = 999
"""More layers than any model has. -1 is not used, because its meaning differs between versions of llama-server."""

CONTEXT_STEP = 256
"""llama.cpp rounds the context of a slot up to a multiple of this."""

_KEEP = frozenset({"tokenizer.chat_template"})

_RESERVED = {
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
"""Arguments that `extra` must not have, with the load option to use instead. "": this package sets the argument."""

_BY_OPTION = {
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
"""Arguments that `extra` may have only if the load option for the same setting is not set."""


_UNSET = DEFAULTS.over(GenerateConfig(top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0))


class ServerModel(HttpModel):
    """A model on a managed llama-server.

    Attributes:
        process: The server's process. `process.pid` is its process id, while it runs.
    """

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
        # Stops the server of a model that is dropped. At exit the closed connection stops it.
        self._stop_server = weakref.finalize(self, self.process.close)
        self._stop_server.atexit = False

    def close(self) -> None:
        super().close()
        self._stop_server()

    def _checked(self, config: GenerateConfig) -> GenerateConfig:
        """Check the constraints, and fill options that are not set with the contract's defaults, not the server's."""
        check_token_ids(config, self.info.vocab_size)
        self._schemas.check(config)
        return config.over(_UNSET)

    def _why_not(self, option: str) -> str:
        return constraints.why_not(option) if option in constraints.OPTIONS else super()._why_not(option)

    def _sent_schema(self, schema: Mapping[str, Any], *, calls: bool = False) -> Mapping[str, Any]:
        return self._schemas.sent(schema, spaced=calls)

    def _sent_grammar(self, config: GenerateConfig) -> str | None:
        return self._schemas.sent_grammar(config)

    def _checking(self, reader: Callable[[Request], Reader]) -> Callable[[Request], Reader]:
        return reader  # `check_answer` compares it, with the grammar

    def _run(self, request: Request) -> Iterator[Token]:
        if self.process.ready(request) is not None:
            answer = []
            for token in self._completed(request):
                answer.append(token)
                yield token
            self._schemas.check_answer(request, answer)

    def _completed(self, request: Request) -> Iterator[Token]:
        """Yield the server's tokens. Complete a constrained answer that max_tokens cuts off."""
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
            answer = []  # a separate list, because the request does not have tokens yet that its consumer has not read
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
        if not sys.is_finalizing():  # modules that are needed to measure may be gone then
            active, peak = self._memory()
            request.measure(active_memory_bytes=active, peak_memory_bytes=peak)
        super()._end(request)

    def _memory(self) -> tuple[int, int]:
        """Return the bytes in use and their peak: of the device that the model is on, else of the server's process."""
        pid = self.process.pid
        if self._meter is None or pid is None:
            return self.process.memory()
        active = self._meter(pid)
        self._peak = max(self._peak, active)
        return active, self._peak


class ServerEmbeddingModel(ServerModel, HttpEmbeddingModel):
    """An embedding model on a managed llama-server."""


class ServerRankModel(ServerModel, HttpRankModel):
    """A reranker on a managed llama-server."""


def load(backend: LlamaServerBackend, source: str, config: LoadConfig) -> ServerModel:
    """Load the model in a GGUF file. Its server starts at the first use.

    Args:
        backend: The backend.
        source: The path of the file.
        config: The load options.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelLoadError: A file can't be loaded, or the memory does not suffice.
        UnsupportedError: An option can't be honoured.
        BackendUnavailableError: There is no llama-server.
        TypeError, ValueError: `extra` is wrong.
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
    # These are not the defaults of older versions.
    arguments += ["--jinja", "--no-context-shift"]
    if config.batch_size:
        arguments += ["--batch-size", str(config.batch_size), "--ubatch-size", str(config.batch_size)]
    arguments += backend.device_arguments(config)
    if config.kv_cache_type is not None:  # llama.cpp needs flash attention for it
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
    if header.embeds and not config.batch_size:  # a text must be evaluated in one batch
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
    """Yield llama-server's flag and the absolute path of each adapter, projector and draft model.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelLoadError: A file is not of the right kind.
        UnsupportedError: The path of an adapter has a comma.
    """
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
    """Return the arguments for speculative decoding. Raises UnsupportedError."""
    arguments = []
    tokens = "--spec-draft-n-max"
    if config.draft_ngram:
        if config.draft_model is not None:
            raise UnsupportedError("draft_ngram with draft_model", backend, "set one of them")
        if 0 < (config.draft_tokens or 0) < config.draft_ngram:
            what = f"draft_tokens={config.draft_tokens} with draft_ngram={config.draft_ngram}"
            raise UnsupportedError(what, backend, "llama-server drafts at least as many tokens as draft_ngram")
        arguments = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(config.draft_ngram)]
        tokens = "--spec-ngram-simple-size-m"
    elif config.draft_tokens and config.draft_model is None:
        why = "nothing drafts tokens: set draft_model or draft_ngram too"
        raise UnsupportedError("draft_tokens", backend, why)
    return arguments + ([tokens, str(config.draft_tokens)] if config.draft_tokens else [])


def _extra(config: LoadConfig) -> list[str]:
    """Return the arguments in `extra`. Raises TypeError and ValueError."""
    extra = config.extra or {}
    if isinstance(extra, Mapping):
        if extra:
            raise TypeError("extra must be a list of llama-server's arguments for this backend, not a mapping")
        return []
    for argument in extra:
        flag = argument.partition("=")[0]
        if flag in _RESERVED:
            advice = f"set {_RESERVED[flag]} instead" if _RESERVED[flag] else "it is chosen for each server"
            raise ValueError(f"extra must not hold {flag}: {advice}")
        if flag in _BY_OPTION and getattr(config, _BY_OPTION[flag]) is not None:
            raise ValueError(f"extra must not hold {flag} where {_BY_OPTION[flag]} is set: leave one of them out")
    return list(extra)


def _facts(header: gguf.GGUFMetadata, weights: int, config: LoadConfig, length: int, slots: int) -> ServerFacts:
    """Return what the server would report about itself. It is read from the files, so the server need not run."""
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
    """Return the model's tokens for fill in the middle. None: it has none, or they can't be used.

    They can't be used if the model expects a token such as EOS at the end of texts: the server would insert it into the
    prompt, after its first part.
    """
    ends = ("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token")
    if header.embeds or any(header.values.get(key) is True for key in ends):
        return None
    ids = gguf.token_ids(header, FILL_NAMES)
    return None if ids is None else FillTokens(None, *ids)
