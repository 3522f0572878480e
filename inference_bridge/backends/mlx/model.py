# SPDX-License-Identifier: Apache-2.0
"""Loading an MLX model directory into a TextModel. Nothing is downloaded, and code in the directory is never run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from ...catalog.headers import checkpoint
from ...chat.templates.template import ChatTemplate
from ...engine.hardware import available_memory
from ...engine.model import EngineModel
from ...engine.prefix_cache.files import fingerprint
from ...engine.prefix_cache.store import PrefixStore
from ...engine.scheduler import StepEngine
from ...engine.worker import Worker
from ...errors import BridgeError, ModelLoadError, ModelNotFoundError, UnsupportedError
from ...options import GenerateConfig, LoadConfig
from ...types import ModelInfo

T = TypeVar("T")
_log = logging.getLogger(__name__)

DEFAULT_SLOTS = 4
CHUNK_ON_GPU = 512
CHUNK_ON_CPU = 8
"""Prompt tokens that are evaluated in a step. A step can't be interrupted, and a CPU gains nothing from larger ones."""

MEMORY_SHARE = 0.7
"""The part of the free memory that the KV caches of running sequences may take."""
PREFIX_SHARE = 0.1
"""The further part of it that the prefix cache may take."""

FALLBACK_CONTEXT = 4096
"""The context length of a model whose files do not state one."""
MIN_CONTEXT = 512

MAX_FILE_BYTES = 1 << 20

_EXTRA = frozenset({"num_draft_tokens", "prefix_cache_bytes"})


# ---------------------------------------------------------------- the worker

_lock = threading.Lock()
_worker: Worker | None = None
_pid = 0


def shared_worker() -> Worker:
    """Return the worker of the one thread in this process that uses MLX.

    MLX's streams and lazy arrays belong to a thread. The thread is kept when models are closed, because each thread
    that has used MLX leaves native threads behind.

    Raises:
        ModelLoadError: This process was forked from one that used MLX.
    """
    global _worker, _pid
    if _pid not in (0, os.getpid()):  # before the lock, which another thread may have held during the fork
        raise ModelLoadError("MLX does not work in a process forked from one that used it: spawn this one")
    with _lock:
        if _worker is None:
            _worker, _pid = Worker("inference-bridge-mlx", lasting=True, at_end=_clear_streams), os.getpid()
        return _worker


def _clear_streams() -> None:
    """End the native threads of this thread's streams. If they still ran at the exit, the process would be aborted."""
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        mx.synchronize()
        mx.clear_streams()


# ---------------------------------------------------------------- loading


def load_model(found: Directory, config: LoadConfig, *, backend: str) -> MlxModel:
    """Load the text-generation model in a directory.

    Args:
        found: The directory.
        config: The load options.
        backend: The name of the backend.

    Raises:
        ModelLoadError: The model can't be loaded.
        UnsupportedError: An option can't be honoured.
        TypeError, ValueError: `extra` is wrong.
    """
    extra = _extra(config)
    if len(config.adapters or ()) > 1:
        raise UnsupportedError("several adapters", backend, "fuse them into the model with mlx_lm.fuse")
    if config.draft_model is not None:
        _one_slot(config, "speculative decoding", backend)
    worker, parts = opened(found, lambda worker, wanted: _open(found, config, extra, backend, wanted, worker.wake))
    return MlxModel(parts, worker, backend)


def opened(found: Directory, work: Callable[[Worker, Callable[[], bool]], T]) -> tuple[Worker, T]:
    """Run `work` in the thread that uses MLX.

    Args:
        found: The directory, for errors.
        work: Called with the worker, and with a function that returns False once the load should be aborted.

    Returns:
        The worker, and the result of `work`.

    Raises:
        ModelLoadError: `work` failed with an error that values of wrong types cause. Other errors are raised unchanged.
    """
    worker = shared_worker()
    wanted = threading.Event()
    wanted.set()
    try:
        return worker, worker.call(lambda: work(worker, wanted.is_set))
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:  # a value in a file has a wrong type
        why = " ".join(str(error).split()) or type(error).__name__
        raise ModelLoadError(f"mlx-lm can't load {found.path}: {why[:500]}") from error
    except BaseException:  # such as Ctrl-C, after which the worker would go on loading
        wanted.clear()
        raise


