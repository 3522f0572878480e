# SPDX-License-Identifier: Apache-2.0
"""The managed llama-server: the real C++ server of the xllamacpp wheel, in a separate process."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import itertools
import json
import logging
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig, UnsupportedError
from inference_bridge.availability import install_command
from inference_bridge.backends.http.detection import server_info
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel

from ...parts.models.gguf_files import write_projector
from ...parts.models.tiny_gguf import write_adapter, write_embedding, write_sliding_window
from ...parts.servers.managed import REAL, command, runs, script, short_directory, wait_gone, wait_until

SETTINGS = LoadConfig(context_length=1024, parallel_slots=2, threads=1, extra=["--flash-attn", "off", "--no-repack"])
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path
        wait_until(lambda: not list(path.glob("*/[pw]-*")))  # no server leaves its directory behind


@pytest.fixture(autouse=True)
def _in_runtime(runtime: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))


@pytest.fixture(scope="module")
def model(demo_model_path: Path, runtime: Path) -> Iterator[ServerModel]:
    with load(demo_model_path) as model:
        yield model


def load(path: Path, config: LoadConfig = SETTINGS, *, binary: Path | None = None, **options: Any) -> ServerModel:
    loaded = LlamaServerBackend(binary).load_model(str(path), config.with_options(options))
    assert isinstance(loaded, ServerModel)
    return loaded


def asked(model: ServerModel, path: str, body: Any = None) -> Any:
    """The server's answer at `path`, on a new connection: the server closes used connections."""
    connection = model.process.connect()
    transport = httpx2.HTTPTransport(uds=connection.uds)
    with httpx2.Client(base_url=connection.base_url, transport=transport, timeout=60) as client:
        response = client.get(path) if body is None else client.post(path, json=body)
    return response.raise_for_status().json()


# ---------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [
        ("32 bits", 0.001),
        # The wheel's kernels for these are others than llama-cpp-python's, and where two tokens are nearly as likely
        # they choose differently: not at these prompts.
        ("Q4_1", 0.1),
    ],
)
def test_greedy_tokens_are_those_of_the_model_in_this_process(
    weights: str, tolerance: float, model: ServerModel, demo_model_path: Path, tmp_path: Path
) -> None:
    """Flash attention off and the slots' memory apart, as llama_cpp has them."""
    prompts = [PROMPT, "1, 2, 3, 4,", "Once upon a time, there was a", "The opposite of hot is"]
    path = demo_model_path if weights == "Q4_1" else write_sliding_window(tmp_path / "tiny.gguf")
    with (
        ib.load_model(path, backend="llama_cpp", context_length=1024, threads=1, deterministic=True) as local,
        ExitStack() as made,
    ):
        managed = model if weights == "Q4_1" else made.enter_context(load(path))
        for prompt in prompts:
            expected = local.generate(prompt, max_tokens=16, logprobs=1).result().tokens
            tokens = managed.generate(prompt, max_tokens=16, logprobs=1).result().tokens
            assert [token.id for token in tokens] == [token.id for token in expected], prompt
            assert tokens[0].logprob == pytest.approx(expected[0].logprob, abs=tolerance)


def test_unset_options_have_the_defaults_of_the_contract(tmp_path: Path) -> None:
    """Not as llama-server has it: that samples, and cuts the choice."""
    with load(write_sliding_window(tmp_path / "tiny.gguf")) as model:
        stream = model.generate("abc")
        assert stream.text() == model.generate("abc", temperature=0.0, max_tokens=256).text()
        assert (stream.metrics.generated_tokens, stream.finish_reason) == (256, "length")
        sampled = model.generate("abc", max_tokens=16, temperature=1.0, seed=3)
        cut = model.generate("abc", max_tokens=16, temperature=1.0, seed=3, top_k=40, top_p=0.95, min_p=0.05)
        assert sampled.text() != cut.text()


def test_defaults_are_those_of_the_model_in_this_process(tmp_path: Path) -> None:
    """256 tokens, greedily, whichever backend a caller names."""
    path = write_sliding_window(tmp_path / "tiny.gguf")
    with ExitStack() as opened:
        managed = opened.enter_context(load(path))
        local = opened.enter_context(
            ib.load_model(path, backend="llama_cpp", context_length=1024, threads=1, deterministic=True)
        )
        streams = [one.generate("abc") for one in (managed, local)]
        texts = [stream.text() for stream in streams]
        assert texts[0] == texts[1]
        assert [stream.finish_reason for stream in streams] == ["length", "length"]
        assert [stream.metrics.generated_tokens for stream in streams] == [256, 256]


