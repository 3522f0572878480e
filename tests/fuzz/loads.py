# SPDX-License-Identifier: Apache-2.0
"""Model files with one wrong value, that are really loaded: none may end the process, hang it, or fill its memory.

    python -m tests.fuzz.loads headers --count 20000
    python -m tests.fuzz.loads projectors --count 5000
    python -m tests.fuzz.loads mlx --count 3000

A file that the library's own checks refuse goes no further. Any other is tried as the library tries it, in a process
of its own, and if that finds nothing, loaded and used in a process that has to survive all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from inference_bridge.backends.llama_cpp.files import vetting
from inference_bridge.catalog import gguf_checks
from inference_bridge.catalog.headers import gguf
from inference_bridge.errors import ModelLoadError
from tests.fuzz.gguf_parts import Parts, mutated, taken_apart
from tests.fuzz.mutate import json_changed
from tests.parts.models import mlx_tiny, tiny_gguf, tiny_vision

FOUND = Path("build/fuzz")
TIMEOUT = 5.0
"""Seconds of a processor that one file may take in the library's process."""
STANDSTILL = 120.0
"""Seconds without an answer, whatever else the machine does, that are a deadlock."""
MEMORY = 300 << 20
"""Bytes that it may add to that process in all."""

_PROGRAM = Path(__file__).with_name("loads_program.py")


class DefectError(Exception):
    """A file ended or hung the library's process, or filled its memory."""


class Runner:
    """One of the programs in `loads_program`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        path = os.pathsep.join(sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(_PROGRAM), kind]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, bufsize=0
        )
        self._line(60)

    def ask(self, request: dict[str, Any]) -> tuple[str, int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        said, memory = json.loads(self._line(60 if self.kind == "trial" else TIMEOUT * 2))
        return said, memory

    def _line(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            begun, end = self._used(), time.monotonic() + STANDSTILL
            while not selector.select(0.5):
                if self._used() - begun > seconds or time.monotonic() > end:
                    self.close()
                    raise DefectError(f"the {self.kind} process gave no answer in {seconds:.0f} seconds of a processor")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self._errors.seek(max(self._errors.seek(0, 2) - 2000, 0))
            raise DefectError(f"the {self.kind} process ended ({code}): {self._errors.read().decode(errors='replace')}")
        return line

    def _used(self) -> float:
        """Seconds of a processor: on a busy machine any file may take long."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _models(folder: Path) -> list[tuple[Parts, bool]]:
    written = [
        (tiny_gguf.write_llama(folder / "llama.gguf"), False),
        (tiny_gguf.write_sliding_window(folder / "sliding.gguf"), False),
        (tiny_gguf.write_recurrent(folder / "recurrent.gguf"), False),
        (tiny_gguf.write_embedding(folder / "embedding.gguf"), True),
    ]
    return [(taken_apart(path.read_bytes()), embeds) for path, embeds in written]


def _headers(rng: random.Random, folder: Path) -> Iterator[tuple[Path, Path | None]]:
    models = _models(folder)
    path = folder / "mutated.gguf"
    while True:
        parts, _ = rng.choice(models)
        path.write_bytes(mutated(rng, parts))
        yield path, None


def _projectors(rng: random.Random, folder: Path) -> Iterator[tuple[Path, Path | None]]:
    pairs = [tiny_vision.write_llava(folder), tiny_vision.write_gemma3(folder), tiny_vision.write_qwen(folder)]
    taken = [(model, taken_apart(projector.read_bytes())) for model, projector in pairs]
    path = folder / "mmproj-mutated.gguf"
    while True:
        model, parts = rng.choice(taken)
        path.write_bytes(mutated(rng, parts))
        yield model, path


