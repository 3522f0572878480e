# SPDX-License-Identifier: Apache-2.0
"""Models that stay loaded between programs, whichever party ends when and how."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import inference_bridge as ib
from inference_bridge.backends import warm
from inference_bridge.backends.warm import control, daemon, directories, peers
from inference_bridge.backends.warm import model as warm_model

from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.servers.managed import runs, short_directory, wait_gone, wait_until

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

PROMPT = "Once"
OPTIONS: dict[str, Any] = {"context_length": 512, "parallel_slots": 2, "threads": 1, "keep_alive": 300}


@pytest.fixture
def runtime(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of the processes of a test, which all end with the test."""
    with short_directory() as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        yield path / "inference-bridge"
        control.stop_all()
        wait_until(lambda: not list(path.glob("*/p-*")))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 2048)


def load(path: Path, backend: str = "llama_cpp", **options: Any) -> ib.TextModel:
    return ib.load_model(path, backend=backend, **{**OPTIONS, **options})


def only() -> control.KeptModel:
    (kept,) = control.models()
    return kept


PROGRAM = """
import os, signal, sys
import inference_bridge as ib
model = ib.load_model(sys.argv[1], backend="llama_cpp", context_length=512, parallel_slots=2, threads=1, keep_alive=300)
stream = model.generate("Once", max_tokens=400)
next(stream)
print("begun", flush=True)
"""


def start(path: Path, code: str = "stream.close()") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM + textwrap.dedent(code), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], status: int = 0) -> None:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err, out) == (status, "", "begun\n")


@pytest.mark.parametrize("backend", ["llama_cpp", "llama_server"])
def test_a_kept_model_is_the_model(path: Path, runtime: Path, backend: str) -> None:
    with load(path, backend) as kept, load(path, backend, keep_alive=0) as own:
        assert (kept.backend, kept.info, kept.options) == (own.backend, own.info, own.options)
        assert kept.capabilities == own.capabilities | {"stats"}
        asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 2}
        assert kept.generate(PROMPT, **asked).text() == own.generate(PROMPT, **asked).text()
        assert kept.count_tokens(PROMPT) == own.count_tokens(PROMPT)
        with pytest.raises(ib.UnsupportedError) as refused:
            kept.generate(PROMPT, json_schema={"not": {}})
        assert refused.value.backend == backend


def test_a_kept_model_is_found_by_the_next_program(path: Path, runtime: Path) -> None:
    ended(start(path))
    first = only()
    assert first.users == 0
    ended(start(path, "os.kill(os.getpid(), signal.SIGKILL)"), -signal.SIGKILL)
    wait_until(lambda: only().users == 0)  # its answer has ended with it
    assert (only().id, only().pid) == (first.id, first.pid)
    assert psutil.Process(first.pid).ppid() != os.getpid() or not psutil.Process(first.pid).children()


def test_programs_that_start_at_once_share_one_model(path: Path, runtime: Path) -> None:
    for program in [start(path) for _ in range(3)]:
        ended(program)
    assert only().users == 0
    assert len(list(runtime.glob("d-*"))) == 1


def test_a_process_ends_when_no_model_was_used_for_long_enough(path: Path, runtime: Path) -> None:
    with load(path, keep_alive=0.2) as model:
        stream = model.generate(PROMPT, max_tokens=400)
        next(stream)
        pid = only().pid
        stream.result()
        wait_gone_or_zombie(pid)
        wait_until(lambda: not list(runtime.glob("d-*")))
        assert model.generate(PROMPT, max_tokens=2).result().tokens  # by another one
    assert sorted(one.name for one in runtime.iterdir() if not one.name.startswith("d-")) == ["lock"]


