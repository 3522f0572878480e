# SPDX-License-Identifier: Apache-2.0
"""The pool of loaded models of a server."""

from __future__ import annotations

import asyncio
import threading

import pytest

import inference_bridge as ib
from inference_bridge.serve.errors import RequestError
from inference_bridge.serve.pool import ModelPool

from ..parts.models.tiny import Words, auntil


class Loader:
    """Loads `Words`, as soon as `ready` is set."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.loads: list[str] = []
        self.made: list[Words] = []
        self.error: Exception | None = None

    async def __call__(self, source: str) -> ib.TextModel:
        self.loads.append(source)
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        self.made.append(Words(source))
        return self.made[-1]


async def test_a_model_is_loaded_once_by_the_first_of_several_requests() -> None:
    load = Loader()
    load.ready.clear()
    pool = ModelPool({"a": "words:a"}, load=load)

    async def user() -> ib.TextModel:
        async with pool.use("a") as model:
            return model

    users = [asyncio.create_task(user()) for _ in range(5)]
    await auntil(lambda: load.loads == ["words:a"])
    assert pool.loaded() == {}
    load.ready.set()
    assert set(await asyncio.gather(*users)) == set(load.made)
    assert load.loads == ["words:a"]
    await pool.aclose()
    assert load.made[0].closed


async def test_a_request_that_is_cancelled_does_not_stop_the_load_of_others() -> None:
    load = Loader()
    load.ready.clear()
    pool = ModelPool({"a": "words:a"}, load=load)

    async def user() -> ib.TextModel:
        async with pool.use("a") as model:
            return model

    first, second = asyncio.create_task(user()), asyncio.create_task(user())
    await auntil(lambda: bool(load.loads))
    first.cancel()
    await asyncio.wait([first])
    load.ready.set()
    assert await second is load.made[0]
    await pool.aclose()


async def test_a_failed_load_is_reported_and_retried() -> None:
    load = Loader()
    load.error = ib.ModelLoadError("damaged")
    pool = ModelPool({"a": "words:a"}, load=load)
    for _ in range(2):
        with pytest.raises(ib.ModelLoadError):
            async with pool.use("a"):
                pass
    assert len(load.loads) == 2
    load.error = None
    async with pool.use("a") as model:
        assert model is load.made[0]
    await pool.aclose()


async def test_an_idle_model_is_unloaded_and_loaded_again() -> None:
    load = Loader()
    pool = ModelPool({"a": "words:a"}, keep_alive=0.01, load=load)
    async with pool.use("a") as model:
        await asyncio.sleep(0.05)
        assert not model.closed
    await auntil(lambda: model.closed)
    assert pool.loaded() == {}
    async with pool.use("a") as again:
        assert again is not model
    await pool.aclose()


async def test_a_model_that_was_closed_meanwhile_is_loaded_again() -> None:
    load = Loader()
    pool = ModelPool({"a": "words:a"}, load=load)
    async with pool.use("a") as model:
        pass
    model.close()

    async def user() -> ib.TextModel:
        async with pool.use("a") as again:
            return again

    assert set(await asyncio.gather(user(), user())) == {load.made[1]}
    await pool.aclose()
    assert load.made[1].closed


async def test_the_least_recently_used_idle_model_makes_room() -> None:
    load = Loader()
    pool = ModelPool({"a": "a", "b": "b", "c": "c"}, most=2, load=load)
    for name in ("a", "b", "a"):
        async with pool.use(name):
            pass
    async with pool.use("c"):
        assert sorted(pool.loaded()) == ["a", "c"]
    await pool.aclose()


async def test_a_model_in_use_is_not_unloaded_for_another() -> None:
    load = Loader()
    pool = ModelPool({"a": "a", "b": "b"}, most=1, load=load)
    async with pool.use("a") as first, pool.use("b"):
        assert not first.closed
    await pool.aclose()


async def test_a_full_queue_is_refused_and_has_room_again() -> None:
    pool = ModelPool({}, {"a": Words()}, queue=1)
    async with pool.use("a"), pool.use("a"):
        with pytest.raises(RequestError) as caught:
            async with pool.use("a"):
                pass
    assert caught.value.status == 429
    async with pool.use("a"):
        pass


async def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    pool = ModelPool({"alpha": "a"}, listed=lambda: ["beta"])
    assert await pool.names() == ["alpha", "beta"]
    with pytest.raises(ib.ModelNotFoundError, match="alpha, beta"):
        async with pool.use("gamma"):
            pass
    with pytest.raises(ib.ModelNotFoundError):
        async with pool.use("/etc/passwd"):
            pass


async def test_a_model_of_the_caller_is_not_closed() -> None:
    model = Words()
    pool = ModelPool({}, {"a": model}, keep_alive=0.0)
    async with pool.use("a") as used:
        assert used is model
    await pool.aclose()
    assert not model.closed
    with pytest.raises(RequestError) as caught:
        async with pool.use("a"):
            pass
    assert caught.value.status == 503


async def test_idle_models_are_unloaded_to_make_room() -> None:
    load = Loader()
    sizes = {"a": 4, "b": 3, "c": 6, "d": 11}
    pool = ModelPool({name: name for name in sizes}, memory_limit=10, load=load, size=sizes.__getitem__)
    for name in ("a", "b", "c"):
        async with pool.use(name):
            pass
    assert sorted(pool.loaded()) == ["b", "c"]
    with pytest.raises(ib.ModelLoadError, match="11"):
        async with pool.use("d"):
            pass
    assert sorted(pool.loaded()) == ["b", "c"]
    await pool.aclose()


async def test_a_model_waits_for_room_that_is_in_use() -> None:
    load = Loader()
    pool = ModelPool({"a": "a", "b": "b"}, memory_limit=10, load=load, size=lambda _: 6)

    async def user() -> ib.TextModel:
        async with pool.use("b") as model:
            return model

    async with pool.use("a") as first:
        waiting = asyncio.create_task(user())
        await asyncio.sleep(0.05)
        assert load.loads == ["a"]
        assert not first.closed
    assert await waiting is load.made[1]
    assert first.closed
    await pool.aclose()


async def test_a_model_waits_for_the_memory_of_one_that_is_being_closed() -> None:
    closing, may_close = threading.Event(), threading.Event()

    class Slow(Words):
        def close(self) -> None:
            closing.set()
            may_close.wait(10)
            super().close()

    loads: list[str] = []

    async def load(source: str) -> ib.TextModel:
        loads.append(source)
        return Slow() if source == "a" else Words()

    pool = ModelPool({"a": "a", "b": "b"}, memory_limit=10, load=load, size=lambda _: 6)
    async with pool.use("a"):
        pass
    unloading = asyncio.create_task(pool.unload("a"))
    await auntil(closing.is_set)

    async def user() -> None:
        async with pool.use("b"):
            pass

    waiting = asyncio.create_task(user())
    await asyncio.sleep(0.05)
    assert loads == ["a"]
    may_close.set()
    await asyncio.gather(waiting, unloading)
    assert loads == ["a", "b"]
    await pool.aclose()


async def test_a_request_while_an_idle_model_is_unloaded_gets_another_one() -> None:
    load = Loader()
    pool = ModelPool({"a": "a"}, keep_alive=3600, load=load)
    async with pool.use("a"):
        pass
    pool._expire("a", pool._entries["a"])  # as its timer does; the request comes in the same turn of the event loop
    async with pool.use("a") as model:
        await auntil(lambda: load.made[0].closed)
        assert model is load.made[1]
        assert not model.closed
    await pool.aclose()


async def test_closing_closes_every_model_though_one_fails_or_is_closing() -> None:
    closing, may_close = threading.Event(), threading.Event()
    made: dict[str, Words] = {}

    class Slow(Words):
        def close(self) -> None:
            closing.set()
            may_close.wait(10)
            super().close()

    class Fails(Words):
        def close(self) -> None:
            super().close()
            raise RuntimeError("it fails")

    async def load(source: str) -> ib.TextModel:
        made[source] = {"slow": Slow, "fails": Fails}.get(source, Words)()
        return made[source]

    pool = ModelPool({name: name for name in ("slow", "fails", "last")}, keep_alive=3600, load=load)
    for name in ("slow", "fails", "last"):
        async with pool.use(name):
            pass
    pool._expire("slow", pool._entries["slow"])
    await auntil(closing.is_set)
    ending = asyncio.create_task(pool.aclose())
    await auntil(lambda: made["last"].closed)
    assert not ending.done()
    may_close.set()
    with pytest.raises(RuntimeError, match="it fails"):
        await ending
    assert made["slow"].closed


async def test_two_loads_do_not_take_the_same_room() -> None:
    load = Loader()
    load.ready.clear()
    pool = ModelPool({"a": "a", "b": "b"}, memory_limit=10, load=load, size=lambda _: 6)

    async def user(name: str) -> None:
        async with pool.use(name):
            pass

    users = [asyncio.create_task(user(name)) for name in "ab"]
    await auntil(lambda: bool(load.loads))
    await asyncio.sleep(0.05)
    assert len(load.loads) == 1
    load.ready.set()
    await asyncio.gather(*users)
    assert len(load.loads) == 2
    assert len(pool.loaded()) == 1
    await pool.aclose()


async def test_a_failed_load_gives_its_room_back() -> None:
    load = Loader()
    pool = ModelPool({"a": "a", "b": "b"}, memory_limit=10, load=load, size=lambda _: 6)
    load.error = ib.ModelLoadError("damaged")
    with pytest.raises(ib.ModelLoadError):
        async with pool.use("a"):
            pass
    load.error = None
    async with pool.use("b"):
        pass
    await pool.aclose()


async def test_a_request_that_does_not_wait_for_a_load_is_503_and_the_load_goes_on() -> None:
    load = Loader()
    load.ready.clear()
    pool = ModelPool({"a": "a"}, load=load)
    with pytest.raises(RequestError) as caught:
        async with pool.use("a", 0.0):
            pass
    assert (caught.value.status, caught.value.code) == (503, "model_loading")
    load.ready.set()
    await auntil(lambda: bool(pool.loaded()))
    async with pool.use("a", 0.0) as model:
        assert model is load.made[0]
    assert load.loads == ["a"]
    await pool.aclose()


async def test_a_model_whose_requests_left_during_its_load_is_unloaded_when_idle() -> None:
    load = Loader()
    load.ready.clear()
    pool = ModelPool({"a": "a"}, keep_alive=0.01, load=load)
    with pytest.raises(RequestError):
        async with pool.use("a", 0.0):
            pass
    await asyncio.sleep(0.05)
    load.ready.set()
    await auntil(lambda: bool(load.made) and load.made[0].closed)
    assert pool.loaded() == {}
    await pool.aclose()


async def test_closing_ends_a_load_that_waits_for_room() -> None:
    pool = ModelPool({"a": "a", "b": "b"}, memory_limit=10, load=Loader(), size=lambda _: 6)
    async with pool.use("a"):
        waiting = asyncio.create_task(pool.use("b").__aenter__())
        await asyncio.sleep(0.01)
        await pool.aclose()
    with pytest.raises(RequestError) as caught:
        await waiting
    assert caught.value.status == 503