def test_info_before_the_start_agrees_with_the_running_server(model: ServerModel) -> None:
    said = server_info.ask(model.process.connect())
    assert (model.capabilities, model.parallel) == (said.capabilities, said.slots)
    assert model.options == said.options | {"regex", "grammar"}  # which a server does not tell
    for field in ("vocab_size", "hidden_size", "context_length"):
        assert getattr(model.info, field) == getattr(said.info, field)
    assert (model.model_type, model.info.num_layers, model.info.quant_bits) == ("llama", 30, 4)


def test_a_bias_for_a_token_that_does_not_exist_is_refused(model: ServerModel) -> None:
    """llama-server ignores it."""
    size = model.info.vocab_size
    assert model.generate(PROMPT, max_tokens=1, logit_bias={size - 1: 0.0}).result().tokens
    with pytest.raises(ValueError, match=str(size)):
        model.generate(PROMPT, max_tokens=1, logit_bias={size: 1.0})


def test_a_projector_next_to_the_model_is_used(
    demo_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discovery, and therefore `llm models`, lists such a model as a vision model."""
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(tmp_path))
    (tmp_path / "eyes.gguf").write_bytes(demo_model_path.read_bytes())
    write_projector(tmp_path / "mmproj-eyes.gguf", projection_dim=576)
    model = load(tmp_path / "eyes.gguf")
    assert model.process.plan.arguments[-5:-3] == ("--mmproj", str(tmp_path / "mmproj-eyes.gguf"))


def test_memory_is_the_servers(model: ServerModel) -> None:
    stream = model.generate(PROMPT, max_tokens=2)
    stream.text()
    resident = psutil.Process(model.process.pid).memory_info().rss
    assert stream.metrics.active_memory_bytes == pytest.approx(resident, rel=0.2)
    assert stream.metrics.peak_memory_bytes >= stream.metrics.active_memory_bytes


async def test_async_and_every_slot_at_once(model: ServerModel) -> None:
    texts = await asyncio.gather(*(model.agenerate(PROMPT, max_tokens=4).text() for _ in range(5)))
    assert texts == [model.generate(PROMPT, max_tokens=4).text()] * 5


def test_a_reranker(tmp_path: Path) -> None:
    documents = ["a dog ran", "the cat sat", "red house"]
    path = write_embedding(tmp_path / "rank.gguf", 512, pooling=4)
    with ib.load_model(f"llama_cpp:{path}") as own:
        assert isinstance(own, ib.RankModel)
        expected = own.rerank("the cat", documents)
    with LlamaServerBackend().load_model(str(path), LoadConfig(threads=1)) as model:
        assert isinstance(model, ib.RankModel)
        assert model.capabilities == {"rerank", "stats"}
        found = model.rerank("the cat", documents)
        assert [one.index for one in found] == [one.index for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-3)
        with pytest.raises(UnsupportedError, match="rerank"):
            model.generate("x")


def test_an_embedding_model(tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "embedding.gguf", 1000)
    with LlamaServerBackend().load_model(str(path), LoadConfig(threads=1)) as model:
        assert model.capabilities == {"embeddings", "stats"}
        assert isinstance(model, ib.EmbeddingModel)
        (vector,) = model.embed(["abc"])
        assert len(vector) == model.info.hidden_size
        assert model.info.context_length == 1000  # no more than it was trained for, though llama.cpp rounds it up
        assert model.embed(["the cat " * 400])  # longer than llama-server's own batches
        with pytest.raises(UnsupportedError, match="use embed"):
            model.generate("abc")


# ---------------------------------------------------------------- options


def test_every_load_option_reaches_the_server(model: ServerModel, demo_model_path: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora.gguf")
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    # Many distributions install a script that starts the server.
    binary = script(tmp_path / "llama-server", REAL)
    with load(
        demo_model_path,
        LoadConfig(first_token_timeout=60),
        binary=binary,
        context_length=300,
        gpu_layers=3,
        parallel_slots=3,
        threads=1,
        batch_size=64,
        chat_template=template,
        adapters=adapter,
        extra=["--cache-ram", "0", "--lora-scaled", str(adapter), "0.0", "-fa", "off"],
    ) as other:
        assert (other.info.context_length, other.parallel) == (512, 3)  # llama.cpp rounds it up
        assert other.generate(PROMPT, max_tokens=4).text() != model.generate(PROMPT, max_tokens=4).text()
        props = asked(other, "/props")
        assert (props["default_generation_settings"]["n_ctx"], props["total_slots"]) == (512, 3)
        assert props["chat_template"] == template
        assert [one["scale"] for one in asked(other, "/lora-adapters")] == [1.0, 0.0]
        words = command(other.process.pid)
        options = dict(itertools.pairwise(words))
        expected = {"--n-gpu-layers": "3", "--threads": "1", "--batch-size": "64", "--ubatch-size": "64"}
        assert expected.items() <= options.items()
        assert other.process.connect().first_token_timeout == 60


def test_a_device_is_handed_to_a_server_that_takes_one(demo_model_path: Path, tmp_path: Path) -> None:
    with load(demo_model_path, binary=script(tmp_path / "llama-server", REAL), device="Vulkan1") as model:
        assert dict(itertools.pairwise(model.process.plan.arguments))["--device"] == "Vulkan1"


def test_a_model_is_shared_by_gpus_as_the_options_say(demo_model_path: Path, tmp_path: Path) -> None:
    binary = script(tmp_path / "llama-server", REAL)
    options: dict[str, Any] = {"device": "CUDA0,CUDA2", "split_mode": "row", "tensor_split": (3, 1.5)}
    with load(demo_model_path, binary=binary, **options) as model:
        arguments = dict(itertools.pairwise(model.process.plan.arguments))
    assert (arguments["--device"], arguments["--split-mode"]) == ("CUDA0,CUDA2", "row")
    assert arguments["--tensor-split"] == "3,1.5"


def test_a_quantised_context_is_the_servers(model: ServerModel, demo_model_path: Path) -> None:
    with load(demo_model_path, LoadConfig(context_length=512, parallel_slots=2), kv_cache_type="q8_0") as small:
        assert small.generate(PROMPT, max_tokens=4).text()
        words = dict(itertools.pairwise(command(small.process.pid)))
        assert (words["--cache-type-k"], words["--cache-type-v"], words["--flash-attn"]) == ("q8_0", "q8_0", "on")
        assert (model.info.kv_cache_type, small.info.kv_cache_type) == ("f16", "q8_0")
        each = [
            info.context_bytes / info.context_length / slots
            for info, slots in (
                (model.info, model.parallel),
                (small.info, small.parallel),
            )
        ]
        assert each[1] == pytest.approx(each[0] * 34 / 64)


def test_the_context_stays_within_a_memory_limit(demo_model_path: Path) -> None:
    limit = demo_model_path.stat().st_size + (100 << 20)
    with load(demo_model_path, LoadConfig(), memory_limit=limit) as model:
        assert 0 < model.info.context_length < 8192
        assert limit * 0.9 < model.info.weights_bytes + model.info.context_bytes <= limit


def test_the_path_of_an_adapter_that_llama_server_would_cut_in_two(demo_model_path: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "one,two.gguf")
    with pytest.raises(UnsupportedError, match="takes a comma for the end of a path"):
        load(demo_model_path, adapters=adapter)


def test_a_draft_model_by_path_speculates(model: ServerModel, demo_model_path: Path) -> None:
    with load(demo_model_path, draft_model=str(demo_model_path)) as drafting:
        expected = model.generate(PROMPT, max_tokens=6).result()
        assert drafting.generate(PROMPT, max_tokens=6).text() == expected.text
        stream = drafting.generate(PROMPT, max_tokens=6)
        stream.text()
        assert 0 < stream.metrics.accepted_tokens <= stream.metrics.drafted_tokens
        assert drafting.stats().drafted_tokens >= stream.metrics.drafted_tokens


def test_repeated_text_is_drafted_from_the_prompt(model: ServerModel, demo_model_path: Path) -> None:
    prompt = "red, green, blue, " * 12
    with load(demo_model_path, draft_ngram=3, draft_tokens=4) as drafting:
        words = dict(itertools.pairwise(drafting.process.plan.arguments))
        assert words["--spec-type"] == "ngram-simple"
        stream = drafting.generate(prompt, max_tokens=16)
        assert stream.text() == model.generate(prompt, max_tokens=16).text()
        assert 0 < stream.metrics.accepted_tokens <= stream.metrics.drafted_tokens
        assert model.metrics.drafted_tokens == 0


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"extra": {"n_ctx": 3}}, TypeError, "extra must be a list of llama-server's arguments"),
        ({"extra": ["--ctx-size", "3"]}, ValueError, "extra must not hold --ctx-size: set context_length instead"),
        ({"extra": ["--api-key=x"]}, ValueError, "extra must not hold --api-key"),
        ({"kv_cache_type": "q8_0", "extra": ["-fa", "off"]}, ValueError, "-fa where kv_cache_type is set"),
        ({"threads": 2, "extra": ["--threads=1"]}, ValueError, "--threads where threads is set"),
        ({"split_mode": "row"}, UnsupportedError, "split_mode: the server of the xllamacpp wheel"),
        ({"tensor_split": (1, 2)}, UnsupportedError, "tensor_split: the server of the xllamacpp wheel"),
        ({"draft_tokens": 4}, UnsupportedError, "draft_tokens: nothing drafts tokens"),
        ({"draft_ngram": 4, "draft_tokens": 3}, UnsupportedError, "draft_tokens=3 with draft_ngram=4"),
        ({"draft_ngram": 4, "draft_model": "demo"}, UnsupportedError, "draft_ngram with draft_model: set one"),
        ({"draft_ngram": 4, "extra": ["--spec-type", "none"]}, ValueError, "--spec-type where draft_ngram is set"),
        ({"draft_model": "demo", "memory_limit": 1 << 40}, UnsupportedError, "memory_limit with draft_model"),
        ({"memory_limit": 50_000_000}, ib.ModelLoadError, "memory_limit=50000000 is too low"),
        ({"context_length": 9000}, UnsupportedError, "context_length=9000: .* at most the 8192 tokens"),
        ({"device": "CUDA0"}, UnsupportedError, "does not support device: the server of the xllamacpp wheel"),
        ({"mmproj": "demo"}, ib.ModelLoadError, "is not a projector"),
        ({"adapters": "demo"}, ib.ModelLoadError, "is not a LoRA adapter"),
        ({"adapters": "nowhere.gguf"}, ib.ModelNotFoundError, "LoRA adapter .*nowhere.gguf does not exist"),
        ({"draft_model": "/nowhere.gguf"}, ib.ModelNotFoundError, "nowhere.gguf"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_options_are_refused_before_a_server_starts(
    options: dict[str, Any], kind: type[Exception], told: str, demo_model_path: Path
) -> None:
    given: dict[str, Any] = {
        name: str(demo_model_path) if value == "demo" else value for name, value in options.items()
    }
    with pytest.raises(kind, match=told):
        load(demo_model_path, LoadConfig(), **given)


def test_options_of_remote_servers_are_refused(demo_model_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="llama_server does not support the load option api_key"):
        ib.load_model(demo_model_path, backend="llama_server", api_key="x")


def test_an_argument_that_the_wheel_does_not_support_is_an_error(demo_model_path: Path) -> None:
    with (
        load(demo_model_path, extra=["--no-such-thing"]) as model,
        pytest.raises(ib.ModelLoadError, match="does not know --no-such-thing: leave it out"),
    ):
        model.generate(PROMPT).text()


# ---------------------------------------------------------------- which binary


def test_the_binary_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    backend = LlamaServerBackend()
    wheel = backend.program()
    assert wheel is not None
    assert wheel[-1].endswith("xllamacpp_program.py")
    programs = {}
    for where in ("path/llama-server", "variable", "configured"):
        file = tmp_path / where
        file.parent.mkdir(exist_ok=True)
        programs[where] = script(file, REAL)
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=os.pathsep)
    assert backend.program() == (str(programs["path/llama-server"]),)
    monkeypatch.setenv("LLAMA_SERVER_PATH", str(programs["variable"]))
    assert backend.program() == (str(programs["variable"]),)
    settings = home / "config.toml"
    settings.write_text(f"llama_server = {json.dumps(str(programs['configured']))}")
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(settings))
    assert backend.program() == (str(programs["configured"]),)
    assert backend.availability().ok
    settings.write_text("nonsense = 1")
    assert backend.program() == (str(programs["variable"]),)


def test_a_binary_that_is_named_and_can_not_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LlamaServerBackend()
    monkeypatch.setenv("LLAMA_SERVER_PATH", str(tmp_path / "missing"))
    availability = backend.availability()
    assert not availability
    assert availability.reason == f"LLAMA_SERVER_PATH names {tmp_path}/missing, which does not exist"
    (tmp_path / "missing").write_text("#!/bin/sh\n")
    assert "which is not executable" in backend.availability().reason


def test_the_error_for_a_missing_server_has_the_command_that_installs_it(
    demo_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(LlamaServerBackend, "wheel", lambda self: None)  # as where it is not installed
    availability = LlamaServerBackend().availability()
    assert not availability
    assert availability.hint == f"Run: {install_command('server')}"
    with pytest.raises(ib.BackendUnavailableError, match="no llama-server was found"):
        load(demo_model_path)


def test_other_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, found = LlamaServerBackend(), importlib.util.find_spec
    without = ""
    monkeypatch.setattr(
        "inference_bridge.backends.llama_server.backend.find_spec",
        lambda name: None if name == without else found(name),
    )
    monkeypatch.setenv("PATH", "/nowhere")
    without = "psutil"
    assert backend.availability().reason == "the package psutil is not installed"
    without = "xllamacpp"
    assert "the package xllamacpp is not installed" in backend.availability().reason
    without = ""
    assert backend.availability().ok
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "no Python interpreter" in backend.availability().reason


# ---------------------------------------------------------------- privacy


def test_socket_files_and_directory_are_this_users_alone(model: ServerModel, runtime: Path) -> None:
    model.generate(PROMPT, max_tokens=1).text()
    found = [runtime / "inference-bridge", *(runtime / "inference-bridge").rglob("*")]
    assert len(found) >= 4
    for path in found:
        if not stat.S_ISSOCK(path.stat().st_mode):  # some systems ignore the mode of a socket
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_log_files_and_command_lines_do_not_contain_prompts(
    demo_model_path: Path, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret_prompt = "My secret is 8h3k2."
    with caplog.at_level(logging.DEBUG), load(demo_model_path) as model:
        model.generate(secret_prompt, max_tokens=3).text()
        assert model.process.connect().api_key is None  # access to the directory is restricted instead
        for path in runtime.rglob("*"):
            assert not path.is_file() or secret_prompt not in path.read_text(errors="replace")
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert not [word for line in commands for word in line if secret_prompt in word]
    assert secret_prompt not in caplog.text
    assert "model loaded" in caplog.text  # the server's log is available on request


def test_variables_that_would_configure_the_server_do_not_reach_it(
    demo_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "x")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    with load(demo_model_path) as model:
        model.generate(PROMPT, max_tokens=1).text()
        environment = psutil.Process(model.process.pid).environ()
        assert not [name for name in environment if name.startswith("LLAMA_A")]


# ---------------------------------------------------------------- life


def test_the_server_starts_with_the_first_operation_and_ends_with_the_model(demo_model_path: Path) -> None:
    model = load(demo_model_path)
    assert model.process.pid is None
    stream = model.generate(PROMPT, max_tokens=-1)
    assert model.process.pid is None
    next(stream)
    pid = model.process.pid
    assert pid is not None
    assert runs(pid)
    model.close()
    assert not runs(pid)
    with pytest.raises(ib.ModelClosedError):
        next(stream)
    with pytest.raises(ib.ModelClosedError):
        model.generate(PROMPT)
    model.close()


def test_a_model_that_is_dropped_takes_its_server_along(demo_model_path: Path) -> None:
    model = load(demo_model_path)
    model.generate(PROMPT, max_tokens=1).text()
    pid = model.process.pid
    del model
    gc.collect()
    wait_gone(pid)


PROGRAM = """
import os, signal, sys, time
import inference_bridge as ib
model = ib.load_model(sys.argv[1], backend="llama_server", context_length=512, parallel_slots=1, threads=1)
stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
next(stream)
print(model.process.pid, flush=True)
"""


def program(path: Path, code: str = "") -> subprocess.Popen[str]:
    text = PROGRAM + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("code", "status"),
    [("", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
    ids=["just ends", "exits", "is killed"],
)
def test_a_program_that_never_closes_leaves_no_server(
    code: str, status: int, demo_model_path: Path, runtime: Path
) -> None:
    with program(demo_model_path, code) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, "")
    wait_gone(int(out))
    wait_until(lambda: {str(path) for path in runtime.glob("*/p-*")} <= directories_in_use())


def directories_in_use() -> set[str]:
    lines = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return {os.path.dirname(word) for line in lines for word in line if word.endswith("/server.sock")}


def test_a_forked_child_is_refused_and_its_parent_goes_on(demo_model_path: Path) -> None:
    code = """
    child = os.fork()
    if child == 0:
        status = 0
        try:
            model.generate("Hello").text()
        except ib.ModelClosedError:
            status = 40
        model.close()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(len([next(stream) for _ in range(3)]), flush=True)
    # A child that lives on does not hold the server when its parent is gone.
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1); os.dup2(null, 2)
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with program(demo_model_path, code) as process:
        out, err = process.communicate(timeout=60)
    assert len(out.split()) == 3, err
    pid, refused, more = out.split()
    assert (refused, more, err) == ("40", "3", "")
    wait_gone(int(pid))
