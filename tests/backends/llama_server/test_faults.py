# SPDX-License-Identifier: Apache-2.0
"""Servers that crash, never start, never finish or never end: each fault has its own error, and no process is left.

Where a fault can't be brought about in a real server when it is wanted, a shell script stands in for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import inference_bridge as ib
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_server import lease
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel

from ...parts.models.gguf_files import write_model
from ...parts.servers.managed import REAL, runs, script, short_directory, wait_gone, wait_until

SETTINGS = LoadConfig(context_length=1024, parallel_slots=1, threads=1)
COUNT = "Count: 1, 2, 3,"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path
        wait_until(lambda: not list(path.glob("*/[pw]-*")))


@pytest.fixture(autouse=True)
def _in_runtime(runtime: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))


Load = Callable[..., ServerModel]


@pytest.fixture
def load(demo_model_path: Path, tmp_path: Path) -> Iterator[Load]:
    """Loads the demo model on the real server, or on `program`, a shell script, in its place."""
    loaded: list[ServerModel] = []

    def load(program: str = REAL, path: Path = demo_model_path, **options: Any) -> ServerModel:
        binary = script(tmp_path / "llama-server", program)
        model = LlamaServerBackend(binary).load_model(str(path), SETTINGS.with_options(options))
        assert isinstance(model, ServerModel)
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        model.close()


def pid_of(model: ServerModel) -> int:
    """Its server's process id, as soon as there is one."""
    wait_until(lambda: model.process.pid)
    pid = model.process.pid
    assert pid is not None
    return pid


def begun(model: ServerModel) -> int:
    """Have it start its server, which never finishes loading, and return the server's process id."""
    while model.process.pid is None:  # a starved machine may not even start it within an operation's time
        with pytest.raises(ib.GenerationTimeoutError):
            model.generate(COUNT, timeout=0.3).text()
    return pid_of(model)


# ---------------------------------------------------------------- crashes


def test_killed_in_the_middle_of_a_stream(load: Load) -> None:
    model = load()
    stream = model.generate(COUNT, max_tokens=-1)
    begun = [next(stream) for _ in range(3)]
    pid = pid_of(model)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ib.ServerCrashedError, match="it was ended by SIGKILL") as caught:
        stream.result()
    assert caught.value.partial is not None
    assert list(caught.value.partial.tokens[:3]) == begun
    assert "model loaded" in str(caught.value)  # from the end of its log

    assert model.generate(COUNT, max_tokens=2).result().metrics.generated_tokens == 2
    assert pid_of(model) != pid


async def test_killed_in_the_middle_of_an_asynchronous_stream(load: Load) -> None:
    model = load()
    stream = model.agenerate(COUNT, max_tokens=-1)
    await anext(stream)
    os.kill(pid_of(model), signal.SIGKILL)
    with pytest.raises(ib.ServerCrashedError, match="SIGKILL"):
        await stream.result()
    assert (await model.agenerate(COUNT, max_tokens=2).result()).metrics.generated_tokens == 2


def test_killed_between_two_calls(load: Load) -> None:
    model = load()
    model.generate(COUNT, max_tokens=1).text()
    pid = pid_of(model)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    assert model.generate(COUNT, max_tokens=1).result().tokens
    assert pid_of(model) != pid


def test_every_stream_gets_the_error_of_the_crash(load: Load) -> None:
    model = load(parallel_slots=3)
    streams = [model.generate(COUNT, max_tokens=-1) for _ in range(3)]
    for stream in streams:
        next(stream)
    os.kill(pid_of(model), signal.SIGKILL)
    for stream in streams:
        with pytest.raises(ib.ServerCrashedError):
            stream.result()


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="there are no real-time signals on this platform")
def test_ended_by_a_signal_without_a_name(load: Load) -> None:
    model = load()
    stream = model.generate(COUNT, max_tokens=-1)
    next(stream)
    number = signal.SIGRTMIN + 1
    os.kill(pid_of(model), number)
    with pytest.raises(ib.ServerCrashedError, match=f"it was ended by signal {int(number)};"):
        stream.result()


def test_a_server_that_exits_while_loading_is_an_error(load: Load, tmp_path: Path) -> None:
    model = load(f"{REAL.removeprefix('exec ')} &\necho $! > {tmp_path}/inner\nwait\nexit 7")
    stream = model.generate(COUNT, max_tokens=-1)
    next(stream)
    os.kill(int((tmp_path / "inner").read_text()), signal.SIGKILL)
    with pytest.raises(ib.ServerCrashedError, match="ended while it generated: it ended with exit code 7"):
        stream.result()


