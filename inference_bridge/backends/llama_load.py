# SPDX-License-Identifier: Apache-2.0
"""Loading a GGUF file with llama.cpp: what both kinds of model, those for text and those for embeddings, begin with."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import gguf
from ..engine.worker import Worker
from ..errors import ModelNotFoundError
from . import gguf_load
from .llama_library import can_offload
from .llama_weights import NativeModel

if TYPE_CHECKING:
    from ..model import TextModel
    from ..options import LoadConfig

_KEEP = frozenset({"tokenizer.chat_template"})


@dataclass(slots=True)
class Opened:
    """A model that llama.cpp has read, on its way to a TextModel.

    `extra` are fields of llama.cpp's parameters, `taken` the names of those that were set; `made` frees what was
    made so far, and `proceed` says whether the loading is still wanted.
    """

    header: gguf.GGUFMetadata
    config: LoadConfig
    native: NativeModel
    extra: Mapping[str, Any]
    taken: set[str]
    made: ExitStack
    proceed: Callable[[], bool] = field(repr=False)

    @property
    def on_gpu(self) -> bool:
        return can_offload() and self.config.gpu_layers != 0


def load(path: str, config: LoadConfig) -> TextModel:
    """The model in the GGUF file at `path`. Raises ModelNotFoundError, ModelLoadError or UnsupportedError."""
    if not os.path.exists(path):
        raise ModelNotFoundError(f"there is no file {path}")
    header = gguf.read_metadata(path, keep=_KEEP)
    gguf_load.check(header)
    extra = config.extra
    if not isinstance(extra, Mapping):
        raise TypeError("extra must be a mapping of llama.cpp parameters for this backend, not a list")
    wanted = threading.Event()
    wanted.set()
    with ExitStack() as made:

        def read() -> Opened:
            taken: set[str] = set()
            native = NativeModel(path, gpu_layers=config.gpu_layers, extra=extra, taken=taken, proceed=wanted.is_set)
            made.callback(native.close)
            return Opened(header, config, native, extra, taken, made, wanted.is_set)

        def prepare() -> Callable[[Worker], TextModel]:
            build = prepare_model(opened)
            for name in extra:
                if name not in opened.taken:
                    raise TypeError(f"extra[{name!r}] is no field of llama_model_params or llama_context_params")
            return build

        def finish() -> TextModel:
            worker = _worker(opened)
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
            reading = loader.submit(read)
            # Here, because llama.cpp leaves the interpreter free while it reads.
            if header.embeds:
                from .llama_embeddings import embedding_model as prepare_model
            else:
                from .llama_model import compile_template
                from .llama_model import text_model as prepare_model

                compile_template(header, config)
            opened = reading.result()
            build = loader.call(prepare)
            # Not in the same call: jinja2 keeps alive, in a cycle, the frames under which a template
            # failed in a trial, and one of those would be where the model is.
            finished = loader.submit(finish)
            try:
                return finished.result()
            except BaseException:  # where it is Ctrl-C, there will be a model that nobody has
                finished.add_done_callback(_close)
                raise
        finally:
            wanted.clear()
            loader.stop()


def _close(finished: Future[TextModel]) -> None:
    if finished.exception() is None:
        finished.result().close()


def _worker(opened: Opened) -> Worker:
    """Models on the CPU share a thread, which decodes for each in turn.

    libgomp keeps a team of threads for every thread that has decoded. As soon as those are
    more than the cores, none of them waits actively any more: with a second thread, even
    one that has nothing to do, the first decodes at 0.6 of its speed.
    """
    name = "inference-bridge-llama"
    return Worker(name) if opened.on_gpu else Worker.shared(name)
