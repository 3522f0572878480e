# SPDX-License-Identifier: Apache-2.0
"""A correct model, and variants with one fault each, which the contract suite must find.

The model is the Markov chain of the example, which here also gives log probabilities, scores
labels, ends its text by itself and keeps statistics.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from examples.markov_backend.inference_bridge_markov.chain import Chain
from inference_bridge import (
    ClassifyResult,
    ContextLengthExceededError,
    GenerateConfig,
    GenerateStats,
    GenerationError,
    ModelClosedError,
    ModelInfo,
    Request,
    TextModel,
    Token,
    TopLogprob,
    UnsupportedError,
)
from inference_bridge.authoring import strings
from inference_bridge.chat.assembler import TextAssembler
from inference_bridge.stats import StatsRecorder
from inference_bridge.streams import AsyncTokenStream, TokenStream

RHYMES = Path(__file__).parents[3] / "examples" / "markov_backend" / "rhymes.txt"
END = 0
TEXT = RHYMES.read_bytes() + b"user: What is the capital of France?\nassistant: It is Paris.\0" * 2
CHAIN = Chain(TEXT)
SMOOTH = 0.01
"""Added to each byte's count, so that every byte has a probability."""


class Sound(TextModel):
    """Keeps the contract."""

    model_type = "markov"
    backend = "sound"
    parallel = 4
    info = ModelInfo("markov", vocab_size=256, context_length=600)
    capabilities = frozenset({"chat", "token_ids", "logits", "logprobs", "stats"})
    options = frozenset({"temperature", "top_k", "seed", "stop", "stop_tokens"})

    def __init__(self) -> None:
        self._recorder = StatsRecorder()

    def close(self) -> None: ...

    def stats(self) -> GenerateStats:
        return self._recorder.stats()

    def count_tokens(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        self._check_open()
        return len(text.encode())

    def _end(self, request: Request) -> None:
        super()._end(request)
        self._recorder.record(request.metrics, request.finish_reason)

    # ------------------------------------------------ generating, in the steps that are broken below

    def prompt(self, request: Request) -> bytes:
        if request.kind == "generate":
            return request.prompt.encode()
        return ("".join(f"{turn.role}: {turn.text}\n" for turn in request.messages) + "assistant:").encode()

    def check(self, text: bytes) -> bytes:
        if len(text) > self.info.context_length:
            raise ContextLengthExceededError(len(text), self.info.context_length)
        return text

    def chance(self, config: GenerateConfig) -> random.Random:
        return random.Random(config.seed)

    def output(self, config: GenerateConfig) -> Any:
        return TextAssembler(config.stop or ())

    def numbers(self, text: bytes) -> list[float]:
        """Log probabilities of the 256 bytes."""
        counts = CHAIN.counts(text)
        total = sum(counts.values()) + 256 * SMOOTH
        return [math.log((counts.get(byte, 0) + SMOOTH) / total) for byte in range(256)]

    def choose(self, numbers: list[float], config: GenerateConfig, chance: random.Random) -> int:
        best = sorted(range(256), key=lambda byte: (-numbers[byte], byte))
        if not config.temperature:
            return best[0]
        best = best[: config.top_k or None]
        return chance.choices(best, [math.exp(numbers[byte] / config.temperature) for byte in best])[0]

    def measure(self, request: Request, **fields: float) -> None:
        request.measure(**fields)

    def ending(self, byte: int) -> list[Token]:
        """The tokens that are yielded for an end or stop token."""
        return []

    def _run(self, request: Request) -> Iterator[Token]:
        config = request.config
        text = self.check(self.prompt(request))
        self.measure(request, prompt_tokens=len(text), cached_tokens=0)
        chance, output = self.chance(config), self.output(config)
        room = self.info.context_length - len(text) + 1
        limit = room if config.max_tokens == -1 else min(config.max_tokens or 256, room)
        for count in range(limit):
            numbers = self.numbers(text)
            byte = self.choose(numbers, config, chance)
            text += bytes([byte])
            if byte == END or byte in (config.stop_tokens or ()):
                yield from output.finish()
                yield from self.ending(byte)
                self.measure(request, generated_tokens=count + 1)
                return
            yield from output.push(bytes([byte]), byte, *self.logprobs(numbers, byte, config.logprobs or 0))
            if output.stopped:
                return
        request.finish_reason = "length"
        yield from output.finish()

    def logprobs(self, numbers: list[float], byte: int, count: int) -> tuple[Any, ...]:
        if not count:
            return ()
        best = sorted(range(256), key=lambda other: (-numbers[other], other))[:count]
        return numbers[byte], tuple(TopLogprob(chr(other), other, numbers[other]) for other in best)

    # ------------------------------------------------ classifying

    def classify(self, prompts: Any, config: Any = None, *, labels: Any = None, **options: Any) -> list[ClassifyResult]:
        asked = self._config(config, options, logits=True)
        for name in asked.set_fields():
            if name not in ("return_logits", "logprobs", "timeout", "max_tokens"):
                raise UnsupportedError(f"{name} in classify", self._name)
        if labels is not None and not strings(labels, "labels"):
            raise ValueError("labels is empty")
        return [self.classified(prompt.encode(), asked, labels) for prompt in strings(prompts, "prompts")]

    def classified(self, text: bytes, asked: GenerateConfig, labels: Sequence[str] | None) -> ClassifyResult:
        numbers = self.numbers(text)
        byte = max(range(256), key=numbers.__getitem__)
        token = Token(
            bytes([byte]).decode("utf-8", "replace"), byte, *self.logprobs(numbers, byte, asked.logprobs or 0)
        )
        logits = numbers if asked.return_logits else None
        if labels is None:
            return ClassifyResult(token, logits)
        scores = self.scores({label: math.exp(self.follows(text, label.encode())) for label in labels})
        return ClassifyResult(token, logits, max(scores, key=lambda label: scores[label]), scores)

    def follows(self, text: bytes, label: bytes) -> float:
        return sum(self.numbers(text + label[:end])[byte] for end, byte in enumerate(label))

    def scores(self, weights: dict[str, float]) -> dict[str, float]:
        total = sum(weights.values())
        return {label: weight / total for label, weight in weights.items()}


# ---------------------------------------------------------------- text


class _Bare:
    """One Token a byte, and no more ado."""

    stopped = False

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = stops
        self.text = ""

    def push(self, piece: bytes, *about: Any) -> list[Token]:
        text = piece.decode("utf-8", "replace")
        self.text += text
        self.stopped = self.stopped or any(stop in self.text for stop in self.stops)
        return [Token(text, *about)]

    def finish(self) -> list[Token]:
        return []


class SplitsCharacters(Sound):
    def output(self, config: GenerateConfig) -> Any:
        return TextAssembler(config.stop) if config.stop else _Bare()


class LeaksTheStopString(Sound):
    def output(self, config: GenerateConfig) -> Any:
        return _Bare(config.stop or ())


class LeaksPartOfAStopString(Sound):
    """Takes back what the last token held of the stop string, and no more."""

    def output(self, config: GenerateConfig) -> Any:
        class Late(_Bare):
            def push(self, piece: bytes, *about: Any) -> list[Token]:
                tokens = super().push(piece, *about)
                return [replace(token, text="") for token in tokens] if self.stopped else tokens

        return Late(config.stop) if config.stop else TextAssembler()


class HoldsBackForEver(Sound):
    """Text that might have begun a stop string, but did not, is lost at the end."""

    def output(self, config: GenerateConfig) -> Any:
        class Lossy(TextAssembler):
            def finish(self) -> list[Token]:
                return []

        return Lossy(config.stop or ())


class YieldsTheEnd(Sound):
    def ending(self, byte: int) -> list[Token]:
        return [Token("</s>", byte)]


class ShowsThinkTags(Sound):
    def _run(self, request: Request) -> Iterator[Token]:
        if request.kind == "chat":
            yield Token("<think>", 1)
        yield from super()._run(request)


# ---------------------------------------------------------------- streams


class LosesATokenOfANeighbour(Sound):
    """When an operation is cancelled, another operation loses its next token."""

    cancelled = 0

    def _run(self, request: Request) -> Iterator[Token]:
        request.on_cancel(self.note)
        seen = self.cancelled
        for token in super()._run(request):
            if self.cancelled != seen:
                seen = self.cancelled
                continue
            yield token

    def note(self) -> None:
        self.cancelled += 1


class StartsEarly(Sound):
    def generate(self, *args: Any, **options: Any) -> TokenStream:
        stream = super().generate(*args, **options)
        stream._begin()
        stream._tokens = self._run(stream._request)
        return stream


class _Streams(Sound):
    Stream: type[TokenStream]

    def generate(self, prompt: str, config: Any = None, **options: Any) -> TokenStream:
        return self.Stream(self, self._generation(prompt, config, options))


class CanBeReadTwice(_Streams):
    class Stream(TokenStream):
        def __iter__(self) -> Any:
            return iter(self._request.result().tokens) if self._done else self


class CloseDoesNothing(_Streams):
    class Stream(TokenStream):
        def close(self) -> None:
            pass


class ErrorsWithoutPartial(_Streams):
    class Stream(TokenStream):
        def __next__(self) -> Token:
            try:
                return super().__next__()
            except GenerationError as error:
                error.partial = None
                raise


class PartialOfNothing(_Streams):
    class Stream(TokenStream):
        def __next__(self) -> Token:
            try:
                return super().__next__()
            except GenerationError as error:
                error.partial = replace(self._request.result(), tokens=())
                raise


class KeepsASlotForEver(Sound):
    """A slot comes free only where the operation came to its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Semaphore(self.parallel)

    def _run(self, request: Request) -> Iterator[Token]:
        for _ in range(40):
            if self.free.acquire(timeout=0.02):
                break
            if request.cancelled:
                return
        else:
            raise GenerationError("no slot comes free")  # a real model would never stop waiting
        yield from super()._run(request)
        self.free.release()


class FailsAfterACancelledOne(Sound):
    """A cancelled operation breaks the model."""

    broken = False

    def _run(self, request: Request) -> Iterator[Token]:
        if self.broken:
            raise GenerationError("the engine is broken")
        yield from super()._run(request)

    def _end(self, request: Request) -> None:
        super()._end(request)
        self.broken = self.broken or request.finish_reason == "cancelled"


class FailsBesideOthers(Sound):
    """Runs one operation at a time. Concurrent ones get an error."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = threading.Lock()

    def _run(self, request: Request) -> Iterator[Token]:
        if not self.busy.acquire(blocking=False):
            raise GenerationError("another operation runs")
        try:
            for token in super()._run(request):
                time.sleep(0.001)  # so that others come meanwhile
                yield token
        finally:
            self.busy.release()


class WaitsForTheConsumer(Sound):
    """One operation at a time, until its consumer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = threading.Lock()

    def _run(self, request: Request) -> Iterator[Token]:
        if not self.turn.acquire(timeout=0.1):
            raise GenerationError("another one's stream is read first")
        try:
            yield from super()._run(request)
        finally:
            self.turn.release()


class LastComeFirstServed(Sound):
    parallel = 2

    def __init__(self) -> None:
        super().__init__()
        self.change = threading.Condition()
        self.running = 0
        self.full = False
        self.longest = 0
        self.waiting: list[Request] = []

    def _run(self, request: Request) -> Iterator[Token]:
        with self.change:
            self.waiting.append(request)
            self.longest = max(self.longest, len(self.waiting))
            while not request.cancelled and not self._is_next(request):
                self.change.wait(0.01)
            self.waiting.remove(request)
            self.running += 1
            self.full = self.full or self.running == self.parallel
        try:
            yield from super()._run(request)
        finally:
            with self.change:
                self.running -= 1
                self.change.notify_all()

    def _is_next(self, request: Request) -> bool:
        if self.full and self.longest < 4:  # the queue of the test is not complete: threads start when they like
            return False
        return self.running < self.parallel and self.waiting[-1] is request


class AsynchronousIgnoresStop(Sound):
    def _arun(self, request: Request) -> AsyncIterator[Token]:
        request.config = replace(request.config, stop=None)
        return super()._arun(request)


# ---------------------------------------------------------------- results


class SwapsMetrics(Sound):
    """Counts the prompt of the operation that began last."""

    last: Request | None = None

    def _begin(self, request: Request) -> None:
        super()._begin(request)
        self.last = request

    def _run(self, request: Request) -> Iterator[Token]:
        tokens = super()._run(request)
        yield next(tokens)
        assert self.last is not None
        self.last.measure(prompt_tokens=request.metrics.prompt_tokens)
        yield from tokens


class SwapsFinishReasons(Sound):
    ended: Any = None

    def _end(self, request: Request) -> None:
        request.finish_reason, self.ended = self.ended or request.finish_reason, request.finish_reason
        super()._end(request)


class CountsOneTooMany(Sound):
    def _end(self, request: Request) -> None:
        request.measure(generated_tokens=request.metrics.generated_tokens + 1)
        super()._end(request)


class CachesMoreThanThereIs(Sound):
    def _end(self, request: Request) -> None:
        request.measure(cached_tokens=9999)
        super()._end(request)


class AlwaysSaysStop(Sound):
    def _end(self, request: Request) -> None:
        request.finish_reason = "stop"
        super()._end(request)


class ForgetsFailuresInStats(Sound):
    def _end(self, request: Request) -> None:
        if request.finish_reason == "cancelled":
            TextModel._end(self, request)
        else:
            super()._end(request)


# ---------------------------------------------------------------- options


class IgnoresTopK(Sound):
    def choose(self, numbers: list[float], config: GenerateConfig, chance: random.Random) -> int:
        return super().choose(numbers, replace(config, top_k=None), chance)


class DropsWhatItLacks(Sound):
    def _config(self, config: Any, options: Any, **how: Any) -> GenerateConfig:
        kept = {name: value for name, value in options.items() if name not in ("top_p", "min_p")}
        return super()._config(config, kept, **how)


class TakesAnyName(Sound):
    def _config(self, config: Any, options: Any, **how: Any) -> GenerateConfig:
        known = set(GenerateConfig.__dataclass_fields__)
        return super()._config(config, {k: v for k, v in options.items() if k in known}, **how)


class IgnoresTimeouts(Sound):
    def _begin(self, request: Request) -> None:
        request.deadline = None
        super()._begin(request)


class CutsThePrompt(Sound):
    def check(self, text: bytes) -> bytes:
        return text[-self.info.context_length + 8 :]


class TellsAnOverflowAtTheCall(Sound):
    def _generation(self, prompt: Any, config: Any, options: Any) -> Request:
        request = super()._generation(prompt, config, options)
        self.check(self.prompt(request))
        return request


class ForgetsEarlierTurns(Sound):
    def prompt(self, request: Request) -> bytes:
        request.messages = request.messages[-1:]
        return super().prompt(request)


class DeclaresJSON(Sound):
    capabilities = Sound.capabilities | {"json_schema"}


class DeclaresLogprobs(Sound):
    def logprobs(self, numbers: list[float], byte: int, count: int) -> tuple[Any, ...]:
        return ()


class DeclaresNoIds(Sound):
    capabilities = Sound.capabilities - {"token_ids"}


class DeclaresNoStats(Sound):
    capabilities = Sound.capabilities - {"stats"}


class DeclaresNoChat(Sound):
    capabilities = Sound.capabilities - {"chat"}


# ---------------------------------------------------------------- which token


class NotSeeded(Sound):
    def chance(self, config: GenerateConfig) -> random.Random:
        return random.Random()


class SharesItsChance(Sound):
    """A seed repeats only if no other operation draws random numbers."""

    drawn = random.Random(0)

    def chance(self, config: GenerateConfig) -> random.Random:
        if config.seed is not None:
            self.drawn.seed(config.seed)
        return self.drawn


class TakesTheSecondBest(Sound):
    def choose(self, numbers: list[float], config: GenerateConfig, chance: random.Random) -> int:
        if config.temperature:
            return super().choose(numbers, config, chance)
        return sorted(range(32, 127), key=lambda byte: (-numbers[byte], byte))[1]


class NeighboursMatter(Sound):
    def numbers(self, text: bytes) -> list[float]:
        return [number + 0.5 * (len(self._life.running) > 1) for number in super().numbers(text)]


class ReusesTheWrongPrefix(Sound):
    """Takes two prompts that begin alike for the same."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[bytes, bytes] = {}

    def check(self, text: bytes) -> bytes:
        return super().check(self.kept.setdefault(text[:40], text) if len(text) > 40 else text)


class ScoresThatSumToTwo(Sound):
    def scores(self, weights: dict[str, float]) -> dict[str, float]:
        return {label: 2 * score for label, score in super().scores(weights).items()}


# ---------------------------------------------------------------- batches


class OneFailureFailsAll(Sound):
    def batch_generate(self, *args: Any, **options: Any) -> Any:
        results = super().batch_generate(*args, **options)
        for result in results:
            if result.error is not None:
                raise result.error
        return results


class ResultsOutOfOrder(Sound):
    def batch_generate(self, *args: Any, **options: Any) -> Any:
        return super().batch_generate(*args, **options)[::-1]


class ReadsAllPromptsFirst(Sound):
    def stream_batch(self, prompts: Any, *args: Any, **options: Any) -> Any:
        return super().stream_batch(list(islice(prompts, 500)), *args, **options)


# ---------------------------------------------------------------- its end


class WorksAfterClose(Sound):
    def _check_open(self) -> None:
        pass


class StreamsOutliveIt(Sound):
    def _begin(self, request: Request) -> None:
        self._check_open()  # and does not note what runs

    def generate(self, *args: Any, **options: Any) -> TokenStream:
        stream = super().generate(*args, **options)
        self._check_open_of(stream)
        return stream

    def _check_open_of(self, stream: TokenStream) -> None:
        class Always:
            def __init__(self, model: TextModel) -> None:
                self.model = model

            def _check_open(self) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                return getattr(self.model, name)

        stream._runner = Always(self)


class IsKeptForEver(Sound):
    kept: list[Any] = []  # noqa: RUF012 - shared by all, that is what is wrong with it

    def __init__(self) -> None:
        super().__init__()
        self.kept.append(self)


class LeavesAThread(Sound):
    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=threading.Event().wait, daemon=True, name="left").start()


class LeavesAFile(Sound):
    kept: list[Any] = []  # noqa: RUF012 - shared by all, that is what is wrong with it

    def __init__(self) -> None:
        super().__init__()
        self.kept.append(RHYMES.open())


class LeavesATemporaryFile(Sound):
    def __init__(self) -> None:
        super().__init__()
        Path(tempfile.mkstemp()[1]).write_text("left")


class LeavesAProcess(Sound):
    kept: list[Any] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        command = [sys.executable, "-c", "import time; time.sleep(5)"]
        self.kept.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))


class HangsAtExit(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.closing = threading.Event()
        threading.Thread(target=self.closing.wait, args=(20,)).start()

    def close(self) -> None:
        self.closing.set()


class LivesOnAfterAFork(Sound):
    def _check_open(self) -> None:
        if self._life.closed:
            raise ModelClosedError("closed")


class AsyncLeavesItsStream(Sound):
    """An asynchronous stream goes on when it was closed."""

    def agenerate(self, prompt: str, config: Any = None, **options: Any) -> AsyncTokenStream:
        class Going(AsyncTokenStream):
            async def aclose(self) -> None:
                pass

        return Going(self, self._generation(prompt, config, options))
