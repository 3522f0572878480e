# SPDX-License-Identifier: Apache-2.0
"""Run the contract suite on other projects' servers, each in its own environment.

    python -m tests.servers                                 every server
    python -m tests.servers vllm                            these
    python -m tests.servers vllm --use vllm=DIRECTORY       in an environment that exists
    python -m tests.servers vllm --url http://127.0.0.1:8000    a server that runs already; its key is in SUITE_KEY

`--hang-timeout 120` is for a slow machine: the seconds after which an operation counts as hanging. A
server that can't be installed or does not start is skipped, with the reason. The exit status is 1 where a suite failed.
What follows `--` is handed to pytest.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx2

from ..parts.models.contract_models import DEMO_MODEL
from ..parts.servers.processes import llama_server
from . import kinds
from .kinds import Kind

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "servers"
START_SECONDS = 600
HANG_TIMEOUT = 30.0
SUITES = tuple(f"tests/servers/test_{name}.py" for name in ("contract", "labels", "prompt_lists"))


class SkippedError(Exception):
    """Why a server is not tested."""


def installed(name: str, kind: Kind) -> Path:
    """The environment with the server in it. Raises SkippedError where it can't be installed."""
    environment = BUILD / name / "environment"
    done = environment / "installed"
    if done.exists():
        return environment
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", *kind.requirements],
    ):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SkippedError("it can't be installed: " + _last_line(run.stderr or run.stdout))
    done.touch()
    return environment


@contextmanager
def running(name: str, kind: Kind, environment: Path) -> Iterator[str]:
    """The address of the server, until the block ends. Raises SkippedError where it does not start."""
    files = BUILD / name
    files.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = files / "log.txt"
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            kind.command(environment, files, port),
            cwd=files,
            env={**variables, "PATH": path, **kind.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(process, address, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SkippedError("it ends at once: " + _last_line(log.read_text(encoding="utf-8", errors="replace")))
        try:
            httpx2.get(address + "/v1/models", timeout=5, trust_env=False)
        except httpx2.HTTPError:
            time.sleep(1)
        else:
            return  # whatever it answers: it may ask for a key
    raise SkippedError(f"it does not listen within {START_SECONDS} s: see {log}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"


def on_running(url: str, variables: Mapping[str, str], more: Sequence[str]) -> int:
    """The exit status of the contract suite on a server that runs."""
    command = [sys.executable, "-m", "pytest", "-q", *SUITES, *more]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "SUITE_URL": url, **variables}, check=False).returncode


def suite(name: str, environment: Path | None, more: Sequence[str]) -> int:
    """The exit status of the contract suite on the server, which is started for it. Raises SkippedError."""
    kind = kinds.KINDS[name]
    place = environment or installed(name, kind)
    behind = llama_server(DEMO_MODEL, length=2048) if name == "litellm" else nullcontext("")
    with behind as address:
        os.environ["BEHIND"] = address
        with running(name, kind, place) as url:
            return on_running(url, kind.suite, more)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    more = given[given.index("--") + 1 :] if "--" in given else []
    parser = argparse.ArgumentParser(description="Run the contract suite on other projects' servers.")
    parser.add_argument("names", nargs="*", choices=[[], *kinds.KINDS], metavar="SERVER", help=", ".join(kinds.KINDS))
    parser.add_argument("--use", action="append", default=[], metavar="SERVER=DIRECTORY", help="an environment to use")
    parser.add_argument("--url", help="the address of one that runs already")
    parser.add_argument("--hang-timeout", type=float, default=HANG_TIMEOUT, help=f"seconds (default {HANG_TIMEOUT:g})")
    asked = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    places = {name: Path(directory) for name, _, directory in (one.partition("=") for one in asked.use)}
    if asked.url and len(asked.names) != 1:
        parser.error("--url is of one server: name it")
    os.environ["SUITE_HANG_TIMEOUT"] = str(asked.hang_timeout)
    more = [f"--timeout={max(10 * asked.hang_timeout, 300):g}", *more]
    failed = False
    for name in asked.names or kinds.KINDS:
        try:
            status = on_running(asked.url, {}, more) if asked.url else suite(name, places.get(name), more)
        except SkippedError as reason:
            said = f"skipped: {reason}"
        else:
            said = "passed" if status == 0 else "failed"
            failed = failed or status != 0
        sys.stdout.write(f"{name}: {said}\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
