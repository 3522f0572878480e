# SPDX-License-Identifier: Apache-2.0
"""Servers that outlive the program that started them, and are found by the next."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
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
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_server import process as server_process
from inference_bridge.backends.llama_server import warm
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.warm import directories

from ...parts.managed import runs, script, short_directory, wait_gone, wait_until
from ...parts.tiny_gguf import write_llama

SETTINGS = LoadConfig(context_length=512, parallel_slots=2, threads=1, keep_alive=300)
PROMPT = "The capital of France is"


@pytest.fixture
def runtime(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the servers of a test are, all of which end with it."""
    with short_directory() as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        yield path / "inference-bridge"
        for server in warm.servers():
            warm.stop(server.id)
        wait_until(lambda: not list(path.glob("*/[pw]-*")))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 1024)


def load(path: Path, **options: Any) -> ServerModel:
    model = LlamaServerBackend().load_model(str(path), SETTINGS.with_options(options))
    assert isinstance(model, ServerModel)
    return model


def used(path: Path, **options: Any) -> int:
    """Load, generate and close; the server's process id."""
    with load(path, **options) as model:
        assert model.generate(PROMPT, max_tokens=1).result().tokens
        assert model.process.pid is not None
        return model.process.pid


PROGRAM = """
import os, signal, sys
import inference_bridge as ib
config = ib.LoadConfig(context_length=512, parallel_slots=2, threads=1, keep_alive=300)
model = ib.load_model(sys.argv[1], backend="llama_server", config=config)
text = model.generate("The capital of France is", max_tokens=1).text()
print(model.process.pid, flush=True)
"""


def start(path: Path, code: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM + textwrap.dedent(code), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], status: int = 0) -> int:
    """The process id of the server that the program used."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, "")
    return int(out)


def test_the_next_program_finds_it(path: Path, runtime: Path) -> None:
    first = ended(start(path))
    assert runs(first)
    assert ended(start(path, "os.kill(os.getpid(), signal.SIGKILL)"), -signal.SIGKILL) == first
    assert used(path) == first
    log = next(runtime.glob("w-*/log")).read_text()
    assert log.count("loading model '") == 1
    assert psutil.Process(psutil.Process(first).ppid()).ppid() != os.getpid()  # nobody's child: nobody need wait for it


def test_programs_that_start_at_once_share_one(path: Path, runtime: Path) -> None:
    programs = [start(path) for _ in range(3)]
    assert len({ended(program) for program in programs}) == 1


def test_listed_and_stopped(path: Path, runtime: Path) -> None:
    assert warm.servers() == []
    with load(path) as model:
        model.generate(PROMPT, max_tokens=1).text()
        (server,) = warm.servers()
        assert (server.backend, server.model) == ("llama_server", str(path))
        assert (server.pid, server.keep_alive, server.users, server.idle) == (model.process.pid, 300, 1, 0)
    wait_until(lambda: warm.servers()[0].users == 0)
    assert warm.stop(server.id)
    assert not runs(server.pid)
    assert (warm.servers(), warm.stop(server.id), warm.stop("")) == ([], False, False)
    assert [path.name for path in runtime.iterdir()] == ["lock"]


def test_stopped_while_it_is_used(demo_model_path: Path, runtime: Path) -> None:
    with load(demo_model_path) as model:
        stream = model.generate(PROMPT, max_tokens=-1)
        next(stream)
        (server,) = warm.servers()
        assert warm.stop(server.id)
        with pytest.raises(ib.ServerCrashedError):
            stream.result()
        assert model.generate(PROMPT, max_tokens=1).result().tokens
        assert model.process.pid != server.pid


def test_one_that_crashed_is_replaced(path: Path, runtime: Path) -> None:
    pid = used(path)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    assert used(path) != pid


def test_one_whose_supervisor_was_killed_is_replaced(path: Path, runtime: Path) -> None:
    pid = used(path)
    (server,) = warm.servers()
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    wait_gone(pid)
    assert warm.servers() == []
    assert not warm.stop(server.id)
    assert used(path) != pid
    assert len(list(runtime.glob("w-*"))) == 1


@pytest.mark.parametrize("full", [False, True])
def test_one_whose_supervisor_does_not_answer_is_left_alone(
    full: bool, path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that the machine has too much to do: then its server goes on, and another is started."""
    monkeypatch.setattr(warm, "_ANSWER_TIMEOUT", 0.3)
    pid = used(path)
    (directory,) = runtime.glob("w-*")
    supervisor = psutil.Process(pid).ppid()
    os.kill(supervisor, signal.SIGSTOP)
    with contextlib.ExitStack() as waiting:
        for _ in range(100 if full else 1):  # more than it lets wait
            line = waiting.enter_context(socket.socket(socket.AF_UNIX))
            line.setblocking(False)
            line.connect_ex(str(directory / "control"))
        other = used(path)
        os.kill(supervisor, signal.SIGCONT)
    assert other != pid
    assert runs(pid)
    assert directory.exists()
    wait_until(lambda: {server.pid for server in warm.servers()} == {pid, other})