@dataclass(frozen=True, slots=True)
class Directory:
    """The directory of a model.

    Attributes:
        path: Its absolute path.
        config: The content of config.json.
        facts: What discovery derives from it.
    """

    path: Path
    config: Mapping[str, Any]
    facts: checkpoint.Checkpoint


@dataclass(frozen=True, slots=True)
class _Parts:
    """The objects that the worker has created from the files."""

    engine: StepEngine
    tokenizer: Any
    template: ChatTemplate | None
    info: ModelInfo
    recommended: GenerateConfig


def checked(path: str) -> Directory:
    """Read config.json, and check what mlx-lm would fail on.

    Args:
        path: The directory. "~" is expanded.

    Raises:
        ModelNotFoundError: There is no such directory.
        ModelLoadError: It is not an MLX model, it is damaged, or it needs code of its own.
    """
    directory = Path(os.path.abspath(os.path.expanduser(path)))
    if not directory.exists():
        raise ModelNotFoundError(f"there is no directory {directory}")
    try:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(directory) if entry.is_file()}
    except OSError as error:
        why = error.strerror or error
        raise ModelLoadError(f"{directory} can't be read ({why}): an MLX model is a directory") from None
    if "config.json" not in sizes:
        raise ModelLoadError(f"{directory} is not an MLX model: it has no config.json")
    facts = checkpoint.read_checkpoint(str(directory), sizes)
    if facts.problem is not None:
        raise ModelLoadError(f"{directory} can't be loaded: {facts.problem}")
    if not any(name.startswith("model") for name in facts.files):
        raise ModelLoadError(f"{directory} can't be loaded: it has no weights (model*.safetensors)")
    config = checkpoint.read_json(str(directory / "config.json"), checkpoint.MAX_CONFIG_BYTES)
    if config.get("model_file") is not None:
        raise ModelLoadError(
            f"{directory} can't be loaded: it needs code of its own ({config['model_file']!r}), which is never run"
        )
    return Directory(directory, config, facts)


def _extra(config: LoadConfig) -> Mapping[str, Any]:
    """Return the checked load option `extra`. Raises TypeError and ValueError."""
    extra = config.extra or {}
    if not isinstance(extra, Mapping):
        raise TypeError("extra must be a mapping for this backend, not a list")
    for name, value in extra.items():
        if name not in _EXTRA:
            raise TypeError(f"extra[{name!r}] is not known: this backend has {' and '.join(sorted(_EXTRA))}")
        if type(value) is not int or value < (1 if name == "num_draft_tokens" else 0):
            raise ValueError(f"extra[{name!r}] must be a whole number, not {value!r}")
    if "num_draft_tokens" in extra and config.draft_model is None:
        raise ValueError("extra['num_draft_tokens'] needs a draft_model")
    return extra


