# SPDX-License-Identifier: Apache-2.0
"""Compare ChatInferenceBridge with ChatOpenAI: the cost of a streamed token, and the speed of a batch.

The cost is the client's processor time on a server that answers at once. The cost of an empty chat model in
LangChain is subtracted from both. The batch runs on the demo model: ChatInferenceBridge in this process and on a
llama-server, ChatOpenAI with one question after the other on a llama-server of the same build, weights and threads.
The engine limits what a batch can gain, so its share of the time is reported too.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from benchmarks.baselines.instant_server import instant_server
from benchmarks.baselines.server import server
from benchmarks.engine import PLACES, demo_model
from benchmarks.report import IdleMachine, Line, compare, facts, parser, report, take_turns
from inference_bridge.engine.hardware import physical_cores
from langchain_inference_bridge import ChatInferenceBridge

ASKED = "Say something."
NO_KEY = SecretStr("none")


class Empty(BaseChatModel):
    """Answers with the same word again and again."""

    tokens: int

    @property
    def _llm_type(self) -> str:
        return "empty"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        for _number in range(self.tokens):
            yield ChatGenerationChunk(message=AIMessageChunk(content=" word"))

    async def _astream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for _number in range(self.tokens):
            yield ChatGenerationChunk(message=AIMessageChunk(content=" word"))


def streamed(chat: BaseChatModel, tokens: int) -> Callable[[], float]:
    """Return a measurement of one answer: microseconds of this process's time per token."""

    def measure() -> float:
        begun = time.process_time()
        read = sum(1 for chunk in chat.stream(ASKED) if chunk.content)
        return checked(time.process_time() - begun, read, tokens)

    return measure


def astreamed(chat: BaseChatModel, tokens: int, runner: asyncio.Runner) -> Callable[[], float]:
    async def read() -> int:
        return len([chunk async for chunk in chat.astream(ASKED) if chunk.content])

    def measure() -> float:
        begun = time.process_time()
        count = runner.run(read())
        return checked(time.process_time() - begun, count, tokens)

    return measure


def checked(seconds: float, read: int, tokens: int) -> float:
    if read != tokens:
        raise RuntimeError(f"{read} tokens came, not {tokens}")
    return seconds * 1e6 / tokens


def costs(rounds: int, tokens: int) -> dict[str, list[float]]:
    """Return the costs of each chat model, streaming and streaming asynchronously."""
    with instant_server(tokens) as address, asyncio.Runner() as runner:
        rivals: dict[str, BaseChatModel] = {
            "empty": Empty(tokens=tokens),
            "bridge": ChatInferenceBridge(model=address),
            "ChatOpenAI": ChatOpenAI(base_url=address + "/v1", api_key=NO_KEY, model="instant", max_retries=0),
        }
        measures = {f"stream: {name}": streamed(chat, tokens) for name, chat in rivals.items()}
        measures |= {f"astream: {name}": astreamed(chat, tokens, runner) for name, chat in rivals.items()}
        return take_turns(measures, rounds)


# ---------------------------------------------------------------- a batch


def rate(answers: Callable[[list[Any]], list[AIMessage]]) -> Callable[[], float]:
    """Return a measurement of tokens per second, over one question for each place. Rounds share no prefix."""
    numbers = itertools.count()

    def measure() -> float:
        number = next(numbers)
        questions: list[Any] = [f"{number}. Tell me a long story about the old town of {place}." for place in PLACES]
        begun = time.perf_counter()
        messages = answers(questions)
        return sum(map(generated, messages)) / (time.perf_counter() - begun)

    return measure


def generated(message: AIMessage) -> int:
    return message.usage_metadata["output_tokens"] if message.usage_metadata is not None else 0


def rates(rounds: int, tokens: int, threads: int, idle: IdleMachine) -> dict[str, list[float]]:
    loading: dict[str, Any] = {"context_length": 512, "parallel_slots": len(PLACES), "threads": threads}
    asking: dict[str, Any] = {"temperature": 0, "max_tokens": tokens}
    path = demo_model()
    with (
        ChatInferenceBridge(model=f"llama_cpp:{path}", **loading, **asking) as in_process,
        ChatInferenceBridge(model=f"llama_server:{path}", **loading, **asking) as managed,
        server(path, slots=len(PLACES), length=512, threads=threads) as client,
    ):
        chat_openai = ChatOpenAI(
            base_url="http://llama-server/v1", http_client=client, api_key=NO_KEY, model="demo", max_retries=0, **asking
        )
        return take_turns(
            {
                "llama_cpp": rate(in_process.batch),
                "llama_server": rate(managed.batch),
                "ChatOpenAI": rate(lambda questions: [chat_openai.invoke(question) for question in questions]),
                "ChatOpenAI, batch": rate(chat_openai.batch),
            },
            rounds,
            idle,
        )


def decoding(tokens: int, threads: int) -> float:
    """Return the part of this process's processor time, from 0 to 1, that llama.cpp takes during a batch.

    A client can't reduce this part.
    """
    import llama_cpp

    decode, spent = llama_cpp.llama_decode, 0.0

    def timed(context: Any, batch: Any) -> int:
        nonlocal spent
        begun = time.process_time()
        code: int = decode(context, batch)
        spent += time.process_time() - begun
        return code

    llama_cpp.llama_decode = timed
    loading: dict[str, Any] = {"context_length": 512, "parallel_slots": len(PLACES), "threads": threads}
    try:
        with ChatInferenceBridge(
            model=f"llama_cpp:{demo_model()}", **loading, temperature=0, max_tokens=tokens
        ) as chat:
            chat.load()
            begun, spent = time.process_time(), 0.0
            rate(chat.batch)()
            return spent / (time.process_time() - begun)
    finally:
        llama_cpp.llama_decode = decode


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=10, help="runs of each, half as many of batches (default 10)")
    options.add_argument("--tokens", type=int, default=2000, help="tokens of each streamed answer (default 2000)")
    options.add_argument("--threads", type=int, default=0, help="threads of the engines (default: physical cores)")
    options.add_argument("--only", choices=("stream", "batch"), help="run only this part")
    arguments = options.parse_args()
    idle = IdleMachine(arguments.idle_wait)
    rounds = 4 if arguments.quick else arguments.rounds
    lines = []

    if arguments.only != "batch":
        spent = costs(rounds, arguments.tokens)
        for way in ("stream", "astream"):
            # The minimum of all rounds: other programs can only add time, and add more than the rivals differ by.
            empty = min(spent[f"{way}: empty"])
            bridge, rival = (min(spent[f"{way}: {name}"]) - empty for name in ("bridge", "ChatOpenAI"))
            work = f"ChatOpenAI, {way}: a token beyond an empty model's {empty:.1f} µs"
            lines.append(Line(work, "bridge", "µs", rival, bridge, rival / bridge, reach=4))

    if arguments.only != "stream":
        threads = arguments.threads or physical_cores()
        speeds = rates(max(rounds // 2, 2), 64, threads, idle)
        serial = speeds.pop("ChatOpenAI")
        for name, runs in speeds.items():
            work = f"batch of {len(PLACES)}: {name.partition(',')[0]}"
            reach = 2 if name.startswith("llama") else 0
            lines.append(compare(work, "ChatOpenAI, one after another", reach, "tok/s", runs, serial))
        share = 100 * decoding(64, threads)
        work = f"batch of {len(PLACES)}: llama_cpp, within llama_decode"
        lines.append(Line(work, "its whole time", "%", share, 100, share / 100))

    machine = facts("inference-bridge", "langchain-core", "langchain-openai", "xllamacpp")
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
