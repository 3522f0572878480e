# SPDX-License-Identifier: Apache-2.0
"""Loading a GGUF file into a TextModel: what it is, how much context fits, who renders its chats."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from .. import gguf
from ..engine.chat_template import ChatTemplate
from ..engine.hardware import available_memory, physical_cores
from ..engine.model import EngineModel
from ..engine.worker import Worker
from ..errors import ModelNotFoundError, UnsupportedError
from ..model import TextModel
from ..options import LoadConfig
from . import gguf_load
from .llama_embeddings import EmbeddingContext, LlamaEmbeddingModel
from .llama_engine import LlamaEngine
from .llama_native import NativeContext, NativeModel, can_offload

DEFAULT_SLOTS = 4
BATCH_SIZE = 512

FIRST_LENGTH = 512
"""Tokens for which a slot has memory from the start, on a CPU; the rest of its context is added as it is needed."""

_OF_EMBEDDINGS = frozenset({"context_length", "gpu_layers", "threads", "extra"})
_KEEP = frozenset({"tokenizer.chat_template"})


def load(path: str, config: LoadConfig) -> TextModel:
    """The model in the GGUF file at `path`. Raises ModelNotFoundError, ModelLoadError or UnsupportedError."""
    if not os.path.exists(path):
        raise ModelNotFoundError(f"there is no file {path}")
    header = gguf.read_metadata(path, keep=_KEEP)
    gguf_load.check(header)
    if not isinstance(config.extra, Mapping):
        raise TypeError("extra must be a mapping of llama.cpp parameters for this backend, not a list")
    wanted = threading.Event()
    wanted.set()
    with ExitStack() as made:

        def open_native() -> Callable[[Worker], TextModel]:
            opened = _Opening(header, config, made)
            opened.native = NativeModel(
                path, gpu_layers=config.gpu_layers, extra=opened.extra, taken=opened.taken, proceed=wanted.is_set
            )
            made.callback(opened.native.close)
            build = opened.embedding_model() if header.embeds else opened.text_model()
            for name in opened.extra:
                if name not in opened.taken:
                    raise TypeError(f"extra[{name!r}] is no field of llama_model_params or llama_context_params")
            return build

        def finish() -> TextModel:
            worker = _worker(config)
            try:
                model = build(worker)
            except BaseException:
                worker.give_back()
                raise
            made.pop_all()
            return model

        # A thread of its own: the one that decodes for other models has to go on, and Ctrl-C must
        # not come while llama.cpp calls back into Python, where it would be lost.
        loader = Worker("inference-bridge-load")
        try:
            build = loader.call(open_native)
            # Not in the same call: jinja2 keeps alive, in a cycle, the frames under which a template
            # failed in a trial, and one of those would be where the model is.
            return loader.call(finish)
        finally:
            wanted.clear()
            loader.stop()


def _worker(config: LoadConfig) -> Worker:
    """Models on the CPU share a thread, which decodes for each in turn.

    libgomp keeps a team of threads for every thread that has decoded. As soon as those are
    more than the cores, none of them waits actively any more: with a second thread, even
    one that has nothing to do, the first decodes at 0.6 of its speed.
    """
    name = "inference-bridge-llama"
    return Worker(name) if can_offload() and config.gpu_layers != 0 else Worker.shared(name)


class _Opening:
    """Makes the native parts of a model; each method says how to build the rest."""

    native: NativeModel

    def __init__(self, header: gguf.GGUFMetadata, config: LoadConfig, made: ExitStack) -> None:
        assert isinstance(config.extra, Mapping)
        self.extra: Mapping[str, Any] = config.extra
        self.taken: set[str] = set()
        self._header = header
        self._config = config
        self._made = made

    def text_model(self) -> Callable[[Worker], TextModel]:
        header, config, native = self._header, self._config, self.native
        if not native.has_decoder:
            raise UnsupportedError(
                "generating text with this model", "llama_cpp", f"{header.path} has an encoder: it is no decoder model"
            )
        slots = config.parallel_slots or DEFAULT_SLOTS
        length = gguf_load.context_length(header, config.context_length, slots, available_memory())
        batch_size = config.batch_size or BATCH_SIZE
        # What a GPU has no room for should show at once: there all memory is taken when the model is loaded.
        grows = not (can_offload() and config.gpu_layers != 0) and gguf_load.is_free_of_length(header)
        context = NativeContext(
            native,
            slots=slots,
            length=min(length, max(FIRST_LENGTH, batch_size)) if grows else length,
            threads=config.threads or physical_cores(),
            batch_size=batch_size,
            adapters=config.adapters,
            extra=self.extra,
            taken=self.taken,
        )
        self._made.callback(context.close)
        return partial(LlamaModel, header, native, context, length, _template(header, native, config.chat_template))

    def embedding_model(self) -> Callable[[Worker], TextModel]:
        header, config, native = self._header, self._config, self.native
        for name in config.set_fields():
            if name not in _OF_EMBEDDINGS:
                raise UnsupportedError(f"{name} for an embedding model", "llama_cpp")
        length = config.context_length or header.info.context_length or gguf_load.FALLBACK_CONTEXT
        context = EmbeddingContext(
            native,
            length=length,
            threads=config.threads or physical_cores(),
            extra=self.extra,
            taken=self.taken,
        )
        self._made.callback(context.close)
        return partial(LlamaEmbeddingModel, header, native, context, length)


class LlamaModel(EngineModel):
    """A GGUF model on llama.cpp, in this process."""

    backend = "llama_cpp"

    def __init__(
        self,
        header: gguf.GGUFMetadata,
        native: NativeModel,
        context: NativeContext,
        length: int,
        template: ChatTemplate | None,
        worker: Worker,
    ) -> None:
        self.info = replace(header.info, vocab_size=native.vocab_size, context_length=length)
        self.model_type = header.architecture
        self.recommended = header.sampling
        engine = LlamaEngine(native, context, length, token_bytes=gguf_load.bytes_per_token(header))
        super().__init__(engine, worker, native, template)


def _template(header: gguf.GGUFMetadata, native: NativeModel, given: str | None) -> ChatTemplate | None:
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
    )