def test_the_memory_of_an_ended_server_is_unknown(load: Load) -> None:
    model = load()
    model.generate(COUNT, max_tokens=1).text()
    pid = pid_of(model)
    _, peak = model.process.memory()
    assert peak > 0
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
    assert model.process.memory() == (0, peak)


def test_killed_while_it_loads(load: Load) -> None:
    model = load("exec sleep 60")
    killer = threading.Thread(target=lambda: os.kill(pid_of(model), signal.SIGKILL))
    killer.start()
    with pytest.raises(ib.ServerCrashedError, match="ended while it loaded .*: it was ended by SIGKILL"):
        model.generate(COUNT).text()
    killer.join()


def test_its_supervisor_is_killed(load: Load) -> None:
    model = load()
    stream = model.generate(COUNT, max_tokens=-1)
    next(stream)
    pid = pid_of(model)
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    with pytest.raises(ib.ServerCrashedError, match="its supervisor was killed"):
        stream.result()
    wait_gone(pid)
    assert model.generate(COUNT, max_tokens=1).result().tokens


def test_a_supervisor_that_is_ended_ends_its_server(load: Load, runtime: Path) -> None:
    """As when the system ends the session that it was started in."""
    model = load()
    stream = model.generate(COUNT, max_tokens=-1)
    next(stream)
    pid = pid_of(model)
    os.kill(psutil.Process(pid).ppid(), signal.SIGTERM)
    with pytest.raises(ib.ServerCrashedError, match="it was ended by SIGTERM"):
        stream.result()
    wait_gone(pid)
    wait_until(lambda: not list(runtime.glob("*/p-*")))
    assert model.generate(COUNT, max_tokens=1).result().tokens


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody ends a server whose supervisor is killed")
def test_a_supervisor_that_hangs_does_not_block_the_program(
    load: Load, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "GRACE", -4.9)  # else it is waited for ten seconds
    model = load()
    model.generate(COUNT, max_tokens=1).text()
    pid = pid_of(model)
    supervisor = psutil.Process(pid).ppid()
    os.kill(supervisor, signal.SIGSTOP)
    model.close()
    wait_gone(pid, supervisor)
    assert not list(runtime.glob("*/p-*"))


def test_a_late_report_of_a_crash_is_waited_for(load: Load) -> None:
    model = load()
    stream = model.generate(COUNT, max_tokens=-1)
    next(stream)
    pid = pid_of(model)
    supervisor = psutil.Process(pid).ppid()
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    going_on = threading.Timer(1.0, os.kill, (supervisor, signal.SIGCONT))
    going_on.start()
    with pytest.raises(ib.ServerCrashedError, match="SIGKILL"):
        stream.result()
    going_on.join()


# ---------------------------------------------------------------- starts that fail


def test_a_supervisor_that_can_not_be_started(load: Load, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ib.ModelLoadError, match="llama_server can't start a server: No such file or directory"):
        model.generate(COUNT).text()
    assert not list(runtime.glob("*/p-*"))


def test_a_binary_that_exits_with_an_error(load: Load) -> None:
    model = load("echo first; echo 'no such device' >&2; exit 3")
    with pytest.raises(ib.ModelLoadError, match=r"exit code 3\n.*\n  first\n  no such device$"):
        model.generate(COUNT).text()


