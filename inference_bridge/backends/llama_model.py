# SPDX-License-Identifier: Apache-2.0
"""Loading a GGUF file into a TextModel: what it is, how much context fits, who renders its chats."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import gguf
from ..engine.chat_template import ChatTemplate, RenderedPrompt
from ..engine.hardware import available_memory, physical_cores
from ..engine.model import EngineModel
from ..engine.worker import Worker
from ..errors import ModelNotFoundError, UnsupportedError
from ..model import TextModel
from ..options import GenerateConfig, LoadConfig
from ..request import Request
from ..types import Message
from . import gguf_load
from .attachments import content
from .llama_embeddings import EmbeddingContext, LlamaEmbeddingModel
from .llama_engine import LlamaEngine
from .llama_native import NativeContext, NativeModel, can_offload

if TYPE_CHECKING:
    from .llama_projector import Medium, NativeProjector

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
            opened = _Opening(header, config, made, wanted.is_set)
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

    def __init__(
        self, header: gguf.GGUFMetadata, config: LoadConfig, made: ExitStack, proceed: Callable[[], bool]
    ) -> None:
        assert isinstance(config.extra, Mapping)
        self.extra: Mapping[str, Any] = config.extra
        self.taken: set[str] = set()
        self._header = header
        self._config = config
        self._made = made
        self._proceed = proceed

    def text_model(self) -> Callable[[Worker], TextModel]:
        header, config, native = self._header, self._config, self.native
        if not native.has_decoder:
            raise UnsupportedError(
                "generating text with this model", "llama_cpp", f"{header.path} has an encoder: it is no decoder model"
            )
        template = _template(header, native, config.chat_template)
        projector = self._projector(template)  # first, since it takes of the memory that the context is made for
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
        return partial(LlamaModel, header, native, context, length, template, projector)

    def _projector(self, template: ChatTemplate | None) -> NativeProjector | None:
        """What the model sees through: the one that was asked for, or lies beside it."""
        config = self._config
        if config.mmproj is not None and template is None:
            raise UnsupportedError("mmproj", "llama_cpp", "the model has no chat template: give one as chat_template")
        path = config.mmproj
        if path is None and template is not None:
            path = gguf_load.projector_of(self._header.path)
        if path is None:
            return None
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.exists(path):
            raise ModelNotFoundError(f"there is no projector (mmproj) at {path}")
        header = gguf.read_metadata(path)
        gguf_load.check_projector(header)
        if header.values.get("clip.has_vision_encoder") is not True:
            if config.mmproj is None:
                return None
            raise UnsupportedError(
                f"the projector {path}", "llama_cpp", "it is for sound: use the backend llama_server"
            )
        from .llama_projector import NativeProjector

        projector = NativeProjector(
            path,
            self.native,
            threads=config.threads or physical_cores(),
            use_gpu=can_offload() and config.gpu_layers != 0,
            proceed=self._proceed,
        )
        self._made.callback(projector.close)
        return projector

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


@dataclass(frozen=True, slots=True)
class _Illustrated(RenderedPrompt):
    """A prompt in which the projector's marker stands for each of the images."""

    images: tuple[bytes, ...] = ()


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
        projector: NativeProjector | None,
        worker: Worker,
    ) -> None:
        self.info = replace(header.info, vocab_size=native.vocab_size, context_length=length)
        self.model_type = header.architecture
        self.recommended = header.sampling
        self._native = native
        self._projector = projector
        self._most_at_once = context.most_at_once
        encoder = None
        if projector is not None:
            from .llama_projector import Encoder

            encoder = Encoder(projector, worker.wake)
            self._media_marker = projector.marker
        token_bytes = gguf_load.bytes_per_token(header)
        engine = LlamaEngine(native, context, length, token_bytes=token_bytes, encoder=encoder)
        super().__init__(engine, worker, native, template)
        if projector is not None:
            self.capabilities |= {"images"}

    def close(self) -> None:
        super().close()
        if self._projector is not None:
            self._projector.wait()

    def _conversation(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerateConfig | None,
        options: Mapping[str, Any],
    ) -> Request:
        request = super()._conversation(messages, config, options)
        images = [content(one) for message in request.messages for one in message.attachments]
        if not images:
            return request
        known = tuple(image for image in images if image is not None)
        if len(known) < len(images):
            why = "nothing is fetched in this process: fetch it, and give its bytes as data="
            raise UnsupportedError("attachments by their URL", self._name, why)
        prompt: RenderedPrompt = request.prepared
        places = prompt.text.count(self._media_marker or "")
        if places != len(images):
            why = f"the chat template shows {places} of {len(images)}: put them into messages of the user"
            raise UnsupportedError("these attachments", self._name, why)
        request.prepared = _Illustrated(prompt.text, prompt.format, prompt.in_reasoning, prompt.in_answer, known)
        return request

    def _tokens(self, request: Request) -> tuple[list[int], Mapping[int, Any]]:
        prompt = request.prepared
        if self._projector is None or not isinstance(prompt, _Illustrated):
            return super()._tokens(request)
        tokens: list[int] = []
        media: dict[int, Medium] = {}
        add_special = not self._native.begins_with_bos(prompt.text)
        for piece in self._projector.cut(prompt.text, prompt.images, add_special=add_special):
            if isinstance(piece, list):
                tokens += piece
                continue
            if not piece.causal and piece.tokens > self._most_at_once:
                why = f"load it with batch_size={piece.tokens}, since this model takes an image in one piece"
                raise UnsupportedError(f"an image of {piece.tokens} tokens", self._name, why)
            media[len(tokens)] = piece
            tokens += [piece.key] * piece.tokens
        return tokens, media


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
