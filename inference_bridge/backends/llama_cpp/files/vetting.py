# SPDX-License-Identifier: Apache-2.0
"""Files are loaded once in a child process before they are loaded in this one, which llama.cpp could end.

llama.cpp checks much of what a file says with assertions, each of which ends the process. So the first time that a
file is to be loaded, a child process loads it and evaluates a few tokens; what it found is remembered for as long as
the file and the library are the same. A large file's weights are not read: llama.cpp simulates that, in the time that
its header takes.
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
"""Up to this size a model's weights are read too, and a few tokens evaluated: less than a second on two cores."""
FULL_PROJECTOR_BYTES = 16 << 20
"""Up to this size a projector encodes an image: a large one takes seconds for it on a CPU."""

MEMORY = 384 << 20
"""Bytes that the child may take beyond what the files' sizes account for."""
PROJECTOR_MEMORY = 1 << 30
"""What it may take for a projector besides: its graph is made for the largest image."""
CPU_SECONDS = 4
"""What the child may compute, beyond what the files' sizes account for."""
PATIENCE = 60
"""Seconds to wait for the child, which may have to wait for a disk, or for other processes."""

_PROGRAM = os.path.join(os.path.dirname(__file__), "vetting_program.py")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be loaded together: paths, and whether the model makes embeddings."""

    model: str
    embeds: bool = False
    projector: str | None = None
    adapters: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """Every file that the verdict depends on, absolute paths; the library's last."""
        named = [*parts_of(self.model), *([self.projector] if self.projector else []), *self.adapters]
        spec = find_spec("llama_cpp")
        return [*map(os.path.abspath, named), (spec.origin if spec else None) or sys.executable]

    @property
    def model_alone(self) -> bool:
        return self.projector is None and not self.adapters


def _is_installed(path: str) -> bool:
    """Whether it lies among the installed packages: who can write there can run code here anyway."""
    places = (place for place in sys.path if os.path.basename(place) in ("site-packages", "dist-packages"))
    return any(path.startswith(os.path.join(os.path.abspath(place), "")) for place in places)


class Trial:
    """A child process that loads a subject's files. Begun when made, so that other work can be done beside it."""

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
            _log.info("%s is loaded without a trial: there is no Python interpreter to run one", subject.model)
            return
        import subprocess  # most loads need none

        self._request = _request(subject, header)
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
        # -I and -S: nothing of the user's runs, and sys.path is this process's, which the request has.
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
            _log.warning("%s is loaded without a trial, which can't be run: %s", subject.model, error)

    @property
    def known(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._process is None

    def problem(self) -> str | None:
        """Wait for the child; what is wrong with the files, or None."""
        process = self._process
        if process is None:
            return self._problem
        import subprocess

        try:
            # No input: that would close stdin, by which the child sees that this process has ended.
            out, err = _communicate(process, PATIENCE + self._request["seconds"])
        except subprocess.TimeoutExpired:
            self.close()
            return "a trial load of it did not end in time: vet=False loads it without one"
        finally:
            self._process = None
        problem, certain = _meaning(process.returncode, out, err)
        if certain:
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
        """End the child, if it still runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def check_extras(header: gguf.GGUFMetadata, config: LoadConfig, projector: str | None) -> str | None:
    """Have the projector and the adapters of a model tried with it; the projector to be used, or None.

    Raises ModelLoadError for one that was asked for. A projector that was found beside the model is left out.
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
        # A vocabulary takes several times its bytes, what a context takes grows with the model, and weights that are
        # repacked are copies.
        "memory": MEMORY
        + 16 * header.data_start
        + size // 2
        + (size if full else 0)
        + (projector + PROJECTOR_MEMORY if projector else 0),
        "seconds": CPU_SECONDS + (size >> 26) + (header.data_start >> 21),
    }


def _communicate(process: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
    """What the process wrote, and its end, without closing its stdin before."""
    stdin, process.stdin = process.stdin, None
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.stdin = stdin
        if process.returncode is not None and stdin is not None:
            stdin.close()


def _meaning(code: int, out: str, err: str) -> tuple[str | None, bool]:
    """(the problem, whether it would be found again) of a child that ended with `code` and wrote these."""
    if code == 0:
        try:
            return json.loads(out)["problem"], not json.loads(out)["problem"]
        except (ValueError, KeyError, TypeError):
            return "its trial load gave no answer", False
    if code == -getattr(signal, "SIGXCPU", 0):
        return "llama.cpp does not come to an end with it", True
    said = _assertion(err)
    if code < 0:
        by = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if by in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
            return f"its trial load was ended by {by}", False
        return (
            f"llama.cpp ends the process on it ({by}{f': {said}' if said else ''})",
            "bad_alloc" not in said and "mem_buffer" not in said,
        )
    return f"its trial load failed: {said or f'exit status {code}'}", False


def _assertion(err: str) -> str:
    """The line of what it wrote on stderr that says why it ended."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    marks = ("GGML_ASSERT", "what():", "fatal error", "Error")
    chosen: Sequence[str] = [line for line in lines if any(mark in line for mark in marks)] or lines
    return chosen[-1].rpartition("/")[2][:300] if chosen else ""
