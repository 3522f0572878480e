# SPDX-License-Identifier: Apache-2.0
"""Mailboxes between threads, and between threads and event loops."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge._concurrency.mailbox import AsyncMailbox, Mailbox


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


async def _drain(box: AsyncMailbox[int]) -> list[int]:
    return [item async for item in box]


@given(st.lists(st.integers()))
def test_items_come_out_in_the_order_they_went_in(items: list[int]) -> None:
    box: Mailbox[int] = Mailbox()
    for item in items:
        box.put(item)
    box.close()
    assert list(box) == items


def test_a_closed_mailbox_reports_its_end_at_every_read() -> None:
    box: Mailbox[int] = Mailbox()
    box.put(1)
    box.close(error := ValueError("broken"))
    assert next(box) == 1
    for _ in range(3):
        with pytest.raises(ValueError, match="broken") as raised:
            next(box)
        assert raised.value is error


def test_a_closed_mailbox_ignores_later_items() -> None:
    box: Mailbox[int] = Mailbox()
    box.close()
    box.put(1)
    box.close(ValueError("too late"))
    assert [next(box, None) for _ in range(4)] == [None] * 4


async def test_a_closed_async_mailbox_ignores_later_items() -> None:
    box: AsyncMailbox[int] = AsyncMailbox()
    box.close()
    box.put(1)
    box.close(ValueError("too late"))
    assert [await anext(box, None) for _ in range(4)] == [None] * 4


def test_a_reader_waits_for_a_writer() -> None:
    box: Mailbox[int] = Mailbox()
    seen: list[int] = []
    reader = _in_thread(lambda: seen.extend(box))
    box.put(1)
    box.put(2)
    box.close()
    reader.join(30)
    assert seen == [1, 2]


def test_the_deadline_ends_the_wait_and_no_item_is_lost() -> None:
    box: Mailbox[int] = Mailbox(deadline=time.monotonic() - 1)
    box.put(1)
    assert next(box) == 1
    with pytest.raises(TimeoutError):
        next(box)


async def test_the_deadline_ends_an_async_wait_and_no_item_is_lost() -> None:
    box: AsyncMailbox[int] = AsyncMailbox(deadline=time.monotonic() - 1)
    box.put(1)
    assert await anext(box) == 1
    with pytest.raises(TimeoutError):
        await anext(box)


@pytest.mark.parametrize("distance", [1e10, 1e300])
async def test_a_deadline_as_far_as_one_likes(distance: float) -> None:
    box: Mailbox[int] = Mailbox(deadline=time.monotonic() + distance)
    abox: AsyncMailbox[int] = AsyncMailbox(deadline=time.monotonic() + distance)
    writer = threading.Timer(0.01, lambda: (box.put(1), abox.put(1)))  # type: ignore[func-returns-value]
    writer.start()
    assert next(box) == await anext(abox) == 1
    writer.join()


async def test_async_items_from_many_threads_all_arrive() -> None:
    box: AsyncMailbox[int] = AsyncMailbox()

    def write(start: int) -> None:
        for item in range(start, start + 200):
            box.put(item)

    threads = [_in_thread(lambda start=start: write(start)) for start in range(0, 1600, 200)]  # type: ignore[misc]
    closer = _in_thread(lambda: ([thread.join() for thread in threads], box.close()))  # type: ignore[func-returns-value]
    items = await asyncio.wait_for(_drain(box), 30)
    closer.join()
    assert sorted(items) == list(range(1600))
    for start in range(0, 1600, 200):
        assert [item for item in items if start <= item < start + 200] == list(range(start, start + 200))


async def test_no_wake_up_is_lost_between_a_check_and_a_wait() -> None:
    # One item at a time, each put as soon as the last was read: the reader is always about to wait.
    ping: AsyncMailbox[int] = AsyncMailbox()
    pong: Mailbox[int] = Mailbox()

    def echo() -> None:
        for item in pong:
            ping.put(item)

    thread = _in_thread(echo)
    for number in range(2000):
        pong.put(number)
        assert await asyncio.wait_for(anext(ping), 30) == number
    pong.close()
    thread.join()


async def test_an_item_that_comes_just_before_the_wait_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    box: AsyncMailbox[int] = AsyncMailbox()
    make_future = loop.create_future

    def late() -> asyncio.Future[None]:
        box.put(1)  # the reader has looked already, and is not known to wait yet
        return make_future()

    monkeypatch.setattr(loop, "create_future", late)
    read = asyncio.create_task(box.__anext__())
    for _ in range(5):
        await asyncio.sleep(0)
    assert read.done()
    assert read.result() == 1


async def test_a_cancelled_wait_leaves_the_mailbox_usable() -> None:
    box: AsyncMailbox[int] = AsyncMailbox()
    task = asyncio.create_task(_drain(box))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    box.put(1)
    assert await anext(box) == 1


async def test_an_error_comes_after_the_items_before_it() -> None:
    box: AsyncMailbox[int] = AsyncMailbox()
    box.put(1)
    box.close(ValueError("broken"))
    assert await anext(box) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await anext(box)


def test_a_writer_outlives_the_loop_of_its_reader() -> None:
    loop = asyncio.new_event_loop()

    async def make() -> tuple[AsyncMailbox[int], asyncio.Task[list[int]]]:
        box: AsyncMailbox[int] = AsyncMailbox()
        reader = asyncio.create_task(_drain(box))
        await asyncio.sleep(0)
        return box, reader

    box, reader = loop.run_until_complete(make())
    loop.close()
    box.put(1)
    box.close()
    reader._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_writer_never_waits() -> None:
    box: Mailbox[int] = Mailbox()
    for number in range(100_000):
        box.put(number)
    box.close()
    assert sum(1 for _ in box) == 100_000


def test_items_that_were_read_are_not_kept() -> None:
    class Item:
        pass

    box: Mailbox[Item] = Mailbox()
    for _ in range(100):
        box.put(Item())
        next(box)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Item)]


def test_ctrl_c_ends_a_wait() -> None:
    program = """
import os, signal, threading
from inference_bridge._concurrency.mailbox import Mailbox
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    next(Mailbox())
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "interrupted\n", done.stderr