def test_one_that_is_found_while_it_ends(
    path: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = script(tmp_path / "llama-server", "exec sleep 60")  # which never answers

    def waiting() -> threading.Thread:
        model = LlamaServerBackend(binary).load_model(str(path), SETTINGS)
        loaded.append(model)
        thread = threading.Thread(target=ask, args=(model,))
        thread.start()
        return thread

    def ask(model: ib.TextModel) -> None:
        try:
            model.generate(PROMPT).text()
        except ib.BridgeError as error:
            told.append(str(error))

    told: list[str] = []
    loaded: list[ib.TextModel] = []
    monkeypatch.setattr(server_process, "ATTEMPTS", 1)
    threads = [waiting()]
    wait_until(lambda: [server.users for server in warm.servers()] == [1])
    threads.append(waiting())
    wait_until(lambda: [server.users for server in warm.servers()] == [2])
    os.kill(warm.servers()[0].pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    for model in loaded:
        model.close()
    assert len(told) == 2
    assert any("was ended by SIGKILL" in message for message in told)  # of its own server
    assert any("found 1 servers that were ending: try again" in message for message in told)


def test_one_that_takes_no_notice_of_being_stopped(
    path: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = script(tmp_path / "llama-server", "trap '' TERM; while :; do sleep 0.1; done")
    model = LlamaServerBackend(binary).load_model(str(path), SETTINGS)
    with pytest.raises(ib.GenerationTimeoutError):
        model.generate(PROMPT, timeout=0.3).text()
    (server,) = warm.servers()
    with monkeypatch.context() as hasty:
        hasty.setattr(warm, "_STOP_TIMEOUT", 0.1)
        with pytest.raises(ib.ServerError, match=rf"the server {server.id} \(process {server.pid}\) does not end"):
            warm.stop(server.id)
    os.kill(server.pid, signal.SIGKILL)
    model.close()


def test_who_talks_nonsense_to_a_supervisor_is_not_listened_to(path: Path, runtime: Path) -> None:
    pid = used(path)
    (control,) = runtime.glob("w-*/control")
    for said in (b"nonsense\n", b"[]\n", b'{"do": "lease"}\n', b'{"do": "lease", "keep_alive": []}\n'):
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(20)
            line.connect(str(control))
            line.sendall(said)
            assert line.recv(100) == b""
    assert used(path) == pid


def test_its_log_is_kept_short(path: Path, runtime: Path, tmp_path: Path) -> None:
    binary = script(tmp_path / "llama-server", "head -c 5000000 /dev/zero; echo; echo the end; exec sleep 60")
    model = LlamaServerBackend(binary).load_model(str(path), SETTINGS)
    with pytest.raises(ib.GenerationTimeoutError):
        model.generate(PROMPT, timeout=0.5).text()
    (log,) = runtime.glob("w-*/log")
    wait_until(lambda: log.read_bytes().endswith(b"the end\n"))
    warm.servers()  # its supervisor looks at the log when it is asked something, and once a minute
    wait_until(lambda: log.stat().st_size < 1 << 20)
    assert log.read_bytes().endswith(b"the end\n")
    model.close()


def test_it_ends_when_nobody_used_it_for_long_enough(path: Path, runtime: Path) -> None:
    with load(path, keep_alive=0.2) as model:
        model.generate(PROMPT, max_tokens=1).text()
        pid = model.process.pid
        other = used(path, keep_alive=0.1)
        assert other == pid
        assert runs(pid)  # it is held
    wait_gone(pid)
    wait_until(lambda: not list(runtime.glob("w-*")))


def test_what_makes_it_another_server(path: Path, runtime: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(path.read_bytes())
    first = used(model)
    assert used(model, context_length=1024) != first
    assert used(model, chat_template="{{ messages[0].content }}") != first
    os.utime(model, (1, 1))
    assert used(model) != first
    assert len(warm.servers()) == 4


def test_a_file_that_is_not_there_has_a_name_all_the_same(tmp_path: Path) -> None:
    def key(*files: str) -> str:
        return warm.key_of(["no-such-llama-server"], [], None, files, {})

    assert key("/nowhere/a.gguf") == key("/nowhere/a.gguf") != key("/nowhere/b.gguf")
    assert warm._directories("no-such-key") == []


def test_less_free_memory_does_not_make_it_another_server(
    path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm server itself takes the memory by which the context would be measured."""
    with load(path, context_length=0) as first:
        pid, length = used(path, context_length=0), first.info.context_length
        monkeypatch.setattr(LlamaServerBackend, "memory", lambda *_: 0)
        with load(path, context_length=0) as second:
            assert second.info.context_length == length
            second.generate(PROMPT, max_tokens=1).text()
            assert second.process.pid == pid
    with load(path, context_length=0, parallel_slots=1) as third:
        assert third.info.context_length < length


def test_everything_is_this_users_alone(path: Path, runtime: Path) -> None:
    used(path, chat_template="{{ messages[0].content }}")
    found = [runtime, *runtime.rglob("*")]
    assert {"lock", "log", "control", "template.jinja", "server.sock"} <= {path.name for path in found}
    for path in found:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode) or not stat.S_IMODE(mode) & 0o077, path


def test_where_no_path_is_short_enough(path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "SOCKET_PATH_LIMIT", 10)
    with load(path) as model, pytest.raises(ib.ModelLoadError, match="XDG_RUNTIME_DIR"):
        model.generate(PROMPT).text()


def test_one_that_does_not_start(path: Path, runtime: Path, tmp_path: Path) -> None:
    binary = script(tmp_path / "llama-server", "echo broken; exit 3")
    model = LlamaServerBackend(binary).load_model(str(path), SETTINGS)
    for _ in range(2):
        with pytest.raises(ib.ModelLoadError, match=r"exit code 3\n.*\n  broken"):
            model.generate(PROMPT).text()
    model.close()
    assert warm.servers() == []


# ---------------------------------------------------------------- the llm command


def llm(*arguments: str, **more: str) -> str:
    environment = os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge"} | more
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_llm_twice_loads_once(demo_model_path: Path, runtime: Path, configure: Callable[[str], Path]) -> None:
    configure(f"[models.warm]\nsource = '{demo_model_path}'\nkeep_alive = 300\nthreads = 1\ncontext_length = 512")
    question = "What is the capital of France? Answer in one sentence."
    answers = [
        llm(
            "-m",
            "llama_server:warm",
            "--no-log",
            "-o",
            "max_tokens",
            "8",
            "-o",
            "temperature",
            "0",
            question,
            INFERENCE_BRIDGE_LOG="info",
        )
        for _ in range(2)
    ]
    texts = [re.sub(r"^\d{4}-.*\n", "", answer, flags=re.MULTILINE) for answer in answers]
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]
    assert [answer.count("starting ") for answer in answers] == [1, 0]
    log = next(runtime.glob("w-*/log")).read_text()
    assert log.count("loading model '") == 1
    assert question not in log
