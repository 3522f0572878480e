# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz NAME --seconds 60`: targets one by one, for as long as you like."""

from __future__ import annotations

import argparse
import hashlib
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import TARGETS, Target

FOUND = Path("build/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Try parsers on inputs nobody meant.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the targets; without any they are listed")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target (default 10)")
    parser.add_argument("--inputs", type=int, help="for each target this many, however long it takes")
    parser.add_argument("--seed", default="0", help="other inputs for another seed (default 0)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds that one input may take (default 5)")
    parser.add_argument("--memory", type=int, default=4096, help="MiB that all of it may take, on Linux (default 4096)")
    parser.add_argument("--input", type=Path, help="try this file alone, an input that was found before")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(TARGETS)):
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if not given.names:
        for name, target in TARGETS.items():
            print(f"{name:26} {target.about}")
        return 0
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (given.memory << 20, given.memory << 20))
    signal.signal(signal.SIGALRM, _too_slow)
    failed = False
    for name in given.names:
        target = TARGETS[name]
        if given.input is not None:
            failed |= not _passes(target, given.input.read_bytes(), given.timeout)
        else:
            failed |= not _run(target, given.seed, given.seconds, given.timeout, given.inputs)
    return int(failed)


def _run(target: Target, seed: str, seconds: float, timeout: float, inputs: int | None = None) -> bool:
    """Whether no input was found that breaks a promise. One that does is written to a file."""
    end = time.monotonic() + seconds
    number = 0
    for number, data in enumerate(target.inputs(seed), 1):
        if not _passes(target, data, timeout):
            FOUND.mkdir(parents=True, exist_ok=True)
            path = FOUND / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"{target.name}: input {number:,} breaks a promise: it is in {path}")
            return False
        if number >= inputs if inputs is not None else time.monotonic() > end:
            break
    print(f"{target.name}: {number:,} inputs, nothing found")
    return True


def _passes(target: Target, data: bytes, timeout: float) -> bool:
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        target.check(data)
    except Exception:
        signal.setitimer(signal.ITIMER_REAL, 0)
        traceback.print_exc()
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("the input takes too long")


if __name__ == "__main__":
    sys.exit(main())
