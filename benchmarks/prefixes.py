# SPDX-License-Identifier: Apache-2.0
"""Measure the prefix cache on disk: time to first token after a long prompt that another process evaluated.

Each run is a separate process, which asks a new question about a document of `--tokens` tokens. The time is from the
call to the first token, without loading the model; and from there to the end of the process. The rival is
llama-cpp-python's own cache on disk, `LlamaDiskCache`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.engine import demo_model
from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns

DOCUMENT = """
import json, sys, time
model_path, tokens, size, directory = json.loads(sys.argv[1])
question = f"\\nQuestion {time.time_ns()}: what does the fox do?"
document = "".join(f"{number}. The quick brown fox jumps over the lazy dog.\\n" for number in range(tokens))
"""

BRIDGE = """
from inference_bridge import load_model
with load_model(f"llama_cpp:{model_path}", context_length=8192, parallel_slots=1, prefix_cache_size=size) as model:
    text = document[: int(len(document) * tokens / model.count_tokens(document))] + question
    begun = time.perf_counter()
    stream = model.generate(text, max_tokens=4)
    next(stream)
    first = time.perf_counter()
    list(stream)
    known = stream.metrics.cached_tokens
"""

LLAMA = """
import contextlib, io
import llama_cpp
from llama_cpp.llama_cache import LlamaDiskCache
with contextlib.redirect_stderr(io.StringIO()):
    model = llama_cpp.Llama(model_path, n_ctx=8192, n_threads=2, n_threads_batch=2, verbose=False)
    model.set_cache(LlamaDiskCache(directory))
    text = document[: int(len(document) * tokens / len(model.tokenize(document.encode())))] + question
    begun = time.perf_counter()
    stream = model.create_completion(text, max_tokens=4, temperature=0, stream=True)
    next(stream)
    first = time.perf_counter()
    list(stream)
    known = tokens
"""

SHOW = """
print(json.dumps((first - begun, time.perf_counter() - first, known)))
"""


def measured(code: str, tokens: int, size: int, directory: str) -> Callable[[], tuple[float, float, int]]:
    """Return a measurement in a separate process: seconds to the first token, seconds to the end, and cached tokens."""

    def measure() -> tuple[float, float, int]:
        asked = json.dumps([demo_model(), tokens, size, directory])
        command = [sys.executable, "-c", DOCUMENT + code + SHOW, asked]
        done = subprocess.run(
            command, env=os.environ | {"XDG_CACHE_HOME": directory}, capture_output=True, text=True, check=True
        )
        first, rest, known = json.loads(done.stdout)
        return first, rest, known

    return measure


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=4000, help="tokens of the document (default 4,000)")
    options.add_argument("--rounds", type=int, default=5, help="runs of each (default 5, at least 2)")
    arguments = options.parse_args()
    rounds, idle = 2 if arguments.quick else arguments.rounds, IdleMachine(arguments.idle_wait)
    with tempfile.TemporaryDirectory() as directory:
        cold, warm, llama = "evaluated", "known to another process", "LlamaDiskCache"
        rivals = {
            cold: measured(BRIDGE, arguments.tokens, 0, directory),
            warm: measured(BRIDGE, arguments.tokens, 2 << 30, directory),
            llama: measured(LLAMA, arguments.tokens, 0, directory),
        }
        runs = take_turns(rivals, rounds, idle)
    least = min(known for _, _, known in runs[warm])
    if least < arguments.tokens * 0.9:
        sys.exit(f"only {least} of {arguments.tokens} tokens were known")
    first = {name: [run[0] for run in one] for name, one in runs.items()}
    rest = {name: [run[1] for run in one] for name, one in runs.items()}
    work = f"first token after {arguments.tokens} tokens, {warm}"
    lines = [
        compare(work, cold, 0.1, "s", first[warm], first[cold], at_most=True),
        compare(work, llama, 0, "s", first[warm], first[llama], at_most=True),
        compare(
            "4 tokens and the end of the process", "without the cache", 0, "s", rest[warm], rest[cold], differs=True
        ),
    ]
    machine = facts("inference-bridge", "llama_cpp_python")
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