def wait_gone_or_zombie(pid: int) -> None:
    wait_until(lambda: not runs(pid))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_is_replaced(path: Path, runtime: Path, number: int) -> None:
    with load(path) as model:
        expected = model.generate(PROMPT, max_tokens=8).text()
        pid = only().pid
        os.kill(pid, number)
        wait_gone_or_zombie(pid)
        assert model.generate(PROMPT, max_tokens=8).text() == expected
        assert asyncio.run(model.agenerate(PROMPT, max_tokens=8).text()) == expected
        assert only().pid != pid
    assert len(list(runtime.glob("d-*"))) == 1  # files of the other process are removed too


def test_an_answer_that_is_being_made_is_lost_with_its_process(path: Path, runtime: Path) -> None:
    with load(path) as model:
        stream = model.generate(PROMPT, max_tokens=400)
        first = next(stream)
        os.kill(only().pid, signal.SIGKILL)
        with pytest.raises(ib.ServerCrashedError) as lost:
            stream.result()
        assert lost.value.partial is not None
        assert lost.value.partial.tokens[0] == first
        assert model.generate(PROMPT, max_tokens=2).result().tokens


def test_a_process_that_is_killed_while_it_loads_is_replaced(path: Path, runtime: Path) -> None:
    loaded: list[ib.TextModel] = []
    thread = threading.Thread(target=lambda: loaded.append(load(path)))
    thread.start()
    wait_until(lambda: list(runtime.glob("d-*/socket")))
    found = [one for one in psutil.process_iter(["cmdline"]) if str(runtime) in " ".join(one.info["cmdline"] or ())]
    for one in found:
        one.kill()
    thread.join()
    with loaded[0] as model:
        assert model.generate(PROMPT, max_tokens=2).result().tokens


def test_a_managed_server_ends_with_its_process(path: Path, runtime: Path) -> None:
    with load(path, "llama_server") as model:
        assert model.generate(PROMPT, max_tokens=1).result().tokens
        pid = only().pid
        servers = [one.pid for one in psutil.Process(pid).children(recursive=True)]
        assert servers
        os.kill(pid, signal.SIGKILL)
        wait_gone(*servers)
        wait_until(lambda: not list(runtime.glob("p-*")))


def test_a_kept_model_is_stopped_while_it_is_used(path: Path, runtime: Path) -> None:
    with load(path) as model:
        stream = model.generate(PROMPT, max_tokens=1500)
        next(stream)
        kept = only()
        assert control.stop(kept.id)
        with pytest.raises(ib.GenerationError):
            stream.result()
        assert control.models() == []
        wait_gone_or_zombie(kept.pid)
        assert not control.stop(kept.id)
        assert model.generate(PROMPT, max_tokens=1).result().tokens


def test_a_request_that_is_not_json_is_refused_by_the_process_that_keeps_models(path: Path, runtime: Path) -> None:
    with load(path) as model:
        model.generate(PROMPT, max_tokens=1).result()
        (socket_path,) = daemon.sockets()
        line = warm_model.connection(socket_path)
        try:
            answer = line.client().request("POST", line.base_url + control.UNLOAD, content=b"{")
        finally:
            line.close()
        assert answer.status_code == 400
        assert only().users == 0


