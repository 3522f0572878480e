# SPDX-License-Identifier: Apache-2.0
"""A rival in a separate process, which is controlled through a pipe.

llama.cpp is usually built with libgomp, which gives each calling thread a team of threads. Two teams in one process
have more threads than cores, and then libgomp's threads no longer wait actively: both teams decode at about 0.6 of
their speed, even one after the other. So each rival has its own process, and while one works the others sleep.

Run it as a program with the arguments KIND MODEL OPTIONS. Each line of its input is a request in JSON, and each line
of its output is an answer in JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference_bridge import TokenStream

Answer = Callable[[dict[str, Any]], Any]


class Rival:
    """`kind` is one of KINDS. Close it, or end the process."""

    def __init__(self, kind: str, path: str, **options: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.baselines.rival", kind, path, json.dumps(options)]
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, prompts: Sequence[str], **request: Any) -> Any:
        """Return the rival's answer to a request; see the functions below."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"prompts": list(prompts), **request}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a rival ended with code {self._process.wait(10)}; see its messages above")
        return json.loads(line)

    def tokens(self, count: int) -> Callable[[list[str]], int]:
        """Return a function that generates up to `count` tokens after each prompt, and returns their number."""
        return lambda prompts: int(self.ask(prompts, tokens=count))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def engine(path: str, **options: Any) -> Answer:
    """The llama_cpp backend: one stream per prompt, each read in its own thread; or `classify`, or `first_token`."""
    from inference_bridge import LoadConfig
    from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend

    model = LlamaCppBackend().load_model(path, LoadConfig(**options))
    pool = ThreadPoolExecutor(64)

    def first_token(*prompts: str) -> float:
        """Return seconds to the first token of the last prompt while the streams of the others are decoded."""
        streams = [model.generate(prompt, max_tokens=-1) for prompt in prompts[:-1]]
        begun = [threading.Event() for _ in streams]

        def read(stream: TokenStream, event: threading.Event) -> None:
            for _ in stream:
                event.set()

        reading = [pool.submit(read, stream, event) for stream, event in zip(streams, begun, strict=True)]
        for event in begun:
            event.wait()
        asked = time.perf_counter()
        next(iter(model.generate(prompts[-1], max_tokens=1)))
        seconds = time.perf_counter() - asked
        for stream in streams:
            stream.close()
        for one in reading:
            one.result()
        return seconds

    def answer(request: dict[str, Any]) -> Any:
        prompts = request["prompts"]
        if request.get("first_token"):
            return first_token(*prompts)
        if "tokens" not in request:
            model.classify(prompts)
            return None

        def read(prompt: str) -> int:
            return sum(1 for _ in model.generate(prompt, max_tokens=request["tokens"]))

        return read(prompts[0]) if len(prompts) == 1 else sum(pool.map(read, prompts))

    return answer


def bare(path: str, **options: Any) -> Answer:
    """The C interface in a loop."""
    from benchmarks.baselines.bare import BareLoop

    loop = BareLoop(path, **options)
    return lambda request: sum(map(len, loop.generate(request["prompts"], request["tokens"])[0]))


def llama(path: str, **options: Any) -> Answer:
    """llama_cpp.Llama, one prompt after the other. `scratch` clears its cache before each; `tokenize` returns ids."""
    from llama_cpp import Llama

    model: Any = Llama(path, verbose=False, **options)

    def answer(request: dict[str, Any]) -> Any:
        if request.get("tokenize"):
            return [model.tokenize(prompt.encode()) for prompt in request["prompts"]]
        made = 0
        for prompt in request["prompts"]:
            if request.get("scratch"):
                model.reset()
            chunks = model(prompt, max_tokens=request["tokens"], temperature=0.0, stream=True)
            made += sum(1 for chunk in chunks if chunk["choices"][0]["finish_reason"] is None)  # the last has no token
        return made

    return answer


KINDS: dict[str, Callable[..., Answer]] = {"engine": engine, "bare": bare, "llama": llama}


def main() -> None:
    kind, path, options = sys.argv[1:]
    answer = KINDS[kind](path, **json.loads(options))
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