def _open(
    found: Directory,
    config: LoadConfig,
    extra: Mapping[str, Any],
    backend: str,
    wanted: Callable[[], bool],
    wake: Callable[[], None],
) -> _Parts:
    """Do the part of the load that uses MLX, in the worker's thread."""
    mx = mlx()
    from mlx_lm.models.cache import make_prompt_cache

    from .engine import BatchEngine
    from .single import SingleEngine
    from .vocabulary import MlxTokenizer

    stream = stream_of(mx, config.device, found.path)
    on_gpu = stream.device.type == mx.gpu
    with mx.stream(stream):
        model = weights_of(found, wanted)
        _adapt(model, config.adapters or ())
        mx.eval(model.parameters())
        vocab_size, per_token = _measure(mx, model, found.path)
        batched = all(hasattr(part, "merge") for part in make_prompt_cache(model))
        draft = None
        tokenizer = tokenizer_of(found)
        if config.draft_model is not None:
            if not _can_take_back(model):
                why = f"drafted tokens can't be removed from this model's KV cache ({found.path}): leave it out"
                raise UnsupportedError("draft_model", backend, why)
            draft = _draft(found, config.draft_model, tokenizer, vocab_size, mx, wanted)
    slots = _slots(config, batched, backend)
    free = _free_memory(mx, on_gpu)
    length = _context_length(found, config.context_length or 0, free, per_token * slots)
    template = _template(tokenizer, config.chat_template, backend)
    tokens = MlxTokenizer(tokenizer, tokenizer.eos_token_ids, vocab_size, str(found.path))
    common = {
        "context_length": length,
        "chunk": config.batch_size or (CHUNK_ON_GPU if on_gpu else CHUNK_ON_CPU),
        "prefix_bytes": extra.get("prefix_cache_bytes", int(free * PREFIX_SHARE)),
        "stream": stream,
        "store": _store(found, config, str(stream.device), wake) if config.prefix_cache_size else None,
    }
    engine: StepEngine
    if draft is not None or not batched:
        drafting = {"draft": draft, "draft_tokens": extra.get("num_draft_tokens", 3)}
        engine = SingleEngine(model, tokens, **common, **drafting)
    else:
        engine = BatchEngine(model, tokens, slots=slots, **common)
    return _Parts(engine, tokens, template, info_of(found, model, vocab_size, length), _recommended(found.path))


def mlx() -> Any:
    """Import mlx-lm, and return the module mlx.core."""
    import mlx.core as mx

    with _open_files_as_they_are():
        import mlx_lm  # noqa: F401 - for what its import does

    if mx.default_device().type == mx.cpu:  # pragma: no branch - a GPU
        # To fuse operations MLX would run the machine's C++ compiler, and load libraries from /tmp/mlx, where another
        # user may have put files. It makes nothing faster here.
        mx.disable_compile()
    return mx


def _store(found: Directory, config: LoadConfig, device: str, wake: Callable[[], None]) -> Callable[..., PrefixStore]:
    """Return the function that creates the prefix cache on disk."""
    draft = [checked(config.draft_model).path] if config.draft_model is not None else []
    adapters = [Path(os.path.expanduser(path)) for path in config.adapters or ()]

    def identity() -> Mapping[str, Any]:
        files = [
            [fingerprint(str(path)) for path in sorted([*place.glob("*.safetensors"), *place.glob("*config.json")])]
            for place in (found.path, *adapters, *draft)
        ]
        versions = [metadata.version(package) for package in ("mlx", "mlx-lm")]
        return {"backend": "mlx", "versions": versions, "device": device, "files": files}

    limit = config.prefix_cache_size or 0
    return partial(PrefixStore, identity, limit, model=str(found.path), wake=wake)


@contextlib.contextmanager
def _open_files_as_they_are() -> Iterator[None]:
    """Keep the process's limit of open files during an import of mlx-lm, which would change it or raise an error."""
    import resource

    setrlimit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = setrlimit


_streams: dict[str, Any] = {}
"""The stream of each device. All models share it, because a stream has a native thread until the process ends."""


