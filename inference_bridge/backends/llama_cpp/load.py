# SPDX-License-Identifier: Apache-2.0
"""Loading a GGUF file with llama.cpp: the steps shared by text-generation and embedding models."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ...catalog import gguf_checks
from ...catalog.headers import gguf
from ...engine.worker import Worker
from ...errors import ModelNotFoundError
from .files import vetting
from .files.reading import Reading
from .library import can_offload
from .placement import Placement
from .weights import NativeModel

if TYPE_CHECKING:
    from ...model import TextModel
    from ...options import LoadConfig

_KEEP = frozenset({"tokenizer.chat_template"})
"""Keys of the header whose values are kept even if they are long."""

_SIZES = ("n_batch", "n_ubatch")
_INEXACT = ("use_extra_bufts", "flash_attn_type", *_SIZES)
"""Parameters of llama.cpp that make results depend on other sequences, or on how a prompt is split into chunks."""


_NAMED = {
    "kv_cache_type": ("type_k", "type_v", "flash_attn_type"),
    "split_mode": ("split_mode",),
    "threads": ("n_threads", "n_threads_batch"),
}
"""Parameters of llama.cpp by the load option that sets them."""


@dataclass(slots=True)
class Opened:
    """A model that llama.cpp has read, before it becomes a TextModel."""

    header: gguf.GGUFMetadata
    config: LoadConfig
    native: NativeModel
    reading: Reading

    @property
    def on_gpu(self) -> bool:
        return can_offload() and self.config.gpu_layers != 0


Build: TypeAlias = "Callable[[Worker], TextModel]"
Prepare: TypeAlias = "Callable[[Opened], Build]"
"""Creates what a model needs of llama.cpp. Returns a function that builds the model for a worker."""


def load(path: str, config: LoadConfig) -> TextModel:
    """Load the GGUF file at `path`. Raises ModelNotFoundError, ModelLoadError or UnsupportedError."""
    if not os.path.exists(path):
        raise ModelNotFoundError(f"there is no file {path}")
    extra = config.extra or {}
    if not isinstance(extra, Mapping):
        raise TypeError("extra must be a mapping of llama.cpp parameters for this backend, not a list")
    placement = Placement.of(config)
    _check_extra(config, extra)
    reading: Reading | None = None
    trial: vetting.Trial | None = None
    try:
        header = gguf.read_metadata(path, keep=_KEEP)
        gguf_checks.check(header)
        if config.vet is not False:
            trial = vetting.Trial(vetting.Subject(path, embeds=header.embeds), header)
        if trial is None or trial.known:
            if trial is not None:
                trial.check()
            reading = Reading(path, placement, extra)
        # Imported only now, while llama.cpp reads the file in another thread, or the trial load runs in its process.
        if header.embeds:
            from .pooled_models.embeddings import embedding_model as model_of
        else:
            from .model import text_model as model_of

        if reading is None:
            assert trial is not None
            trial.check()
            reading = Reading(path, placement, extra)
        prepare = model_of(header, config)
        return _load(Opened(header, config, reading.native(), reading), prepare)
    finally:
        if trial is not None:
            trial.close()
        if reading is not None:
            reading.end()


def _check_extra(config: LoadConfig, extra: Mapping[str, Any]) -> None:
    """Raise TypeError if `extra` sets a parameter that another load option decides."""
    for name in _INEXACT if config.deterministic else ():
        if name in extra:
            raise TypeError(
                f"extra[{name!r}] can't be set with deterministic=True, which depends on it: leave one of them out"
                + (", or set batch_size" if name in _SIZES else "")
            )
    for option, names in _NAMED.items():
        for name in names if getattr(config, option) is not None else ():
            if name in extra:
                raise TypeError(f"extra[{name!r}] can't be set with {option}: leave one of them out")


def _load(opened: Opened, prepare: Prepare) -> TextModel:
    reading = opened.reading

    def prepared() -> Build:
        build = prepare(opened)
        for name in reading.extra:
            if name not in reading.taken:
                raise TypeError(f"extra[{name!r}] is not a field of llama_model_params or llama_context_params")
        return build

    build = reading.submit(prepared).result()

    def finish() -> TextModel:
        worker = _worker(opened)
        try:
            model = build(worker)
        except BaseException:
            worker.give_back()
            raise
        reading.made.pop_all()
        return model

    # A call of its own, because jinja2 keeps alive the frames in which the rendering of a template failed. In one call
    # such a frame would refer to the model, which would never be freed.
    finished = reading.submit(finish)
    try:
        return finished.result()
    except BaseException:  # Ctrl-C: nothing refers to the model that `finish` still creates, so it is closed then
        finished.add_done_callback(_close)
        raise


def _close(finished: Future[TextModel]) -> None:
    if finished.exception() is None:
        finished.result().close()


def _worker(opened: Opened) -> Worker:
    """Return the worker: the thread that has read the model, because the system already runs it on a core of its own.

    Models on the CPU share the worker of the first one, which decodes one step of each in turn. libgomp keeps a team of
    threads for every thread that has decoded. When there are more of them than cores, none waits actively any more:
    with a second thread, even an idle one, the first decodes at 0.6 of its speed.
    """
    worker = opened.reading.worker
    if not opened.on_gpu:
        return worker.share()
    worker.expect()
    return worker