def test_control_characters_of_a_server_are_removed_from_errors_and_logs(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    """A terminal would act on them: set its title, move the cursor, turn the text round."""
    model = load(
        "printf 'bad \\033]0;title\\007 \\033[2J\\302\\233m \\342\\200\\256 name\\n\\tno such device\\n'; exit 3"
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(ib.ModelLoadError, match="no such device") as caught:
        model.generate(COUNT).text()
    for text in (str(caught.value), *(record.getMessage() for record in caplog.records)):
        assert text.replace("\n", "").isprintable()
    assert "bad \ufffd]0;title" in str(caught.value)


def test_a_long_last_line_of_the_log_is_truncated(load: Load) -> None:
    model = load("head -c 10000 /dev/zero | tr '\\0' x; exit 3")
    with pytest.raises(ib.ModelLoadError, match="x{1000}"):
        model.generate(COUNT).text()


def test_a_binary_that_became_invalid_is_an_error(load: Load, tmp_path: Path) -> None:
    model = load()
    (tmp_path / "llama-server").unlink()
    with pytest.raises(ib.ModelLoadError, match="llama-server can't be run: No such file or directory"):
        model.generate(COUNT).text()


def test_a_missing_or_invalid_model_is_an_error(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ib.ModelNotFoundError, match="missing.gguf"):
        load(path=tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("This is not a model.\n")
    with pytest.raises(ib.ModelLoadError, match="does not begin with the letters GGUF"):
        load(path=tmp_path / "text.gguf")
    write_model(tmp_path / "cut.gguf", cut=100)
    with pytest.raises(ib.ModelLoadError, match="bytes are missing"):
        load(path=tmp_path / "cut.gguf")


def test_a_model_that_only_the_server_finds_fault_with(load: Load, tmp_path: Path) -> None:
    model = load(path=write_model(tmp_path / "hollow.gguf"))  # a complete file without the tensors that a model needs
    with pytest.raises(ib.ModelLoadError, match=r"could not load .*hollow.gguf: its server ended with exit code 1\n"):
        model.generate(COUNT).text()


def test_a_model_that_went_away(load: Load, demo_model_path: Path, tmp_path: Path) -> None:
    link = tmp_path / "model.gguf"
    link.symlink_to(demo_model_path)
    model = load(path=link)
    link.unlink()
    with pytest.raises(ib.ModelLoadError, match="could not load .*model.gguf"):
        model.generate(COUNT).text()


# ---------------------------------------------------------------- starts that never end

FOREVER = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


def test_a_server_that_never_finishes_loading_is_ended(load: Load) -> None:
    model = load(FOREVER, connect_timeout=0.3)
    with pytest.raises(ib.ModelLoadError, match=r"did not load .* within 0.3 s: allow more with connect_timeout"):
        model.generate(COUNT).text()
    assert model.process.pid is None


def test_all_callers_waiting_for_a_load_get_the_same_error(load: Load) -> None:
    model = load(FOREVER, connect_timeout=0.5, parallel_slots=4)
    told: list[str] = []

    def ask() -> None:
        with pytest.raises(ib.ModelLoadError) as caught:
            model.generate(COUNT).text()
        told.append(str(caught.value))

    first = threading.Thread(target=ask)
    first.start()
    pid_of(model)
    time.sleep(0.3)  # so that the first gives up long before their time is over
    others = [threading.Thread(target=ask) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert len(told) == 4
    assert all("did not load" in message for message in told)


def test_a_timeout_while_it_loads(load: Load) -> None:
    model = load(FOREVER)
    pid = begun(model)
    with pytest.raises(ib.GenerationTimeoutError):
        model.generate(COUNT, timeout=0.1).text()
    assert model.process.pid == pid  # and the load continues for callers with more time
    assert runs(pid)


def test_a_stream_that_is_closed_while_it_loads(load: Load) -> None:
    model = load(FOREVER)
    stream = model.generate(COUNT)

    def close() -> None:
        pid_of(model)
        stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    assert stream.text() == ""
    closer.join()
    assert stream.finish_reason == "cancelled"


async def test_an_asynchronous_stream_that_is_closed_while_it_loads(load: Load) -> None:
    model = load(FOREVER)
    stream = model.agenerate(COUNT)
    task = asyncio.create_task(stream.text())
    await asyncio.to_thread(pid_of, model)
    stream.close()
    assert await task == ""
    assert stream.finish_reason == "cancelled"


async def test_a_task_that_is_cancelled_while_it_loads(load: Load) -> None:
    model = load(FOREVER)
    task = asyncio.create_task(model.agenerate(COUNT).text())
    await asyncio.to_thread(pid_of, model)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_model_that_is_closed_while_it_loads(load: Load) -> None:
    model = load(FOREVER)
    pids: list[int] = []

    def close() -> None:
        pids.append(pid_of(model))
        model.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(ib.ModelClosedError):
        model.generate(COUNT).text()
    closer.join()
    wait_gone(*pids)
    with pytest.raises(ib.ModelClosedError):  # for a caller that starts to wait only now
        model.process.ready()


async def test_a_model_that_is_closed_before_its_first_use(load: Load) -> None:
    model = load()
    await model.aclose()
    assert model.process.pid is None


# ---------------------------------------------------------------- ends


@pytest.mark.slow
def test_a_server_that_ignores_termination_is_killed(load: Load) -> None:
    model = load("trap '' TERM; while :; do sleep 0.1; done")
    pid = begun(model)
    model.close()  # which takes the five seconds of grace
    assert not runs(pid)


def test_processes_started_by_the_binary_end_with_it(load: Load, tmp_path: Path) -> None:
    """A script around the real server, which waits for it instead of becoming it."""
    model = load(f"{REAL.removeprefix('exec ')} &\necho $! > {tmp_path}/inner\nwait")
    stream = model.generate(COUNT, max_tokens=-1)
    next(stream)
    inner = int((tmp_path / "inner").read_text())
    assert inner != pid_of(model)
    model.close()
    wait_gone(inner)