def stream_of(mx: Any, device: str | None, path: Path) -> Any:
    """Return the stream to compute on. Call this in the worker's thread.

    Args:
        mx: The module mlx.core.
        device: "cpu" or "gpu". None: MLX's default device.
        path: The model's directory, for errors.

    Raises:
        ValueError: The device has another name.
        ModelLoadError: MLX finds no such device.
    """
    kinds = {"cpu": mx.cpu, "gpu": mx.gpu}
    if device is None:
        device = next(name for name, kind in kinds.items() if mx.default_device().type == kind)
    elif device not in kinds:
        raise ValueError(f'device is "cpu" or "gpu" for this backend, not {device!r}')
    elif not mx.is_available(mx.Device(kinds[device])):
        raise ModelLoadError(f'{path} can\'t be loaded with device="{device}": MLX finds none here')
    if device not in _streams:
        _streams[device] = mx.new_thread_local_stream(mx.Device(kinds[device]))
    return _streams[device]


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn an error in the block into a ModelLoadError with a message of one line, which begins with `what`."""
    try:
        yield
    except (BridgeError, MemoryError):
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ModelLoadError(f"{what}: {why[:500]}") from error


def weights_of(found: Directory, wanted: Callable[[], bool], **how: Any) -> Any:
    """Load a model with its weights.

    Args:
        found: The directory.
        wanted: Returns False once the load should be aborted.
        how: Further arguments of mlx-lm's load_model.

    Raises:
        ModelLoadError: mlx-lm can't load it, or the load was aborted.
    """
    from mlx.core import eval as evaluate
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    with failing(f"mlx-lm can't load {found.path}"):
        model, _ = load_model(found.path, lazy=True, trust_remote_code=False, **how)
        parameters: Any = tree_flatten(model.parameters())
        for _, weights in parameters:
            if not wanted():
                raise ModelLoadError("loading was interrupted")
            evaluate(weights)
    return model


def _adapt(model: Any, adapters: Sequence[str]) -> None:
    """Apply a LoRA adapter in the format of mlx_lm.lora: adapter_config.json and adapters.safetensors."""
    from mlx_lm.utils import load_adapters

    if not adapters:
        return
    path = os.path.expanduser(adapters[0])
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not os.path.isfile(os.path.join(path, name)):
            raise ModelLoadError(f"{path} is not an mlx-lm adapter: it has no {name}")
    with failing(f"mlx-lm can't apply the adapter {path}"):
        load_adapters(model, path)
        model.eval()


def _measure(mx: Any, model: Any, path: Path) -> tuple[int, int]:
    """Evaluate one token. Return the number of logits, and the bytes that a token takes in the KV cache."""
    from mlx_lm.models.cache import make_prompt_cache

    with failing(f"mlx-lm can't run {path}"):
        cache = make_prompt_cache(model)
        logits = model(mx.array([[0]]), cache=cache)
        mx.eval(logits)
    growing = [part for part in cache if not hasattr(part, "max_size") and getattr(part, "keys", None) is not None]
    per_token = sum(part.nbytes // part.keys.shape[2] for part in growing if hasattr(part.keys, "shape"))
    return int(logits.shape[-1]), per_token


def tokenizer_of(found: Directory) -> Any:
    """Return mlx-lm's wrapper of the model's tokenizer, with the tokens that end a text. Raises ModelLoadError."""
    from mlx_lm import utils

    if not any((found.path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelLoadError(f"{found.path} can't be loaded: it has no tokenizer (tokenizer.json)")
    with failing(f"the tokenizer in {found.path} can't be loaded"):
        offline = {"trust_remote_code": False, "local_files_only": True}
        load_tokenizer: Any = utils.load_tokenizer
        return load_tokenizer(found.path, offline, eos_token_ids=utils.load_config(found.path).get("eos_token_id"))


def _can_take_back(model: Any) -> bool:
    """Return whether the last tokens can always be removed from the KV cache.

    They can't be if there is a sliding window: once it is full, new tokens have overwritten older ones.
    """
    from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache

    layers = make_prompt_cache(model)
    return can_trim_prompt_cache(layers) and not any(hasattr(part, "max_size") for part in layers)


def _draft(found: Directory, path: str, tokenizer: Any, vocab_size: int, mx: Any, wanted: Callable[[], bool]) -> Any:
    """Load the draft model in the directory at `path`. Raises ModelNotFoundError and ModelLoadError."""
    directory = checked(path)
    model = weights_of(directory, wanted)
    if _measure(mx, model, directory.path)[0] != vocab_size or (
        tokenizer_of(directory).get_vocab() != tokenizer.get_vocab()
    ):
        raise ModelLoadError(f"the draft model {directory.path} has another vocabulary than {found.path}")
    if not _can_take_back(model):
        raise ModelLoadError(f"{directory.path} can't be a draft model: tokens can't be removed from its KV cache")
    return model


def _slots(config: LoadConfig, batched: bool, backend: str) -> int:
    if not batched:
        _one_slot(config, "this model, whose KV cache mlx-lm can't batch,", backend)
    if config.draft_model is not None or not batched:
        return 1
    return config.parallel_slots or DEFAULT_SLOTS


def _one_slot(config: LoadConfig, what: str, backend: str) -> None:
    if (config.parallel_slots or 0) > 1:
        raise UnsupportedError(f"parallel_slots={config.parallel_slots}", backend, f"{what} has one slot")


def _free_memory(mx: Any, on_gpu: bool) -> int:
    """Return the bytes of memory that are free, after the weights have been loaded."""
    device = mx.device_info() if on_gpu else {}
    if "max_recommended_working_set_size" in device:  # Apple's GPUs
        return max(int(device["max_recommended_working_set_size"]) - int(mx.get_active_memory()), 0)
    if "free_memory" in device:
        return int(device["free_memory"])
    return available_memory()


def _context_length(found: Directory, asked: int, free: int, per_token: int) -> int:
    """Return the context length: the one that was asked for, else the model's, limited by the free memory."""
    own = found.facts.context_length or FALLBACK_CONTEXT
    if asked:
        if asked > own:
            _log.warning("context_length=%d is more than the %d that %s was trained for", asked, own, found.path)
        return asked
    fits = int(free * MEMORY_SHARE) // per_token // 256 * 256 if per_token else own
    if fits >= own:
        return own
    length = max(fits, MIN_CONTEXT)
    _log.info("context_length is %d instead of the model's %d, because of the free memory", length, own)
    return length


