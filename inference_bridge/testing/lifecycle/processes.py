# SPDX-License-Identifier: Apache-2.0
"""Leaks, the end of a program that uses a model, and forked children (behaviour 11).

Each test runs in a separate process, so that only the model's resources are counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..base import Contract

_MARK = "INFERENCE_BRIDGE_CONTRACT_RUN"

_LEFT = """
import collections, gc, json, os, threading, time

def threads():
    names = (t.name for t in threading.enumerate())
    return sorted(n for n in names if not n.startswith({lasting!r}))

def files():
    found = []
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                try:
                    found.append(os.readlink(os.path.join(folder, name)).split(":")[0])
                except OSError:
                    pass
            break
    return sorted(f for f in found if not f.startswith("/proc"))

def children():
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        try:
            with open(f"/proc/{{name}}/stat") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(name)
        except (OSError, ValueError):
            pass
    return found

def use():
    assert model.generate({prompt!r}, max_tokens=2).text() is not None
    half_read = model.generate({endless!r}, max_tokens=-1)
    next(half_read)
    return half_read

def left(before):
    # Fewer than before is correct too: resources of a dropped model may be closed a moment later.
    now = threads(), files(), children()
    return [sorted((collections.Counter(x) - collections.Counter(y)).elements()) for x, y in zip(now, before)]

def settled(before):
    deadline = time.monotonic() + {hang_timeout!r}
    while any(left(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return dict(zip(("threads", "files", "children"), left(before)))

at_first = threads()
"""


class Processes(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (11,)

    @pytest.mark.parametrize("ending", ["model.close()", "del model"])
    def test_nothing_is_left(self, tmp_path: Path, ending: str) -> None:
        """A model that was closed or dropped leaves no thread, file, socket or process."""
        program = (
            self._left()
            + self.program()
            + f"""
half_read = use()
{ending}
del half_read
gc.collect()
before = at_first, files(), []  # an engine opens some files only once, and they stay open
model = load() if "model" not in globals() or model.closed else model
half_read = use()
{ending}
del half_read
gc.collect()
print("LEFT " + json.dumps(settled(before)))
"""
        )
        out = self._run(program, tmp_path)
        left = json.loads(out.partition("LEFT ")[2])
        assert left == {"threads": [], "files": [], "children": []}
        assert self._temporary(tmp_path) == []

    @pytest.mark.parametrize(
        ("ending", "code"),
        [
            ("pass", 0),
            ("threading.Thread(target=list, args=(half_read,), daemon=True).start(); sys.exit(3)", 3),
            ("raise ValueError('my own')", 1),
        ],
        ids=["end", "exit", "exception"],
    )
    def test_a_program_that_never_closes_ends_at_once(self, tmp_path: Path, ending: str, code: int) -> None:
        program = (
            "import asyncio, atexit, sys, threading, time\n"
            "atexit.register(time.sleep, 0.3)\n"  # called last: threads have time to print an error
            + self.program()
            + f"""
half_read = model.generate({self.endless!r}, max_tokens=-1)
next(half_read)

async def main():
    global other
    other = model.agenerate({self.endless!r}, max_tokens=-1)
    await anext(other)
    {ending}

asyncio.run(main())
"""
        )
        error = self._run(program, tmp_path, code=code)
        assert ("my own" in error) == (code == 1)
        assert ("Traceback" in error) == (code == 1), error
        assert self._temporary(tmp_path) == []
        assert self._marked(tmp_path) == [], "processes still run after the program has ended"

    # Windows has no fork, so no child can inherit a model there.
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
    def test_a_forked_child_is_refused_and_the_parent_goes_on(self, tmp_path: Path) -> None:
        program = (
            "import faulthandler, os, sys\n"
            "from inference_bridge import Message, ModelClosedError\n"
            + self.program()
            + f"""
stream = model.generate({self.endless!r}, max_tokens=-1)
next(stream)
unread = model.generate({self.prompt!r}, max_tokens=4)

def refused(call):
    try:
        call()
    except ModelClosedError:
        return
    raise AssertionError("a forked child was not refused")

sys.stdout.flush()
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later({self.hang_timeout!r}, exit=True)
    refused(lambda: next(stream))
    refused(lambda: next(unread))
    refused(lambda: model.generate("x"))
    refused(lambda: model.agenerate("x"))
    refused(lambda: model.batch_generate(["x"]))
    refused(lambda: model.classify(["x"]))
    if "chat" in model.capabilities:
        refused(lambda: model.chat([Message("user", "x")]))
    stream.close()
    model.close()
    del stream, unread, model
    sys.exit(17)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 17, status
next(stream, None)
assert unread.result().tokens
model.generate({self.prompt!r}, max_tokens=1).result()
model.close()
print("the parent continues")
"""
        )
        assert "the parent continues" in self._run(program, tmp_path)

    # ------------------------------------------------ helpers

    def _left(self) -> str:
        lasting = ("pytest", "MainThread#", *self.lasting_threads)
        return _LEFT.format(
            lasting=lasting, prompt=self.prompt, endless=self.endless, hang_timeout=self.hang_timeout / 3
        )

    def _run(self, program: str, folder: Path, code: int = 0) -> str:
        """Run a program to its end. Return its output, or its error output if an error is expected."""
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        environment: dict[str, Any] = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TMPDIR": str(temporary),
            _MARK: str(folder),
        }
        environment.pop("PYTHONWARNINGS", None)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            out, error = process.communicate(timeout=4 * self.hang_timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            pytest.fail(f"the program did not end:\n{error[-2000:]}")
        assert process.returncode == code, f"the program ended with {process.returncode}, not {code}:\n{error[-3000:]}"
        return error if code or not out else out

    def _temporary(self, folder: Path) -> list[str]:
        """Return the files left in the directory for temporary files."""
        return sorted(path.name for path in (folder / "tmp").iterdir())

    def _marked(self, folder: Path) -> list[str]:
        """Return the processes of the program that still run after some seconds, on Linux."""
        deadline = time.monotonic() + self.hang_timeout / 3
        while found := [name for name in _processes() if _has_mark(name, str(folder))]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return found


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []


def _has_mark(process: str, value: str) -> bool:
    try:
        environment = Path("/proc", process, "environ").read_bytes()
    except OSError:
        return False
    return f"{_MARK}={value}".encode() in environment.split(b"\0")
