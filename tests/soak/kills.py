# SPDX-License-Identifier: Apache-2.0
"""Programs with a managed server, killed at any moment of their start and work: no server outlives them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid

import psutil

_MARK = "INFERENCE_BRIDGE_SOAK"
_PROGRAM = """
import sys
import inference_bridge as ib
model = ib.load_model(f"llama_server:{sys.argv[1]}", context_length=256, parallel_slots=1)
print("loaded", flush=True)
while True:
    model.generate("Once upon a time", max_tokens=16).text()
    print("answered", flush=True)
"""
_TIMEOUT = 15.0
"""Seconds that a server may take to see that its program is gone."""


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def run(model: str, count: int) -> int:
    """Print how many programs were killed when, and how many processes were left. Returns the latter."""
    orphans, with_server, rng = 0, 0, random.Random(0)
    for _ in range(count):
        mark = uuid.uuid4().hex
        command = [sys.executable, "-c", _PROGRAM, model]
        program = subprocess.Popen(
            command, env={**os.environ, _MARK: mark}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert program.stdout is not None
        if rng.random() < 0.8:  # else in the midst of the imports
            program.stdout.readline()
            if rng.random() < 0.5:
                program.stdout.readline()
        time.sleep(rng.uniform(0, 1.0))
        with_server += len(_marked(mark)) > 1
        program.send_signal(rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        program.wait()
        program.stdout.close()
        end = time.monotonic() + _TIMEOUT
        while (left := _marked(mark)) and time.monotonic() < end:
            time.sleep(0.1)
        orphans += len(left)
        for process in left:
            process.kill()
    print(f"{count} programs killed, {with_server} of them with a server; {orphans} processes left")
    return orphans