def _template(tokenizer: Any, given: str | None, backend: str) -> ChatTemplate | None:
    own = tokenizer.chat_template
    named = own if isinstance(own, Mapping) else {"default": own}
    source = given or named.get("default")
    if not source:
        return None
    return ChatTemplate(
        source,
        tool_source=None if given else named.get("tool_use"),
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        vocabulary=tokenizer.get_vocab(),
        backend=backend,
        # Before transformers 5.13 tokenizers do not have this attribute.
        response_template=None if given else getattr(tokenizer, "response_template", None),
    )


def info_of(found: Directory, model: Any, vocab_size: int, length: int) -> ModelInfo:
    """Return the model's info, from config.json.

    Args:
        found: The directory.
        model: The loaded model.
        vocab_size: The number of logits.
        length: The context length.
    """

    def stated(*names: str) -> int:
        text = found.config.get("text_config")
        for part in (found.config, text if isinstance(text, Mapping) else {}):
            for name in names:
                if type(part.get(name)) is int:
                    return int(part[name])
        return 0

    return ModelInfo(
        architecture=found.facts.model_type,
        vocab_size=vocab_size,
        num_layers=stated("num_hidden_layers", "n_layers", "n_layer", "num_layers") or len(model.layers),
        hidden_size=stated("hidden_size", "d_model", "n_embd", "dim"),
        quant_bits=found.facts.quant_bits,
        quant_group=found.facts.quant_group,
        context_length=length,
    )


_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


def _recommended(directory: Path) -> GenerateConfig:
    """Return the sampling that generation_config.json recommends. Invalid values are left out."""
    try:
        stated = checkpoint.read_json(str(directory / "generation_config.json"), MAX_FILE_BYTES)
    except ValueError:
        return GenerateConfig()
    if stated.get("do_sample") is False:
        return GenerateConfig()
    recommended = GenerateConfig()
    for name, option in _SAMPLING.items():
        with contextlib.suppress(TypeError, ValueError):
            recommended = replace(recommended, **{option: stated.get(name)})
    return recommended


# ---------------------------------------------------------------- the model


class MlxModel(EngineModel):
    """A model on mlx-lm, in this process."""

    def __init__(self, parts: _Parts, worker: Worker, backend: str) -> None:
        self.backend = backend
        self.info = parts.info
        self.model_type = parts.info.architecture
        self.recommended = parts.recommended
        super().__init__(parts.engine, worker, parts.tokenizer, parts.template)
