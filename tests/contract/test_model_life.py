# SPDX-License-Identifier: Apache-2.0
"""Lifecycle of a model: closing it while it is used, forked processes, and programs that never close it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge import ModelClosedError, Request, TextModel, Token

from ..parts.models.tiny import Words

ROOT = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------- closing


def test_close_reaches_the_author_once() -> None:
    model = Words()
    assert not model.closed
    with model:
        pass
    model.close()
    asyncio.run(model.aclose())
    assert model.closed
    assert model.closes == 1


async def test_a_model_is_an_async_context_manager() -> None:
    async with Words() as model:
        assert await model.agenerate("a b").text() == "a b"
    assert model.closed


def test_close_from_many_threads_reaches_the_author_once() -> None:
    model = Words()
    start = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (start.wait(), model.close())) for _ in range(8)]  # type: ignore[func-returns-value]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.closes == 1


def test_close_may_call_super() -> None:
    class Below(Words):
        below = 0

        def close(self) -> None:
            self.below += 1
            super().close()

    model = Below()
    model.close()
    model.close()
    assert (model.below, model.closes) == (1, 1)


def test_close_may_come_from_a_mixin() -> None:
    class Closes:
        closes = 0

        def close(self) -> None:
            self.closes += 1

    class Mixed(Closes, TextModel):
        info = ib.ModelInfo()
        capabilities = frozenset()

        def _run(self, request: Request) -> Iterator[Token]:
            yield Token("a")

    model = Mixed()
    model.close()
    model.close()
    assert model.closed
    assert model.closes == 1
    with pytest.raises(ModelClosedError):
        model.generate("x")


def test_operations_are_cancelled_before_the_author_s_close() -> None:
    class Asks(Words):
        seen: Any = None

        def close(self) -> None:
            self.seen = (self.closed, [request.cancelled for request in self._life.running])

    model = Asks()
    stream = model.generate("a b")
    next(stream)
    model.close()
    assert model.seen == (True, [True])
    stream.close()


def test_a_failing_cancellation_callback_does_not_prevent_closing(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Words):
        def _run(self, request: Request) -> Iterator[Token]:
            request.on_cancel(lambda: 1 / 0)  # type: ignore[arg-type]
            return super()._run(request)

    model = Fails()
    streams = [model.generate("a b") for _ in range(3)]
    for stream in streams:
        next(stream)
    model.close()
    assert model.closes == 1
    for stream in streams:
        with pytest.raises(ModelClosedError):
            next(stream)
    assert caplog.text.count("cancelling a request failed") == 3


def test_closing_while_operations_come_and_go() -> None:
    for _ in range(20):
        model = Words()
        start = threading.Barrier(5)
        odd: list[BaseException] = []

        def use(model: Words = model, start: threading.Barrier = start, odd: list[BaseException] = odd) -> None:
            start.wait()
            try:
                while True:
                    assert model.generate("a b").text() == "a b"
            except ModelClosedError:
                pass
            except BaseException as error:
                odd.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait()
        model.close()
        for thread in threads:
            thread.join()
        assert not odd
        assert not model._life.running


# ---------------------------------------------------------------- forks and exits, each in its own process


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


FORK = """
import asyncio, os, sys, threading
from inference_bridge import Message, ModelClosedError
from tests.parts.models.tiny import {kind}, Waits, until

model, busy = {kind}(), Waits()
stream, unused = model.generate("a b c"), model.generate("a b c")
next(stream)
reader = threading.Thread(target=busy.generate("x").text, daemon=True)
class Tells({kind}):
    parallel = 2
    def _begin(self, request):
        super()._begin(request)
        request.on_cancel(lambda: os.write(1, b"told in " + (b"child\\n" if child == 0 else b"parent\\n")))

child = None
batch = Tells().stream_batch(["a b", "c d"])
next(batch)
waiting, awaiting = busy.generate("y"), busy.agenerate("z")
holder = threading.Thread(target=waiting.text, daemon=True)
aholder = threading.Thread(target=lambda: asyncio.run(awaiting.text()), daemon=True)
reader.start(); holder.start(); aholder.start()
until(lambda: all(len(each._request.result().tokens) == 1 for each in (waiting, awaiting)))
loop = asyncio.new_event_loop()
astream = model.agenerate("a b c")
loop.run_until_complete(anext(astream))

def refused(call):
    try:
        call()
    except ModelClosedError as error:
        assert "forked" in str(error), error
        return True
    return False

child = os.fork()
if child == 0:
    assert refused(lambda: model.generate("x"))
    assert refused(lambda: model.chat([Message("user", "x")]))
    assert refused(lambda: model.batch_generate(["x"]))
    assert refused(lambda: model.agenerate("x"))
    assert refused(lambda: next(stream))
    assert refused(lambda: next(unused))
    assert refused(lambda: next(waiting)), "its lock is held by a thread that is not here"
    assert refused(lambda: asyncio.run(astream.__anext__()))
    assert refused(lambda: asyncio.run(awaiting.__anext__())), "its lock is held too"
    for each in (stream, unused, waiting, batch, astream, awaiting):
        each.close()
    asyncio.run(astream.aclose())
    assert not astream._done and not stream._done
    model.close(); busy.close()
    assert (model.closes, busy.closes) == (0, 0)
    del stream, unused, waiting, astream, awaiting
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert stream.text() == unused.text() == "a b c"
assert loop.run_until_complete(astream.text()) == "a b c"
loop.close()
waiting.close(); holder.join()
awaiting.close(); aholder.join()
busy.close(); reader.join(); batch.close()
print("parent done")
"""


@pytest.mark.parametrize("kind", ["Words", "AsyncWords"])
def test_a_forked_child_is_refused_and_the_parent_goes_on(kind: str) -> None:
    done = _run(FORK.format(kind=kind))
    assert done.stdout == "told in parent\n" * 2 + "parent done\n", done.stderr
    assert "AssertionError" not in done.stderr


@pytest.mark.parametrize("kind", ["Words", "AsyncWords", "Waits", "AsyncWaits"])
@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError('mine')", 1), ("os.kill(os.getpid(), signal.SIGINT)", -2)],
    ids=["end", "exit", "exception", "interrupt"],
)
def test_a_program_that_never_closes_keeps_its_exit_status(kind: str, ending: str, code: int) -> None:
    program = f"""
import asyncio, os, signal, sys
from tests.parts.models.tiny import {kind}

model = {kind}()
half_read = model.generate("a b c")
next(half_read)

async def main():
    global ahalf_read
    ahalf_read = model.agenerate("a b c")
    await anext(ahalf_read)
    {ending}

asyncio.run(main())
"""
    done = _run(program)
    assert done.returncode == code, done.stderr
    assert ("Traceback" in done.stderr) == (code in (1, -2)), done.stderr


def test_ctrl_c_ends_a_program_that_waits_for_a_token() -> None:
    program = """
import os, signal, threading
from tests.parts.models.tiny import {kind}

model = {kind}()
stream = model.generate("a")
next(stream)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    next(stream)
except KeyboardInterrupt:
    print("interrupted", stream.finish_reason)
"""
    for kind in ("Waits", "AsyncWaits"):
        done = _run(program.format(kind=kind))
        assert done.stdout == "interrupted cancelled\n", done.stderr
        assert done.returncode == 0