def _load_gguf(runners: dict[str, Runner], rng: random.Random, model: Path, projector: Path | None) -> tuple[str, int]:
    """(what became of it, memory of the library's process)."""
    try:
        header = gguf.read_metadata(model)
        gguf_checks.check(header)
        if projector is not None:
            gguf_checks.check_projector(gguf.read_metadata(projector))
    except ModelLoadError:
        return "refused by the checks", 0
    subject = vetting.Subject(str(model), embeds=header.embeds, projector=str(projector) if projector else None)
    request = vetting._request(subject, header)
    problem, _ = runners["trial"].ask(request | {"sys_path": []})
    if problem:
        return "refused by the trial: " + ("ends the process" if "ends" in problem else "other"), 0
    context = rng.choice((0, 64))
    said, memory = runners["library"].ask(request | {"sys_path": [], "context": context})
    return said or "loaded", memory


def run(name: str, count: int, seed: str) -> bool:
    """Whether no file among `count` showed a defect. One that did is kept, and the run goes on."""
    rng, outcomes, defects = random.Random(f"{name} {seed}"), Counter[str](), 0
    kinds = ("mlx",) if name == "mlx" else ("trial", "library")
    runners = {kind: Runner(kind) for kind in kinds}
    begun, first, most = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        files = _mlx_directories(rng, folder) if name == "mlx" else _FILES[name](rng, folder)
        for _, (model, projector) in zip(range(count), files, strict=False):
            started = time.monotonic()
            try:
                if name == "mlx":
                    said, memory = runners["mlx"].ask({"path": str(model)})
                    said = said or "loaded"
                else:
                    said, memory = _load_gguf(runners, rng, model, projector)
                if memory:
                    first = first or memory
                    most = max(most, memory - first)
                    if memory - first > MEMORY:
                        raise DefectError(f"the process grew by {(memory - first) >> 20} MiB")
                outcomes[said] += 1
            except DefectError as defect:
                defects += 1
                _keep(name, projector or model, f"{defect}")
                for kind in kinds:
                    runners[kind].close()
                    runners[kind] = Runner(kind)
                first = 0
            if time.monotonic() - started > 2 * TIMEOUT:
                print(f"{name}: {time.monotonic() - started:.0f} s for one file", file=sys.stderr)
    for runner in runners.values():
        runner.close()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(
        f"{name}: {count:,} files in {time.monotonic() - begun:.0f} s, {defects} defects; the process grew by at most"
    )
    print(
        f"  {most >> 20} MiB, and no process took more than {children} MiB: {dict(outcomes.most_common())}", flush=True
    )
    return not defects


def _keep(name: str, path: Path, why: str) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    target = FOUND / f"{name}-{len(list(FOUND.glob(name + '-*')))}{path.suffix}"
    shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    print(f"{name}: {target}: {why}", file=sys.stderr, flush=True)


def _mlx_directories(rng: random.Random, folder: Path) -> Iterator[tuple[Path, None]]:
    """Directories of which config.json has one wrong value; now and then another of the small files."""
    written = [
        mlx_tiny.write_tiny_mlx(folder / architecture, architecture=architecture)
        for architecture in ("llama", "sliding", "mamba")
    ]
    while True:
        source = rng.choice(written)
        target = folder / "mutated"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        name = rng.choice(("config.json", "config.json", "config.json", "tokenizer_config.json"))
        value = json.loads((target / name).read_text())
        for _ in range(rng.choice((1, 1, 2))):
            value = json_changed(rng, value)
        (target / name).write_text(json.dumps(value))
        yield target, None


_FILES = {"headers": _headers, "projectors": _projectors}
COUNTS = {"headers": 20_000, "projectors": 5_000, "mlx": 3_000}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.loads", description="Load files with a wrong value.")
    parser.add_argument("names", nargs="*", choices=[*COUNTS, []], help="which files (default: all)")
    parser.add_argument("--count", type=int, help="how many (default: 20,000 headers, 5,000 projectors, 3,000 mlx)")
    parser.add_argument("--seed", default="0", help="other files for another seed (default 0)")
    given = parser.parse_args()
    results = [run(name, given.count or COUNTS[name], given.seed) for name in given.names or COUNTS]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
