# SPDX-License-Identifier: Apache-2.0
"""The trial load of a model file in a child process, which protects this process from a damaged file.

llama.cpp checks much of a file's content with assertions, and an assertion that fails ends the process. So before a
file is loaded here for the first time, a child process loads it and evaluates a few tokens. The result is stored, and
is valid as long as the file and the library are unchanged. The weights of a large file are not read: llama.cpp
simulates the load, which takes no longer than reading the header.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ....catalog import verdicts
from ....catalog.found import parts_of
from ....errors import ModelLoadError

if TYPE_CHECKING:
    import subprocess

    from ....catalog.headers import gguf
    from ....options import LoadConfig

_log = logging.getLogger(__name__)

FULL_BYTES = 512 << 20
"""Maximum size of a model whose weights are read and which evaluates tokens: less than a second on two cores."""
FULL_PROJECTOR_BYTES = 16 << 20
"""Maximum size of a projector that encodes an image: a larger one takes seconds on a CPU."""

MEMORY = 384 << 20
"""Bytes of memory that the child may use, in addition to those computed from the sizes of the files."""
PROJECTOR_MEMORY = 1 << 30
"""Bytes of memory that the child may also use for a projector, whose graph is made for the largest image."""
CPU_SECONDS = 4
"""CPU time that the child may use, in addition to that computed from the sizes of the files."""
WAIT_SECONDS = 60
"""Seconds to wait for the child in addition to its CPU time: it may wait for a disk or for other processes."""

_PROGRAM = os.path.join(os.path.dirname(__file__), "vetting_program.py")


@dataclass(frozen=True, slots=True)
class Subject:
    """The files that are loaded together.

    Attributes:
        model: The path of the model.
        embeds: Whether it is an embedding model or a reranker.
        projector: The path of a projector, or None.
        adapters: The paths of LoRA adapters.
    """

    model: str
    embeds: bool = False
    projector: str | None = None
    adapters: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """The absolute paths of all files that the result depends on. The last one is that of the library."""
        named = [*parts_of(self.model), *([self.projector] if self.projector else []), *self.adapters]
        spec = find_spec("llama_cpp")
        return [*map(os.path.abspath, named), (spec.origin if spec else None) or sys.executable]

    @property
    def model_alone(self) -> bool:
        """Whether there is neither a projector nor an adapter."""
        return self.projector is None and not self.adapters


def _is_installed(path: str) -> bool:
    """Return whether a file is part of an installed package. Anyone who can write there can also run code here."""
    places = (place for place in sys.path if os.path.basename(place) in ("site-packages", "dist-packages"))
    return any(path.startswith(os.path.join(os.path.abspath(place), "")) for place in places)


class Trial:
    """A child process that loads the files of a subject. It starts at once, and this process can work meanwhile."""

    def __init__(self, subject: Subject, header: gguf.GGUFMetadata) -> None:
        self.subject = subject
        self._process: subprocess.Popen[str] | None = None
        self._problem: str | None = None
        if all(map(_is_installed, subject.files[:-1])):
            return
        known = verdicts.find(subject.files)
        if known is not None:
            self._problem = known.problem
            return
        if not sys.executable or getattr(sys, "frozen", False):
            _log.info("%s is loaded without a trial load: no Python interpreter was found to run one", subject.model)
            return
        import subprocess  # imported here, because the result of most loads is already known

        self._request = _request(subject, header)
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
        # -I and -S: no code of the user runs at the start of Python. The request has the sys.path of this process.
        command = [sys.executable, "-I", "-S", _PROGRAM]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(self._request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self.close()
            _log.warning(
                "%s is loaded without a trial load, because the child process failed: %s", subject.model, error
            )

    @property
    def known(self) -> bool:
        """Whether the result is known without waiting for a child."""
        return self._process is None

    def problem(self) -> str | None:
        """Wait for the child. Return what is wrong with the files. None: they can be loaded."""
        process = self._process
        if process is None:
            return self._problem
        import subprocess

        try:
            out, err = _communicate(process, WAIT_SECONDS + self._request["seconds"])
        except subprocess.TimeoutExpired:
            self.close()
            return "its trial load did not end in time: vet=False skips the trial load"
        finally:
            self._process = None
        problem, repeatable = _meaning(process.returncode, out, err)
        if repeatable:
            shown_on = os.path.abspath(self.subject.model) if self.subject.model_alone else ""
            verdicts.remember(self.subject.files, problem, shown_on=shown_on)
        return problem

    def check(self) -> None:
        """Wait for the child. Raises ModelLoadError if the files can't be loaded."""
        problem = self.problem()
        if problem is not None:
            subject = self.subject
            extra = [f"the projector {subject.projector}"] if subject.projector else []
            extra += [f"the adapter {path}" for path in subject.adapters]
            what = f"{' and '.join(extra)} for {subject.model}" if extra else subject.model
            raise ModelLoadError(f"llama.cpp can't load {what}: {problem}")

    def close(self) -> None:
        """Kill the child if it is running. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def check_extras(header: gguf.GGUFMetadata, config: LoadConfig, projector: str | None) -> str | None:
    """Load the projector and the adapters of a model with it, in a child process.

    Args:
        header: The header of the model.
        config: The load options. `adapters` and `vet` are used, and whether `mmproj` is set.
        projector: The path of the projector, or None.

    Returns:
        The path of the projector to use. None: there is none, or it was found beside the model and can't be loaded.

    Raises:
        ModelLoadError: An adapter, or the projector that `mmproj` names, can't be loaded.
    """
    from ....catalog import gguf_checks
    from ....catalog.headers import gguf

    for path in config.adapters or ():
        gguf_checks.check_adapter(gguf.read_metadata(path), header)
    if config.vet is False:
        return projector
    while projector or config.adapters:
        trial = Trial(Subject(header.path, projector=projector, adapters=tuple(config.adapters or ())), header)
        try:
            trial.check()
        except ModelLoadError as error:
            if projector is None or config.mmproj is not None:
                raise
            _log.warning("the projector beside the model is left out: %s", error)
            projector = None
        else:
            break
        finally:
            trial.close()
    return projector


def _request(subject: Subject, header: gguf.GGUFMetadata) -> dict[str, Any]:
    """Return the request that the child reads from stdin: see `vetting_program.examine`."""
    sizes = {path: os.path.getsize(path) for path in subject.files[:-1] if os.path.exists(path)}
    size = sum(sizes.values())
    projector = sizes.get(os.path.abspath(subject.projector), 0) if subject.projector else 0
    full = size - projector <= FULL_BYTES
    return {
        "sys_path": [os.path.abspath(place) for place in sys.path],
        "path": subject.model,
        "embeds": subject.embeds,
        "projector": subject.projector,
        "adapters": subject.adapters,
        "full": full,
        "encode": projector <= FULL_PROJECTOR_BYTES,
        # A loaded vocabulary takes several times its bytes in the file. The memory of a context grows with the model.
        # Repacked weights are copies.
        "memory": MEMORY
        + 16 * header.data_start
        + size // 2
        + (size if full else 0)
        + (projector + PROJECTOR_MEMORY if projector else 0),
        "seconds": CPU_SECONDS + (size >> 26) + (header.data_start >> 21),
    }


def _communicate(process: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
    """Wait for the process to end, and return its stdout and stderr.

    Unlike Popen.communicate this does not close stdin first: the child ends when stdin is closed.
    """
    stdin, process.stdin = process.stdin, None
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.stdin = stdin
        if process.returncode is not None and stdin is not None:
            stdin.close()


def _meaning(code: int, out: str, err: str) -> tuple[str | None, bool]:
    """Interpret the end of the child.

    Args:
        code: Its exit code, or the negative signal that ended it.
        out: Its stdout.
        err: Its stderr.

    Returns:
        The problem, or None; and whether another trial load would give the same result. A problem that llama.cpp
        reports is not stored: it reports the problem in this process too.
    """
    if code == 0:
        try:
            problem = json.loads(out)["problem"]
        except (ValueError, KeyError, TypeError):
            return "its trial load gave no answer", False
        return problem, not problem
    if code == -getattr(signal, "SIGXCPU", 0):
        return "llama.cpp takes too long to load it", True
    reason = _assertion(err)
    if code < 0:
        by = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if by in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
            return f"its trial load was ended by {by}", False
        return (
            f"llama.cpp ends the process when it loads the file ({by}{f': {reason}' if reason else ''})",
            "bad_alloc" not in reason and "mem_buffer" not in reason,
        )
    return f"its trial load failed: {reason or f'exit status {code}'}", False


def _assertion(err: str) -> str:
    """Return the line of the child's stderr that says why it ended. "": there is none."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    marks = ("GGML_ASSERT", "what():", "fatal error", "Error")
    chosen: Sequence[str] = [line for line in lines if any(mark in line for mark in marks)] or lines
    return chosen[-1].rpartition("/")[2][:300] if chosen else ""
