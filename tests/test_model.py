# SPDX-License-Identifier: Apache-2.0
"""What TextModel makes of the little that an author writes: checks at the call, closing, forks, exits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge import (
    GenerateConfig,
    Message,
    ModelClosedError,
    Request,
    TextModel,
    Token,
    Tool,
    UnsupportedError,
)

from .tiny import AsyncWords, Tiny, Waits, Words

ROOT = Path(__file__).resolve().parent.parent
TOOL = {"name": "add", "parameters": {"type": "object"}}


class Able(Words):
    """Says it honours everything, and keeps the requests it was given."""

    backend = "able"
    options = frozenset(GenerateConfig.__dataclass_fields__)
    capabilities = frozenset({"tools", "json_schema", "images", "reasoning", "logprobs"})

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def _run(self, request: Request) -> Iterator[Token]:
        self.requests.append(request)
        return super()._run(request)


def _asked(model: Able) -> GenerateConfig:
    return model.requests.pop().config


# ---------------------------------------------------------------- what an author owes


def test_run_or_arun() -> None:
    class Neither(TextModel):
        def close(self) -> None: ...

    with pytest.raises(TypeError, match="Neither must define _run or _arun"):
        Neither()

    class NoClose(TextModel):
        def _run(self, request: Request) -> Iterator[Token]:
            return iter(())

    with pytest.raises(TypeError, match="abstract"):
        NoClose()  # type: ignore[abstract]


def test_an_author_owes_no_call_to_super() -> None:
    class Model(TextModel):
        info = ib.ModelInfo()
        capabilities = frozenset()

        def __init__(self, text: str, *, twice: bool) -> None:
            self.text = text * (1 + twice)

        def _run(self, request: Request) -> Iterator[Token]:
            return iter([Token(self.text)])  # any iterator will do

        def close(self) -> None: ...

    with Model("a", twice=True) as model:
        assert model.generate("x").text() == "aa"
        assert asyncio.run(model.agenerate("x").text()) == "aa"


def test_optional_interfaces() -> None:
    class More(Words):
        def stats(self) -> ib.GenerateStats:
            return ib.GenerateStats()

        def embed(self, texts: Any) -> list[list[float]]:
            return []

        async def aembed(self, texts: Any) -> list[list[float]]:
            return []

    assert isinstance(Words(), ib.BatchModel)
    assert not isinstance(Words(), ib.StatsModel | ib.EmbeddingModel)
    assert isinstance(More(), ib.StatsModel)
    assert isinstance(More(), ib.EmbeddingModel)


def test_what_a_model_does_not_offer() -> None:
    with pytest.raises(UnsupportedError, match="Words does not support count_tokens"):
        Words().count_tokens("x")
    with pytest.raises(UnsupportedError, match="labels in classify"):
        Words().classify(["x"], labels=["a", "b"])


# ---------------------------------------------------------------- checks at the call

CALLS: list[Callable[..., object]] = [
    lambda model, **options: model.generate("x", **options),
    lambda model, **options: model.agenerate("x", **options),
    lambda model, **options: model.chat([Message("user", "x")], **options),
    lambda model, **options: model.achat([Message("user", "x")], **options),
    lambda model, **options: model.batch_generate(["x"], **options),
    lambda model, **options: model.stream_batch(["x"], **options),
    lambda model, **options: model.astream_batch(["x"], **options),
    lambda model, **options: model.classify(["x"], **options),
    lambda model, **options: asyncio.run(model.abatch_generate(["x"], **options)),
    lambda model, **options: asyncio.run(model.aclassify(["x"], **options)),
]
EVERY_CALL = pytest.mark.parametrize(
    "call",
    CALLS,
    ids=["generate", "agenerate", "chat", "achat", "batch_generate", "stream_batch", "astream_batch", "classify",
         "abatch_generate", "aclassify"],
)  # fmt: skip


@EVERY_CALL
def test_wrong_options_are_told_at_the_call(call: Callable[..., object]) -> None:
    model = Able()
    with pytest.raises(TypeError, match="'max_token' is no generation option: did you mean 'max_tokens'"):
        call(model, max_token=3)
    with pytest.raises(TypeError, match="temperature must be a number"):
        call(model, temperature="hot")
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be"):
            call(model, temperature=wrong)
    with pytest.raises(TypeError, match="config must be a GenerateConfig, not dict"):
        call(model, config={"max_tokens": 3})
    assert model.begun == 0


@EVERY_CALL
def test_what_is_not_honoured_is_told_at_the_call(call: Callable[..., object]) -> None:
    model = Words()
    for name, value in {
        "temperature": 0.0,
        "seed": 1,
        "stop": "x",
        "stop_tokens": 3,
        "json_schema": {},
        "logprobs": 1,
    }.items():
        with pytest.raises(UnsupportedError, match=f"Words does not support {name}") as error:
            call(model, **{name: value})
        assert (error.value.feature, error.value.backend) == (name, "Words")
    with pytest.raises(UnsupportedError, match="return_logits"):
        call(model, return_logits=True)
    assert model.begun == 0


@EVERY_CALL
def test_what_asks_for_nothing_is_honoured_by_all(call: Callable[..., object]) -> None:
    call(Words(), stop=[], stop_tokens=[], logprobs=0, return_logits=False, timeout=60, max_tokens=5)


@EVERY_CALL
def test_a_closed_model_is_told_at_the_call(call: Callable[..., object]) -> None:
    model = Able()
    model.close()
    with pytest.raises(ModelClosedError, match="closed: load it again"):
        call(model)


@pytest.mark.parametrize(
    ("name", "value", "capability"),
    [
        ("json_schema", {}, "json_schema"),
        ("tools", [TOOL], "tools"),
        ("tool_choice", "auto", "tools"),
        ("logprobs", 2, "logprobs"),
        ("reasoning", "low", "reasoning"),
    ],
)
def test_options_that_a_capability_stands_for(name: str, value: Any, capability: str) -> None:
    class One(Words):
        capabilities = frozenset({capability})

    message = [Message("user", "x")]
    assert One().chat(message, **{name: value}).text() == "x"
    with pytest.raises(UnsupportedError, match=name):
        Words().chat(message, **{name: value})


def test_prompts_are_text() -> None:
    model = Words()
    for wrong in (None, 3, b"x", ["x"]):
        with pytest.raises(TypeError, match="prompt must be a str"):
            model.generate(wrong)  # type: ignore[arg-type]
    for prompts in ("x", 3, None):
        with pytest.raises(TypeError, match="prompts must be an iterable of str"):
            model.batch_generate(prompts)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="prompts must be an iterable of str"):
            model.stream_batch(prompts)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prompts\[1\] must be a str, not int"):
        model.batch_generate(["x", 3])  # type: ignore[list-item]


def test_messages_are_messages() -> None:
    model = Words()
    for one in (Message("user", "a b"), {"role": "user", "content": "a b"}):
        assert model.chat([one]).text() == "a b"
    assert model.chat(iter([Message("user", "generated")])).text() == "generated"  # type: ignore[arg-type]
    for wrong in ("hello", Message("user", "x"), {"role": "user"}, 3, [3], ["x"]):
        with pytest.raises(TypeError, match="message"):
            model.chat(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="messages is empty"):
        model.chat([])
    with pytest.raises(ValueError, match="needs a role"):
        model.chat([{"content": "x"}])
    assert model.begun == 1 + 1 + 1


def test_attachments_need_their_capability() -> None:
    image = [Message("user", ["see: ", ib.Attachment("image/png", data=b"")])]
    assert Able().chat(image).text() == "see:"
    with pytest.raises(UnsupportedError, match="image/png attachments"):
        Words().chat(image)
    with pytest.raises(UnsupportedError, match="audio/wav attachments"):
        Able().chat([Message("user", [ib.Attachment("audio/wav", data=b"")])])


def test_a_raw_prompt_has_no_use_for_the_options_of_chats() -> None:
    model = Able()
    for options in ({"tools": [TOOL]}, {"tool_choice": "none"}, {"reasoning": "low"}, {"template_options": {"a": 1}}):
        with pytest.raises(ValueError, match="is an option of chat"):
            model.generate("x", **options)
        with pytest.raises(ValueError, match="is an option of chat"):
            model.stream_batch(["x"], **options)


def test_tool_choice_names_one_of_the_tools() -> None:
    model, message = Able(), [Message("user", "x")]
    for choice in ("auto", "none", "required", "add"):
        model.chat(message, tools=[TOOL], tool_choice=choice)
    with pytest.raises(ValueError, match="tool_choice='sub' is none of the tools: add"):
        model.chat(message, tools=[TOOL], tool_choice="sub")
    for choice in ("required", "add"):
        with pytest.raises(ValueError, match=f"tool_choice='{choice}' needs tools"):
            model.chat(message, tool_choice=choice)


# ---------------------------------------------------------------- options


def test_options_go_over_config_and_config_over_the_defaults() -> None:
    model = Able()
    model.defaults = GenerateConfig(temperature=0.5, top_k=7, seed=1)
    model.generate("x", GenerateConfig(top_k=8, seed=2), seed=3).text()
    assert _asked(model) == GenerateConfig(temperature=0.5, top_k=8, seed=3)
    model.generate("x", seed=None).text()
    assert _asked(model) == model.defaults
    model.batch_generate(["x"], top_k=9)
    assert _asked(model) == GenerateConfig(temperature=0.5, top_k=9, seed=1)


def test_defaults_for_chats_do_not_keep_raw_prompts_out() -> None:
    model = Able()
    model.defaults = GenerateConfig(reasoning="low", template_options={"a": 1}, seed=1)
    model.chat([Message("user", "x")]).text()
    assert _asked(model) == model.defaults
    model.generate("x").text()
    assert _asked(model) == GenerateConfig(seed=1)
    assert [result.text for result in model.batch_generate(["a", "b"])] == ["a", "b"]


def test_a_stop_can_not_cut_json_short() -> None:
    model, tool = Able(), Tool("add")
    with pytest.raises(UnsupportedError, match="able does not support stop with json_schema: it could cut the JSON"):
        model.generate("x", json_schema={}, stop="}")
    with pytest.raises(UnsupportedError, match="stop_tokens with json_schema"):
        model.batch_generate(["x"], GenerateConfig(stop_tokens=[3]), json_schema={})
    with pytest.raises(UnsupportedError, match="stop with tool_choice='add'"):
        model.chat([Message("user", "x")], tools=[tool], tool_choice="add", stop=["}"])
    model.chat([Message("user", "x")], tools=[tool], stop=["}"]).close()
    # A default is nothing that the caller asked for.
    model.defaults = GenerateConfig(stop=["}"], seed=1)
    model.generate("x", json_schema={}).text()
    assert _asked(model) == GenerateConfig(json_schema={}, seed=1)
    model.generate("x").text()
    assert _asked(model) == model.defaults


def test_defaults_that_are_not_honoured_are_told() -> None:
    model = Words()
    model.defaults = GenerateConfig(seed=1)
    with pytest.raises(UnsupportedError, match="seed"):
        model.generate("x")


def test_nothing_that_is_not_set_reaches_the_author() -> None:
    model = Able()
    model.generate("x").text()
    assert _asked(model).set_fields() == {}


# ---------------------------------------------------------------- classify


@pytest.mark.parametrize("kind", [Words, AsyncWords])
async def test_classify_is_the_first_token(kind: type[Tiny]) -> None:
    model = kind()
    expected = [ib.ClassifyResult(Token("yes")), ib.ClassifyResult(Token("no")), ib.ClassifyResult(Token(""))]
    assert model.classify(["yes it is", "no", ""]) == expected
    assert await model.aclassify(["yes it is", "no", ""]) == expected


def test_classify_is_greedy_where_that_can_be_said() -> None:
    model = Able()
    model.classify(["x"])
    assert _asked(model) == GenerateConfig(max_tokens=1, temperature=0.0)


async def test_classify_raises_what_a_prompt_raised() -> None:
    class Picky(Words):
        def _run(self, request: Request) -> Iterator[Token]:
            if "bad" in request.prompt:
                raise ib.ContextLengthExceededError(9, 3)
            return super()._run(request)

    with pytest.raises(ib.ContextLengthExceededError):
        Picky().classify(["good", "bad"])
    with pytest.raises(ib.ContextLengthExceededError):
        await Picky().aclassify(["good", "bad"])


async def test_cancelling_aclassify_frees_its_operations() -> None:
    model = Waits()
    task = asyncio.create_task(model.aclassify(["", ""]))
    await asyncio.to_thread(model.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(model.finished.wait)
    assert not model._life.running


async def test_aclassify_takes_an_author_s_own_classify() -> None:
    class Own(Words):
        def classify(self, *args: Any, **kwargs: Any) -> list[ib.ClassifyResult]:
            return [ib.ClassifyResult(Token("own"))]

    assert (await Own().aclassify(["x"]))[0].token.text == "own"


# ---------------------------------------------------------------- closing


def test_close_reaches_the_author_once() -> None:
    model = Words()
    assert not model.closed
    with model:
        pass
    model.close()
    asyncio.run(model.aclose())
    assert model.closed
    assert model.closes == 1


async def test_a_model_is_an_async_context_manager() -> None:
    async with Words() as model:
        assert await model.agenerate("a b").text() == "a b"
    assert model.closed


def test_close_from_many_threads_reaches_the_author_once() -> None:
    model = Words()
    start = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (start.wait(), model.close())) for _ in range(8)]  # type: ignore[func-returns-value]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.closes == 1


def test_close_may_call_super() -> None:
    class Below(Words):
        below = 0

        def close(self) -> None:
            self.below += 1
            super().close()

    model = Below()
    model.close()
    model.close()
    assert (model.below, model.closes) == (1, 1)


def test_close_may_come_from_a_mixin() -> None:
    class Closes:
        closes = 0

        def close(self) -> None:
            self.closes += 1

    class Mixed(Closes, TextModel):
        info = ib.ModelInfo()
        capabilities = frozenset()

        def _run(self, request: Request) -> Iterator[Token]:
            yield Token("a")

    model = Mixed()
    model.close()
    model.close()
    assert model.closed
    assert model.closes == 1
    with pytest.raises(ModelClosedError):
        model.generate("x")


def test_operations_are_cancelled_before_the_author_s_close() -> None:
    class Asks(Words):
        seen: Any = None

        def close(self) -> None:
            self.seen = (self.closed, [request.cancelled for request in self._life.running])

    model = Asks()
    stream = model.generate("a b")
    next(stream)
    model.close()
    assert model.seen == (True, [True])
    stream.close()


def test_a_failing_cancellation_callback_keeps_nobody_from_closing(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Words):
        def _run(self, request: Request) -> Iterator[Token]:
            request.on_cancel(lambda: 1 / 0)  # type: ignore[arg-type]
            return super()._run(request)

    model = Fails()
    streams = [model.generate("a b") for _ in range(3)]
    for stream in streams:
        next(stream)
    model.close()
    assert model.closes == 1
    for stream in streams:
        with pytest.raises(ModelClosedError):
            next(stream)
    assert caplog.text.count("cancelling a request failed") == 3


def test_closing_while_operations_come_and_go() -> None:
    for _ in range(20):
        model = Words()
        start = threading.Barrier(5)
        odd: list[BaseException] = []

        def use(model: Words = model, start: threading.Barrier = start, odd: list[BaseException] = odd) -> None:
            start.wait()
            try:
                while True:
                    assert model.generate("a b").text() == "a b"
            except ModelClosedError:
                pass
            except BaseException as error:
                odd.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait()
        model.close()
        for thread in threads:
            thread.join()
        assert not odd
        assert not model._life.running


# ---------------------------------------------------------------- forks and exits: a process each


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


FORK = """
import asyncio, os, sys, threading
from inference_bridge import Message, ModelClosedError
from tests.tiny import {kind}, Waits

