# SPDX-License-Identifier: Apache-2.0
"""The exit of a process that uses the llama_cpp backend, and forked children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ...parts.models.tiny_gguf import write_embedding

LOAD = """
    import os, sys, threading, time
    from inference_bridge import LoadConfig, ModelClosedError
    from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
    model = LlamaCppBackend().load_model(sys.argv[1], LoadConfig(context_length=512))
    stream = model.generate("Count: 1, 2, 3,", max_tokens=-1)
    next(stream)
"""


def start(path: Path, code: str) -> subprocess.Popen[str]:
    program = textwrap.dedent(LOAD) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(path: Path, code: str) -> tuple[int, str, str]:
    process = start(path, code)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("print(1)", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
        ("os.kill(os.getpid(), 2); time.sleep(10)", -signal.SIGINT, "KeyboardInterrupt"),
        ("thread = threading.Thread(target=lambda: [next(stream) for _ in range(5)]); thread.start()", 0, ""),
        ("daemon = threading.Thread(target=list, args=(stream,), daemon=True); daemon.start()", 0, ""),
        ("del stream; del model", 0, ""),
        ("del model", 0, ""),
        ("model.close()", 0, ""),
    ],
)
def test_a_program_that_just_ends(code: str, status: int, last: str, demo_model_path: Path) -> None:
    returned, _, err = run(demo_model_path, code)
    assert (returned, err.strip().splitlines()[-1:] or [""]) == (status, [last]), err


def test_ctrl_c_while_it_streams(demo_model_path: Path) -> None:
    process = start(demo_model_path, "print('ready', flush=True)\nfor _ in stream: pass\nfor _ in iter(int, 1): pass")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert err.strip().endswith("KeyboardInterrupt")


def test_ctrl_c_while_it_loads(demo_model_path: Path) -> None:
    """Whenever it comes: in a callback of llama.cpp's into Python, where it has one, an interrupt would be lost."""
    code = """
    import faulthandler, os, signal, sys, threading, time
    from inference_bridge import LoadConfig
    from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
    import inference_bridge.backends.llama_cpp.model  # an import that is interrupted is another matter
    faulthandler.dump_traceback_later(30, exit=True)
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                LlamaCppBackend().load_model(sys.argv[1], LoadConfig(context_length=8192)).close()
        except KeyboardInterrupt:
            for thread in threading.enumerate():  # one that was being closed may still be at it
                if thread.name.startswith("inference-bridge"):
                    while thread.ident is None:  # it was being started
                        time.sleep(0.001)
                    thread.join(20)
            timer.join()
            print(threading.active_count())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(demo_model_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n" * 7, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_after_a_fork_the_child_is_refused_and_the_parent_goes_on(demo_model_path: Path) -> None:
    code = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of any fork beside threads
    def refused(call):
        try:
            call()
        except ModelClosedError:
            return 1
        return 0

    child = os.fork()
    if child == 0:
        calls = [
            lambda: next(stream),
            lambda: model.generate("Hello"),
            lambda: model.count_tokens("Hello"),
            lambda: model.batch_generate(["Hello"]),
        ]
        count = sum(refused(call) for call in calls)
        stream.close()
        model.close()
        sys.exit(40 + count)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
    print(len([next(stream) for _ in range(5)]), model.generate("The capital of France is", max_tokens=1).text())
    """
    status, out, err = run(demo_model_path, code)
    assert (status, out, err) == (0, "44\n5  Paris\n", "")


def test_the_engine_is_imported_when_a_model_is_loaded() -> None:
    code = (
        "import sys; from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend as B;"
        "print(B().availability().ok, 'llama_cpp' in sys.modules, 'numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert out.stdout == "True False False\n"


def test_models_share_a_thread_that_ends_with_the_last(demo_model_path: Path, tmp_path: Path) -> None:
    """Two thread pools in one process slow each other down. One of the models may be an embedding model."""
    other = write_embedding(tmp_path / "bert.gguf")
    code = f"""
        def threads():
            return sorted(each.name for each in threading.enumerate() if each.name.startswith("inference-bridge"))
        second = LlamaCppBackend().load_model(sys.argv[1], LoadConfig(context_length=512))
        embeds = LlamaCppBackend().load_model({str(other)!r}, LoadConfig())
        print(threads())
        vectors = embeds.embed(["It goes on."])
        print(len(second.generate("One, two,", max_tokens=3).result().tokens), len(vectors), next(stream).text != "")
        model.close()
        embeds.close()
        print(second.generate("One, two,", max_tokens=3).result().finish_reason, threads())
        second.close()
        print(threads())
    """
    status, out, err = run(demo_model_path, code)
    assert status == 0, err
    worker = "['inference-bridge-llama']"
    assert out.splitlines() == [worker, "3 1 True", f"length {worker}", "[]"]