def test_another_option_or_file_is_another_model(path: Path, runtime: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(path.read_bytes())
    load(model).close()
    load(model, context_length=256).close()
    assert len(control.models()) == 2
    os.utime(model, (1, 1))
    load(model).close()
    assert len(control.models()) == 3
    assert len({one.pid for one in control.models()}) == 1
    load(model, keep_alive=200).close()
    assert sorted(one.keep_alive for one in control.models()) == [200, 300, 300]


def test_another_version_or_environment_is_another_process(
    path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(path).close()
    monkeypatch.setattr(daemon, "__version__", "0.0.0")
    load(path).close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    load(path).close()
    assert len({one.pid for one in control.models()}) == 3
    assert len(control.stop_all()) == 3
    assert control.models() == []


def test_embeddings_are_kept(tmp_path: Path, runtime: Path) -> None:
    path = write_embedding(tmp_path / "embedding.gguf")
    options: dict[str, Any] = {"parallel_slots": 0, "context_length": 0}
    with load(path, **options) as kept, load(path, keep_alive=0, **options) as own:
        assert isinstance(kept, ib.EmbeddingModel)
        assert isinstance(own, ib.EmbeddingModel)
        assert kept.embed(["a", "b"]) == [list(vector) for vector in own.embed(["a", "b"])]


def test_errors_of_loading_are_those_of_the_backend(runtime: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ib.ModelLoadError, match=r"broken\.gguf"):
        load(broken)
    assert control.models() == []


def test_everything_is_this_users_alone(path: Path, runtime: Path) -> None:
    load(path).close()
    found = [runtime, *runtime.rglob("*")]
    assert {"lock", "log", "socket"} <= {one.name for one in found}
    for one in found:
        mode = one.stat().st_mode
        assert stat.S_ISSOCK(mode) or not stat.S_IMODE(mode) & 0o077, one
    assert not psutil.Process(only().pid).net_connections("inet")


def test_a_process_of_another_user_is_not_used(path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path).close()
    kept = only()
    with monkeypatch.context() as other:
        other.setattr(peers, "_credentials", lambda line: (kept.pid, 65534))
        assert control.models() == []
        assert not control.stop(kept.id)
    assert control.stop(kept.id)


def test_the_error_for_a_process_that_does_not_start_has_its_log(
    path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "uvicorn.py"
    broken.write_text("raise RuntimeError('no such server')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ib.ServerCrashedError, match="no such server"):
        load(path)


def test_a_runtime_directory_with_too_long_a_path_is_refused(
    path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "SOCKET_PATH_LIMIT", 10)
    with pytest.raises(ib.ModelLoadError, match="XDG_RUNTIME_DIR"):
        load(path)


def test_a_missing_package_is_named(path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "find_spec", lambda name: None)
    with pytest.raises(ib.UnsupportedError, match="serve") as refused:
        load(path)
    assert refused.value.feature == "keep_alive"


def test_the_name_of_a_process_depends_on_the_model_and_its_options(path: Path) -> None:
    def name(**options: Any) -> str:
        return warm_model.spec("llama_cpp", str(path), ib.LoadConfig(**options))

    assert name(keep_alive=1) == name(keep_alive=2) == name()
    assert name(threads=1) != name()


def test_prompts_are_not_in_the_log(path: Path, runtime: Path) -> None:
    with load(path) as model:
        model.generate("secretword", max_tokens=2).text()
    (log,) = runtime.glob("d-*/log")
    assert "secretword" not in log.read_text()


# ---------------------------------------------------------------- the llm command


def llm(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env=os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["llama_cpp", "llama_server"])
def test_llm_twice_loads_once(
    backend: str, demo_model_path: Path, runtime: Path, configure: Callable[[str], Path]
) -> None:
    configure(f"keep_alive = '5m'\n[models.kept]\nsource = '{demo_model_path}'\nthreads = 1\ncontext_length = 512")
    asked = (
        "-m",
        f"{backend}:kept",
        "--no-log",
        "-o",
        "max_tokens",
        "4",
        "-o",
        "temperature",
        "0",
        "Who wrote Hamlet?",
    )
    first = llm(*asked)
    kept = only()
    assert (kept.backend, kept.model, kept.keep_alive) == (backend, str(demo_model_path), 300)
    assert llm(*asked) == first
    assert (only().id, only().pid, only().started) == (kept.id, kept.pid, kept.started)


def test_llm_does_not_keep_a_model_that_is_not_to_be_kept(
    demo_model_path: Path, runtime: Path, configure: Callable[[str], Path]
) -> None:
    configure(f"keep_alive = '5m'\n[models.own]\nsource = '{demo_model_path}'\nkeep_alive = 0\ncontext_length = 512")
    assert llm("-m", "llama_cpp:own", "--no-log", "-o", "max_tokens", "2", "Hi")
    assert control.models() == []