model, busy = {kind}(), Waits()
stream, unused = model.generate("a b c"), model.generate("a b c")
next(stream)
reader = threading.Thread(target=busy.generate("x").text, daemon=True)
class Tells({kind}):
    parallel = 2
    def _begin(self, request):
        super()._begin(request)
        request.on_cancel(lambda: os.write(1, b"told in " + (b"child\\n" if child == 0 else b"parent\\n")))

child = None
batch = Tells().stream_batch(["a b", "c d"])
next(batch)
waiting = busy.generate("y")
holder = threading.Thread(target=waiting.text, daemon=True)
reader.start(); holder.start(); busy.waiting.wait()

def refused(call):
    try:
        call()
    except ModelClosedError as error:
        assert "forked" in str(error), error
        return True
    return False

child = os.fork()
if child == 0:
    assert refused(lambda: model.generate("x"))
    assert refused(lambda: model.chat([Message("user", "x")]))
    assert refused(lambda: model.batch_generate(["x"]))
    assert refused(lambda: model.agenerate("x"))
    assert refused(lambda: next(stream))
    assert refused(lambda: next(unused))
    assert refused(lambda: next(waiting)), "its lock is held by a thread that is not here"
    for each in (stream, unused, waiting, batch):
        each.close()
    model.close(); busy.close()
    assert (model.closes, busy.closes) == (0, 0)
    del stream, unused, waiting
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert stream.text() == unused.text() == "a b c"
waiting.close(); holder.join()
busy.close(); reader.join(); batch.close()
print("parent done")
"""


@pytest.mark.parametrize("kind", ["Words", "AsyncWords"])
def test_a_forked_child_is_refused_and_the_parent_goes_on(kind: str) -> None:
    done = _run(FORK.format(kind=kind))
    assert done.stdout == "told in parent\n" * 2 + "parent done\n", done.stderr
    assert "AssertionError" not in done.stderr


@pytest.mark.parametrize("kind", ["Words", "AsyncWords", "Waits", "AsyncWaits"])
@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError('mine')", 1), ("os.kill(os.getpid(), signal.SIGINT)", -2)],
    ids=["end", "exit", "exception", "interrupt"],
)
def test_a_program_that_never_closes_ends_with_its_own_code(kind: str, ending: str, code: int) -> None:
    program = f"""
import asyncio, os, signal, sys
from tests.tiny import {kind}

model = {kind}()
half_read = model.generate("a b c")
next(half_read)

async def main():
    global ahalf_read
    ahalf_read = model.agenerate("a b c")
    await anext(ahalf_read)
    {ending}

asyncio.run(main())
"""
    done = _run(program)
    assert done.returncode == code, done.stderr
    assert ("Traceback" in done.stderr) == (code in (1, -2)), done.stderr


def test_ctrl_c_ends_a_program_that_waits_for_a_token() -> None:
    program = """
import os, signal, threading
from tests.tiny import {kind}

model = {kind}()
stream = model.generate("a")
next(stream)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    next(stream)
except KeyboardInterrupt:
    print("interrupted", stream.finish_reason)
"""
    for kind in ("Waits", "AsyncWaits"):
        done = _run(program.format(kind=kind))
        assert done.stdout == "interrupted cancelled\n", done.stderr
        assert done.returncode == 0
