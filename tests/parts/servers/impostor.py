# SPDX-License-Identifier: Apache-2.0
"""A program that poses as a managed llama-server: it listens first, and records the requests that it receives.

    python impostor.py FILE DIRECTORY PROCESS USER

It binds every `server.sock` that it can in the directories in DIRECTORY, and the port and the socket that a command
line of a descendant of PROCESS names. To the key "none" it answers 401, to everything else 200, as a server
with a key would. FILE gets what it received. It runs as USER (0: as the user that starts it).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil


def answer(line: socket.socket, heard: Path) -> None:
    with contextlib.suppress(OSError), line:
        line.settimeout(5)
        data = line.recv(65536)
        if not data:
            return  # the client sent no request
        with heard.open("ab") as file:
            file.write(data)
        status = "401 Unauthorized" if b"Bearer none" in data else "200 OK"
        line.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())


def listen(line: socket.socket, heard: Path) -> None:
    line.listen()
    while True:
        threading.Thread(target=answer, args=(line.accept()[0], heard), daemon=True).start()


def addresses(directory: Path, parent: int) -> Iterator[tuple[int, str | tuple[str, int]]]:
    with contextlib.suppress(OSError):
        for found in sorted(directory.glob("[pw]-*")):
            yield socket.AF_UNIX, str(found / "server.sock")
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(parent).children(recursive=True) if parent else ():
            words = process.cmdline()
            for flag, value in itertools.pairwise(words):
                if flag == "--port":
                    yield socket.AF_INET, ("127.0.0.1", int(value))
                elif flag == "--host" and value.endswith(".sock"):
                    yield socket.AF_UNIX, value


def pose(heard: Path, directory: Path, parent: int) -> None:
    bound: set[object] = set()
    print("ready", flush=True)  # noqa: T201
    while True:
        for family, address in addresses(directory, parent):
            if address not in bound:
                line = socket.socket(family)
                with contextlib.suppress(OSError):
                    line.bind(address)
                    bound.add(address)
                    threading.Thread(target=listen, args=(line, heard), daemon=True).start()
        time.sleep(0.005)


@contextlib.contextmanager
def impostor(heard: Path, directory: Path, *, parent: int = 0, user: int = 0) -> Iterator[None]:
    """Run the program meanwhile, as another `user` where one is given."""
    heard.touch()
    heard.chmod(0o666)
    code = Path(__file__).read_text(encoding="utf-8")  # the other user may have no access to the file
    command = [sys.executable, "-c", code, str(heard), str(directory), str(parent), str(user)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    if int(sys.argv[4]):  # only now: the interpreter itself may be out of that user's reach
        os.setgroups([])
        os.setgid(int(sys.argv[4]))
        os.setuid(int(sys.argv[4]))
    pose(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
