# SPDX-License-Identifier: Apache-2.0
"""Loading MLX directories: model info, refusals, adapters, draft models, and freed memory."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import inference_bridge as ib
from inference_bridge.backends.mlx import backend as metal
from inference_bridge.backends.mlx import model as mlx_model
from inference_bridge.backends.mlx.backend import MetalBackend, Platform
from inference_bridge.grammar.grammar import Grammar

from ...parts.models.mlx_tiny import LAYERS, WIDTH, write_tiny_lora, write_tiny_mlx

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mlx(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The model's files, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Iterator[ib.TextModel]:
    with ib.load_model(tiny, backend="mlx") as model:
        yield model


def ids(model: ib.TextModel, prompt: str = PROMPT, **options: Any) -> list[int | None]:
    return [token.id for token in model.generate(prompt, **{"max_tokens": 16} | options)]


def restated(directory: Path, **changes: Any) -> Path:
    """The directory with other words in its config.json."""
    config = json.loads((directory / "config.json").read_text()) | changes
    stated = {name: value for name, value in config.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(stated))
    return directory


# ---------------------------------------------------------------- model info


def test_info(plain: ib.TextModel) -> None:
    info = plain.info
    assert (plain.model_type, plain.backend, plain.parallel) == ("llama", "mlx", mlx_model.DEFAULT_SLOTS)
    assert (info.architecture, info.vocab_size, info.num_layers, info.hidden_size) == ("llama", 387, LAYERS, WIDTH)
    assert (info.quant_bits, info.quant_group, info.context_length) == (32, 0, 512)
    assert plain.capabilities >= {"chat", "tools", "json_schema", "logits", "logprobs", "token_ids", "stats"}
    assert "embeddings" not in plain.capabilities


def test_both_backends_load_it_by_name_path_and_configured_name(
    tiny: Path, configure: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, plain: ib.TextModel
) -> None:
    monkeypatch.setattr(metal, "this_platform", lambda: Platform("darwin", "arm64"))
    monkeypatch.setattr(metal, "metal_is_usable", lambda: True)
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(tiny.parent))
    configure(f"[models.mine]\nsource = 'metal:{tiny}'\ncontext_length = 100\n")
    for source, backend in (("mlx:tiny", "mlx"), ("metal:tiny", "metal"), (str(tiny), "metal"), ("mine", "metal")):
        with ib.load_model(source) as model:
            assert model.backend == backend
            assert ids(model) == ids(plain)
            assert model.info.context_length == (100 if source == "mine" else 512)


def test_a_repository_in_the_hugging_face_cache(tiny: Path, home: Path, plain: ib.TextModel) -> None:
    repository = home / ".cache" / "huggingface" / "hub" / "models--mlx-community--Tiny-4bit"
    shutil.copytree(tiny, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    (found,) = [model for model in ib.discover() if model.format == "mlx"]
    assert (found.name, found.model_type, found.problem) == ("mlx-community/Tiny-4bit", "llama", None)
    with ib.load_model("mlx:mlx-community/Tiny-4bit") as model:
        assert ids(model) == ids(plain)


def test_a_repository_that_is_not_there_is_not_downloaded() -> None:
    with pytest.raises(ib.ModelNotFoundError, match="mlx-community/Absent-4bit"):
        ib.load_model("mlx:mlx-community/Absent-4bit")


def test_the_sampling_its_files_recommend(copy: Path) -> None:
    stated = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": "nonsense"}
    (copy / "generation_config.json").write_text(
        json.dumps(stated | {"repetition_penalty": 1.05, "eos_token_id": [2, 0]})
    )
    with ib.load_model(copy, backend="mlx") as model:
        assert model.recommended == ib.GenerateConfig(temperature=0.6, top_p=0.95, top_k=20, repeat_penalty=1.05)
        assert [token for token in range(5) if model._engine.is_end(token)] == [0, 2]  # type: ignore[attr-defined]
    (copy / "generation_config.json").write_text(json.dumps(stated | {"do_sample": False}))
    assert mlx_model._recommended(copy) == ib.GenerateConfig()


def test_a_chat_template_given_as_an_option_is_used(tiny: Path) -> None:
    with ib.load_model(tiny, backend="mlx", chat_template="{{ messages[0]['content'] }}") as model:
        stream = model.chat([ib.Message("user", PROMPT)], max_tokens=16)
        assert [token.id for token in stream] == ids(model)


def test_the_response_template_of_the_files_reads_the_answers(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    calls = {"open": "<mine>", "close": "</mine>", "content": "json", "transform": {"function": "{content}"}}
    fields = {"tool_calls": calls, "content": {}}
    response = {"response_template": {"start_anchor": "a", "fields": fields}}
    path.write_text(json.dumps(json.loads(path.read_text()) | response))
    for given, used in ((None, True), ("{{ messages[0]['content'] }}", False)):
        with ib.load_model(copy, backend="mlx", chat_template=given) as model:
            template = model._template  # type: ignore[attr-defined]
            assert (template.format.response is not None) == used
            assert model.chat([{"role": "user", "content": "a"}], max_tokens=2).result().tokens


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    with ib.load_model(write_tiny_mlx(tmp_path / "bare", template=None), backend="mlx") as model:
        assert "chat" not in model.capabilities
        with pytest.raises(ib.UnsupportedError, match="no chat template"):
            model.chat([ib.Message("user", "Hello")])


def test_the_context_length_fits_into_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = mlx_model.checked(str(tiny))
    per_token = 1000
    assert mlx_model._context_length(found, 0, 10**12, per_token) == 512
    assert mlx_model._context_length(found, 0, 0, per_token) == mlx_model.MIN_CONTEXT
    assert mlx_model._context_length(found, 64, 0, per_token) == 64
    caplog.clear()
    with caplog.at_level("WARNING", "inference_bridge"):
        assert mlx_model._context_length(found, 1000, 0, per_token) == 1000
    assert "more than the 512" in caplog.text
    # 2 layers of 2 heads of 16 numbers of 4 bytes, key and value, for each of 4 slots
    seen: list[int] = []

    def note(found: object, asked: int, free: int, per_token: int) -> int:
        seen.append(per_token)
        return 128

    monkeypatch.setattr(mlx_model, "_context_length", note)
    ib.load_model(tiny, backend="mlx").close()
    assert seen == [2 * 2 * 16 * 4 * 2 * 4]


def test_free_memory_is_that_of_the_device() -> None:
    """The two kinds of GPU have different names for it; this machine has neither."""
    apple = SimpleNamespace(
        device_info=lambda: {"max_recommended_working_set_size": 10 << 30}, get_active_memory=lambda: 3 << 30
    )
    nvidia = SimpleNamespace(device_info=lambda: {"free_memory": 5 << 30, "total_memory": 8 << 30})
    assert mlx_model._free_memory(apple, True) == 7 << 30
    assert mlx_model._free_memory(nvidia, True) == 5 << 30
    assert 0 < mlx_model._free_memory(apple, False) != 7 << 30


def test_missing_keys_and_other_names_of_keys_in_a_config(copy: Path) -> None:
    inner = {"n_layer": 3, "n_embd": 24}
    config: dict[str, Any] = {"hidden_size": ..., "num_hidden_layers": ..., "model_type": "x", "text_config": inner}
    found = mlx_model.checked(str(restated(copy, **config)))
    info = mlx_model.info_of(found, SimpleNamespace(layers=[0] * 7), 100, 50)
    assert (info.num_layers, info.hidden_size) == (3, 24)
    found = mlx_model.checked(str(restated(copy, text_config="none")))
    info = mlx_model.info_of(found, SimpleNamespace(layers=[0] * 7), 100, 50)
    assert (info.num_layers, info.hidden_size) == (7, 0)


def test_a_program_that_never_came_to_use_mlx_ends_cleanly() -> None:
    code = (
        "import sys; from inference_bridge.backends.mlx.model import shared_worker; shared_worker();"
        "assert 'mlx.core' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- refusals


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ib.ModelNotFoundError, match="missing"):
        ib.load_model(tmp_path / "missing", backend="mlx")


def test_a_file(copy: Path) -> None:
    with pytest.raises(ib.ModelLoadError, match="an MLX model is a directory"):
        ib.load_model(copy / "model.safetensors", backend="mlx")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", r"it has no weights \(model\*.safetensors\)"),
        ("tokenizer.json", r"it has no tokenizer \(tokenizer.json\)"),
    ],
)
def test_a_file_that_is_missing_is_named(copy: Path, file: str, told: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ib.ModelLoadError, match=told) as refused:
        ib.load_model(copy, backend="mlx")
    assert str(copy) in str(refused.value)


def test_weights_cut_short(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ib.ModelLoadError, match="fetch it again"):
        ib.load_model(copy, backend="mlx")


def test_bad_json(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ib.ModelLoadError, match="config.json is not valid JSON"):
        ib.load_model(copy, backend="mlx")
    (found,) = ib.discover(copy)
    assert found.problem is not None
    assert "not valid JSON" in found.problem


def test_a_tokenizer_that_is_nonsense(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ib.ModelLoadError, match="tokenizer"):
        ib.load_model(copy, backend="mlx")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "perceptron9"}, "Model type perceptron9 not supported"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"hidden_size": 32}, "shape"),
        ({"num_attention_heads": ...}, "num_attention_heads"),
        ({"model_file": "evil.py"}, "code of its own"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else None,
)
def test_a_config_that_does_not_fit(copy: Path, change: dict[str, Any], told: str) -> None:
    (copy / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ib.ModelLoadError, match=told) as refused:
        ib.load_model(restated(copy, **change), backend="mlx")
    assert "\n" not in str(refused.value)


def test_a_tokenizer_with_remote_code_is_not_run(copy: Path) -> None:
    ran = copy / "ran"
    (copy / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    described = json.loads((copy / "tokenizer_config.json").read_text())
    described |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (copy / "tokenizer_config.json").write_text(json.dumps(described))
    with pytest.raises(ib.ModelLoadError, match="tokenizer"):
        ib.load_model(copy, backend="mlx")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"device": "tpu"}, ValueError, "device"),
        ({"extra": ["--flag"]}, TypeError, "a mapping"),
        ({"extra": {"n_ctx": 3}}, TypeError, "n_ctx"),
        ({"extra": {"num_draft_tokens": 0}}, ValueError, "num_draft_tokens"),
        ({"extra": {"num_draft_tokens": 3}}, ValueError, "needs a draft_model"),
        ({"draft_model": "/no/such/draft", "parallel_slots": 2}, ib.UnsupportedError, "parallel_slots=2"),
        ({"adapters": ["a", "b"]}, ib.UnsupportedError, "several adapters"),
        ({"adapters": "/no/such/adapter"}, ib.ModelLoadError, "it has no adapter_config.json"),
        ({"draft_model": "/no/such/draft"}, ib.ModelNotFoundError, "/no/such/draft"),
    ],
)
def test_unsupported_load_options_are_refused(
    tiny: Path, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        ib.load_model(tiny, backend="mlx", **options)


def test_a_device_that_is_not_there(tiny: Path, plain: ib.TextModel) -> None:
    with ib.load_model(tiny, backend="mlx", device="cpu") as model:
        assert ids(model) == ids(plain)
    if not metal.metal_is_usable():
        with pytest.raises(ib.ModelLoadError, match='device="gpu"'):
            ib.load_model(tiny, backend="mlx", device="gpu")


def test_metal_can_use_the_cpu(tiny: Path) -> None:
    backend = MetalBackend(lambda: Platform("darwin", "arm64"))
    with backend.load_model(str(tiny), ib.LoadConfig(device="cpu")) as model:
        assert model.backend == "metal"


# ---------------------------------------------------------------- adapters and drafts


def test_an_adapter_changes_the_logits(tiny: Path, tmp_path: Path, plain: ib.TextModel) -> None:
    adapter = write_tiny_lora(tmp_path / "lora")
    with ib.load_model(tiny, backend="mlx", adapters=adapter) as model:
        assert ids(model) != ids(plain)
        logits = model.classify([PROMPT], return_logits=True)[0].logits
    np.testing.assert_array_equal(logits, _adapted(tiny, adapter))


def _adapted(directory: Path, adapter: Path) -> list[float]:
    """The logits after PROMPT, computed by mlx-lm, in the thread that runs MLX."""

    def compute() -> list[float]:
        import mlx.core as mx
        from mlx_lm import load
        from mlx_lm.models.cache import make_prompt_cache

        model, tokenizer = load(str(directory), adapter_path=str(adapter))[:2]
        cache = make_prompt_cache(model)
        prompt = tokenizer.encode(PROMPT)
        model(mx.array([prompt[:-1]]), cache=cache)
        logits: list[float] = model(mx.array([prompt[-1:]]), cache=cache)[0, -1].tolist()
        return logits

    return mlx_model.shared_worker().call(compute)


def test_an_adapter_for_another_model(tiny: Path, tmp_path: Path) -> None:
    adapter = write_tiny_lora(tmp_path / "lora")
    described = json.loads((adapter / "adapter_config.json").read_text())
    described["lora_parameters"]["rank"] = 8
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(ib.ModelLoadError, match="shape"):
        ib.load_model(tiny, backend="mlx", adapters=adapter)


def test_a_draft_model_takes_one_slot_and_changes_no_answer(tiny: Path, tmp_path: Path, plain: ib.TextModel) -> None:
    draft = write_tiny_mlx(tmp_path / "draft", seed=1)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    questions: list[tuple[str, dict[str, Any]]] = [
        (PROMPT, {}),
        (PROMPT, {"max_tokens": 1}),
        (PROMPT + " jumps over the lazy dog. Once upon a time", {"max_tokens": 40}),
        (PROMPT, {"repeat_penalty": 1.5, "presence_penalty": 1.0}),
        (PROMPT, {"json_schema": schema, "max_tokens": 60}),
    ]
    for twin, extra in ((draft, {}), (tiny, {"num_draft_tokens": 5})):
        with ib.load_model(tiny, backend="mlx", draft_model=twin, extra=extra) as model:
            assert model.parallel == 1
            for prompt, options in questions:
                assert ids(model, prompt, **options) == ids(plain, prompt, **options)
            logits = [np.array(one.classify([PROMPT], return_logits=True)[0].logits) for one in (model, plain)]
            np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
            seeded = [ids(model, temperature=1.0, seed=5) for _ in range(2)]
            assert seeded[0] == seeded[1]
            again = model.generate(questions[2][0], max_tokens=4)
            again.text()
            assert again.metrics.cached_tokens >= again.metrics.prompt_tokens - 2


def test_a_draft_model_and_the_one_slot(tiny: Path) -> None:
    with ib.load_model(tiny, backend="mlx", draft_model=tiny, parallel_slots=1) as model:
        assert model.parallel == 1


def test_a_draft_model_of_another_vocabulary(tiny: Path, copy: Path) -> None:
    other = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (copy / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ib.ModelLoadError, match="another vocabulary"):
        ib.load_model(tiny, backend="mlx", draft_model=copy)


@pytest.mark.parametrize("architecture", ["mamba", "sliding"])
def test_guesses_that_can_not_be_taken_back(architecture: str, tiny: Path, tmp_path: Path) -> None:
    """A full window has dropped tokens for them, so later answers would be wrong without an error."""
    other = write_tiny_mlx(tmp_path / architecture, architecture=architecture)
    with pytest.raises(ib.ModelLoadError, match="can't be a draft model: tokens can't be removed from its KV cache"):
        ib.load_model(tiny, backend="mlx", draft_model=other)
    with pytest.raises(
        ib.UnsupportedError, match="draft_model: drafted tokens can't be removed from this model's KV cache"
    ):
        ib.load_model(other, backend="mlx", draft_model=tiny)


def test_closing_a_model_with_a_draft_ends_its_answers(tiny: Path) -> None:
    model = ib.load_model(tiny, backend="mlx", draft_model=tiny)
    stream = model.generate(PROMPT, max_tokens=-1)
    next(stream)
    model.close()
    with pytest.raises(ib.ModelClosedError):
        stream.text()


def test_missing_memory_for_a_prefix_does_not_end_an_answer(
    tiny: Path, plain: ib.TextModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with ib.load_model(tiny, backend="mlx", draft_model=tiny) as model:
        engine = model._engine  # type: ignore[attr-defined]

        def failing(tokens: list[int]) -> None:
            raise RuntimeError("[metal::malloc] out of memory")

        monkeypatch.setattr(engine, "_keep", failing)
        assert ids(model) == ids(model) == ids(plain)
    assert "could not be kept" in caplog.text


def test_a_grammar_that_breaks_where_there_is_one_slot(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Grammar, logits: Any) -> None:
        raise ib.GenerationError("no token may come next")

    with ib.load_model(tiny, backend="mlx", draft_model=tiny) as model:
        expected = ids(model)
        monkeypatch.setattr(Grammar, "mask", failing)
        with pytest.raises(ib.GenerationError, match="no token may come next"):
            ids(model, json_schema={"type": "integer"})
        assert ids(model) == expected


def test_no_prefix_is_kept_with_a_limit_of_zero(tiny: Path) -> None:
    with ib.load_model(tiny, backend="mlx", draft_model=tiny, extra={"prefix_cache_bytes": 0}) as model:
        for _ in range(2):
            stream = model.generate(PROMPT * 4, max_tokens=2)
            stream.text()
            assert stream.metrics.cached_tokens == 0


# ---------------------------------------------------------------- memory and threads


def in_use(*, settled: bool = False) -> int:
    """Bytes of MLX in this process, with its cache of freed memory unless that is cleared first."""

    def measure() -> int:
        import mlx.core as mx

        gc.collect()
        if settled:
            mx.clear_cache()
        return int(mx.get_active_memory() + mx.get_cache_memory())

    return mlx_model.shared_worker().call(measure)


def test_memory_is_given_back(tiny: Path) -> None:
    size = (tiny / "model.safetensors").stat().st_size
    before = in_use(settled=True)
    model = ib.load_model(tiny, backend="mlx")
    model.batch_generate([PROMPT, "Once upon a time there was a king in a castle by the sea"], max_tokens=8)
    assert in_use() >= before + 0.9 * size
    model.close()
    assert in_use() <= before


def test_a_failed_load_frees_its_memory(copy: Path) -> None:
    before = in_use(settled=True)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ib.ModelLoadError) as refused:
        ib.load_model(copy, backend="mlx")
    del refused
    assert in_use(settled=True) <= before


def test_one_worker_for_all_models(tiny: Path, plain: ib.TextModel) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with ib.load_model(tiny, backend="mlx") as one, ib.load_model(tiny, backend="mlx") as other:
        streams = [model.generate(PROMPT, max_tokens=16) for model in (one, other)]
        first = [next(stream).id for stream in streams]
        rest = [[token.id for token in stream] for stream in streams]
    assert [[head, *tail] for head, tail in zip(first, rest, strict=True)] == [ids(plain)] * 2
    assert {thread.name for thread in threading.enumerate()} == before


def test_loading_again_leaves_no_native_thread(tiny: Path) -> None:
    process = psutil.Process()

    def threads_after_a_load() -> int:
        with ib.load_model(tiny, backend="mlx") as model:
            model.generate(PROMPT, max_tokens=2).text()
        return process.num_threads()

    threads_after_a_load()
    first = threads_after_a_load()
    assert [threads_after_a_load() for _ in range(4)] == [first] * 4


def test_a_model_that_is_dropped_is_closed(tiny: Path) -> None:
    before = in_use(settled=True)
    model = ib.load_model(tiny, backend="mlx")
    ids(model)
    del model
    gc.collect()
    assert in_use() <= before


def test_an_interrupted_load_stops(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = mlx_model.shared_worker()

    class Interrupting:
        wake = staticmethod(worker.wake)

        def call(self, function: Any) -> Any:
            future = worker.submit(function)
            entered.wait()
            raise KeyboardInterrupt(future)

    entered, goes_on = threading.Event(), threading.Event()
    weights = mlx_model.weights_of

    def slow(found: Any, wanted: Any) -> Any:
        entered.set()
        goes_on.wait()
        return weights(found, wanted)

    monkeypatch.setattr(mlx_model, "weights_of", slow)
    monkeypatch.setattr(mlx_model, "shared_worker", Interrupting)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        ib.load_model(tiny, backend="mlx")
    goes_on.set()
    assert isinstance(interrupted.value.args[0].exception(), ib.ModelLoadError)


def test_the_limit_of_open_files_is_not_changed(tiny: Path) -> None:
    code = (
        "import resource, sys; import inference_bridge as ib; before = resource.getrlimit(resource.RLIMIT_NOFILE);"
        f"ib.load_model({str(tiny)!r}, backend='mlx').close();"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == before; assert 'mlx_lm.utils' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Windows has no fork, so no state can be inherited there.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_loading_in_a_forked_child_is_refused(tiny: Path) -> None:
    code = f"""
import os, sys
import inference_bridge as ib
ib.load_model({str(tiny)!r}, backend="mlx").close()
child = os.fork()
if not child:
    try:
        ib.load_model({str(tiny)!r}, backend="mlx")
    except ib.ModelLoadError as refused:
        os._exit(17 if "spawn" in str(refused) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "17\n"), done.stderr


def test_model_loads_where_standard_input_is_closed(tiny: Path) -> None:
    program = (
        "import os, sys; os.close(0); import inference_bridge as ib\n"
        "with ib.load_model(sys.argv[1], backend='mlx') as model:\n"
        "    print(len(model.generate('The quick', max_tokens=4).result().tokens))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
