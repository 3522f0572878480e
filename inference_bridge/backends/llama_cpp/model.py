# SPDX-License-Identifier: Apache-2.0
"""A GGUF model that generates text: its context length, its chat template, and its projector."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from ...catalog import gguf_checks
from ...catalog.found import parts_of
from ...catalog.headers import gguf
from ...chat.attachments import content
from ...chat.templates.renderer import Renderer, RenderError
from ...chat.templates.template import ChatTemplate
from ...engine.hardware import available_memory, physical_cores
from ...engine.model import EngineModel, Prompt
from ...engine.prefix_cache.files import fingerprint
from ...engine.prefix_cache.store import PrefixStore
from ...engine.worker import Worker
from ...errors import ModelNotFoundError, UnsupportedError
from ...request import Request
from .context import NativeContext
from .devices import free_bytes
from .engine import LlamaEngine
from .files import vetting
from .threads import Threads
from .weights import NativeModel

if TYPE_CHECKING:
    from ...options import LoadConfig
    from ...types import ModelInfo
    from .load import Build, Opened, Prepare
    from .media.projector import Medium, NativeProjector

_log = logging.getLogger(__name__)

DEFAULT_SLOTS = 4
BATCH_SIZE = 512

FIRST_LENGTH = 512
"""Tokens for which each slot of a model on the CPU has memory at first. More is allocated as needed."""


def text_model(header: gguf.GGUFMetadata, config: LoadConfig) -> Prepare:
    """Do the part of the load that does not need the weights.

    Args:
        header: The header of the model's file.
        config: The load options.

    Returns:
        The function that does the other part, once the weights are read.

    Raises:
        ModelNotFoundError: The file of the projector does not exist.
        UnsupportedError: An option can't be honoured.
        ModelLoadError: A file can't be loaded, or the memory does not suffice. The returned function raises the last
            two as well.
    """
    source = config.chat_template or header.text("tokenizer.chat_template")
    renderer = None
    if source:
        with contextlib.suppress(RenderError, ModuleNotFoundError):  # ChatTemplate reports the error
            renderer = Renderer(source)
            renderer.undeclared()  # starts the renderer's process and compiles the template, while the model is read
    projector = vetting.check_extras(header, config, _projector_path(config, source, header.path))
    sizes = _Sizes(
        config.parallel_slots or DEFAULT_SLOTS,
        config.kv_cache_type or "f16",
        gguf_checks.weights_bytes(header, [projector, *(config.adapters or ())]),
    )
    most = gguf_checks.left_for_context(
        header, sizes.weights, config.context_length or 0, sizes.slots, config.memory_limit or 0, sizes.kv_cache_type
    )
    return partial(_prepare, projector, sizes, most, Threads.of(config), renderer)


class _Sizes(NamedTuple):
    """What the memory of a model depends on: number of slots, type of the KV cache, and bytes of the weights."""

    slots: int
    kv_cache_type: str
    weights: int


def _prepare(
    projector_path: str | None,
    sizes: _Sizes,
    most: int | None,
    threads: Threads | None,
    renderer: Renderer | None,
    opened: Opened,
) -> Build:
    """Create the projector and the context. Raises UnsupportedError and ModelLoadError."""
    header, config, native, reading = opened.header, opened.config, opened.native, opened.reading
    if not native.has_decoder:
        raise UnsupportedError(
            "generating text with this model",
            "llama_cpp",
            f"{header.path} is not a decoder-only model: it has an encoder",
        )
    template = _template(header, native, config.chat_template, renderer)
    projector = None
    if projector_path is not None:  # before the context, whose length depends on the memory that is free then
        from .media.projector import NativeProjector

        projector = NativeProjector(
            projector_path,
            native,
            threads=config.threads or physical_cores(),
            use_gpu=opened.on_gpu,
            stop=reading.stop,
        )
        reading.made.callback(projector.close)
    slots, kv_cache_type, weights = sizes
    free = partial(free_bytes, reading.placement) if opened.on_gpu else available_memory
    length = gguf_checks.context_length(
        header,
        config.context_length or 0,
        slots,
        free(),
        kv_cache_type=kv_cache_type,
        most=most,
    )
    batch_size = config.batch_size or BATCH_SIZE
    grows = gguf_checks.is_free_of_length(header)
    context = NativeContext(
        native,
        slots=slots,
        length=min(length, max(FIRST_LENGTH, batch_size)) if grows else length,
        threads=threads,
        batch_size=batch_size,
        deterministic=reading.placement.deterministic,
        kv_cache_type=kv_cache_type,
        adapters=config.adapters or (),
        extra=reading.extra,
        taken=reading.taken,
    )
    reading.made.callback(context.close)
    token_bytes = gguf_checks.bytes_per_token(header, kv_cache_type)
    info = replace(
        header.info,
        vocab_size=native.vocab_size,
        context_length=length,
        weights_bytes=weights,
        context_bytes=gguf_checks.round_up(length) * slots * token_bytes,
        kv_cache_type=kv_cache_type,
    )
    _log.info(
        "%s: %.2f GB of weights; up to %.2f GB of context",
        header.path,
        info.weights_bytes / 1e9,
        info.context_bytes / 1e9,
    )
    store = None
    if config.prefix_cache_size:
        files = [*parts_of(header.path), *(config.adapters or ()), *([projector_path] if projector_path else [])]
        store = partial(
            PrefixStore,
            partial(_identity, header, files, {} if grows else {"context_length": length}, opened, context),
            config.prefix_cache_size,
            model=os.path.abspath(header.path),
            whole=native.recurrent or native.window > 0,
        )
    exact = reading.placement.deterministic
    engine = partial(LlamaEngine, native, context, length, token_bytes=token_bytes, free=free, exact=exact)
    return partial(LlamaModel, header, info, native, context, engine, template, projector, store)


def _identity(
    header: gguf.GGUFMetadata,
    files: Sequence[str],
    sizes: Mapping[str, int],
    opened: Opened,
    context: NativeContext,
) -> Mapping[str, Any]:
    """Return everything that the saved state of a prefix depends on. If any of it differs, the state is not used."""
    return {
        "backend": "llama_cpp",
        "version": metadata.version("llama_cpp_python"),
        "files": [fingerprint(path, header.data_start) for path in files],
        "placement": astuple(opened.reading.placement),
        "extra": {name: repr(value) for name, value in opened.reading.extra.items()},
        **context.settings(),
        **sizes,
    }


def _projector_path(config: LoadConfig, template: str, model: str) -> str | None:
    """Return the path of the projector: the one that `mmproj` names, else one beside the model. None: there is none.

    Raises:
        ModelNotFoundError: There is no file at the path.
        ModelLoadError: The file is not a projector.
        UnsupportedError: It can't be used here, or the model has no chat template.
    """
    if config.mmproj is not None and not template:
        raise UnsupportedError("mmproj", "llama_cpp", "the model has no chat template: give one as chat_template")
    path = config.mmproj
    if path is None and template:
        path = gguf_checks.projector_of(model)
    if path is None:
        return None
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise ModelNotFoundError(f"there is no projector (mmproj) at {path}")
    header = gguf.read_metadata(path)
    gguf_checks.check_projector(header)
    if not gguf_checks.counts_sounds(header):
        why = "llama.cpp miscounts the tokens of sounds, which would end this process: use the backend llama_server"
        if config.mmproj is not None:
            raise UnsupportedError(f"the projector {path}", "llama_cpp", why)
        _log.warning("the projector %s is left out: %s", path, why)
        return None
    return path


class LlamaModel(EngineModel):
    """A GGUF model on llama.cpp, in this process."""

    backend = "llama_cpp"

    def __init__(
        self,
        header: gguf.GGUFMetadata,
        info: ModelInfo,
        native: NativeModel,
        context: NativeContext,
        engine: Callable[..., LlamaEngine],
        template: ChatTemplate | None,
        projector: NativeProjector | None,
        store: Callable[..., PrefixStore] | None,
        worker: Worker,
    ) -> None:
        self.info = info
        self.model_type = header.architecture
        self.recommended = header.sampling
        self._native = native
        self._projector = projector
        self._most_at_once = context.most_at_once
        encoder = None
        if projector is not None:
            from .media.projector import Encoder

            encoder = Encoder(projector, worker.wake)
            self._media_marker = projector.marker
        kept = None if store is None else store(wake=worker.wake)
        super().__init__(engine(encoder=encoder, store=kept), worker, native, template)
        if projector is not None:
            self.capabilities |= projector.capabilities

    def close(self) -> None:
        super().close()
        if self._projector is not None:
            self._projector.gate.wait()
        self._native.gate.wait()

    def _render(self, request: Request) -> Prompt:
        prompt = super()._render(request)
        attached = [one for message in request.messages for one in message.attachments]
        if not attached:
            return prompt
        read = [(one.type.partition("/")[0], content(one)) for one in attached]
        media = tuple((kind, data) for kind, data in read if data is not None)
        if len(media) < len(attached):
            why = "nothing is fetched in this process: fetch it, and give its bytes as data="
            raise UnsupportedError("attachments by their URL", self._name, why)
        return replace(prompt, media=media)

    def _tokens(self, request: Request) -> tuple[list[int], Mapping[int, Any]]:
        prompt = request.prepared
        if self._projector is None or not isinstance(prompt, Prompt) or not prompt.media:
            return super()._tokens(request)
        tokens: list[int] = []
        media: dict[int, Medium] = {}
        add_special = not self._native.begins_with_bos(prompt.text)
        encode = partial(self._native.tokenizer.encode, parse_special=True, mark=prompt.mark)
        texts = prompt.text.split(self._projector.marker)
        for place, text in enumerate(texts):
            self._check_wanted(request)
            # Each text between two media is tokenized separately, as in libmtmd. libmtmd itself is not used for it,
            # because it would read special tokens in users' texts.
            tokens += encode(text, add_special=add_special and place == 0) if text or place == 0 else []
            if place < len(prompt.media):
                for piece in self._projector.cut(prompt.media[place], f"{place + 1} of {len(prompt.media)}"):
                    self._append(tokens, media, piece)
        return tokens, media

    def _append(self, tokens: list[int], media: dict[int, Medium], piece: list[int] | Medium) -> None:
        if isinstance(piece, list):
            tokens += piece
            return
        if not piece.causal and piece.tokens > self._most_at_once:
            why = f"load it with batch_size={piece.tokens}, because this model evaluates an image in one batch"
            raise UnsupportedError(f"an image of {piece.tokens} tokens", self._name, why)
        media[len(tokens)] = piece
        tokens += [piece.key] * piece.tokens


def _template(
    header: gguf.GGUFMetadata, native: NativeModel, given: str | None, renderer: Renderer | None
) -> ChatTemplate | None:
    source = given or header.text("tokenizer.chat_template")
    if not source:
        return None
    return ChatTemplate(
        source,
        tool_source=None if given else header.text("tokenizer.chat_template.tool_use") or None,
        bos_token=native.text_of(native.bos),
        eos_token=native.text_of(native.eos),
        vocabulary=native,
        backend="llama_cpp",
        renderer=renderer,
    )
