# SPDX-License-Identifier: Apache-2.0
"""The prefix cache on disk: lookup, limits, permissions, and detection of damage."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference_bridge.engine.prefix_cache import files as prefix_files
from inference_bridge.engine.prefix_cache.store import MIN_TOKENS, PrefixStore

TOKENS = list(range(3 * MIN_TOKENS))
STATE = bytes(range(256)) * 64
FEW = MIN_TOKENS // 2


def store(place: Path, limit: int = 1 << 30, *, whole: bool = False, **identity: Any) -> PrefixStore:
    return PrefixStore(lambda: identity, limit, model="tiny", whole=whole, place=str(place))


def kept(place: Path, tokens: list[int] = TOKENS, state: bytes = STATE, **options: Any) -> Path:
    """The single file that the store writes."""
    one = store(place, **options)
    before = files(place)
    assert one.wants(tokens, len(state))
    one.put(tokens, state, wait=True)
    (path,) = files(place) - before
    return path


def files(place: Path) -> set[Path]:
    return set(place.glob("*.prefix"))


def found(place: Path, tokens: list[int] = TOKENS, **options: Any) -> tuple[int, bytes] | None:
    """The result of a lookup in another process: the number of cached tokens, and the state."""
    one = store(place, **options)
    stored = one.find(tokens)
    state = one.load(stored) if stored is not None else None
    return None if stored is None or state is None else (stored.count, bytes(state))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_prefix_is_found_by_its_longest_common_beginning(tmp_path: Path) -> None:
    kept(tmp_path)
    other = [*TOKENS[: 2 * MIN_TOKENS], *[7] * (2 * MIN_TOKENS)]
    kept(tmp_path, other, b"other")
    assert found(tmp_path) == (len(TOKENS), STATE)
    assert found(tmp_path, [*TOKENS, 1, 2, 3]) == (len(TOKENS), STATE)
    assert found(tmp_path, [*other[: 3 * MIN_TOKENS], 1]) == (3 * MIN_TOKENS, b"other")
    assert found(tmp_path, TOKENS[: MIN_TOKENS + 1]) is not None
    assert found(tmp_path, TOKENS[: MIN_TOKENS - 1]) is None
    assert found(tmp_path, [9, *TOKENS]) is None


def test_a_prefix_that_is_in_memory_is_not_read_from_disk(tmp_path: Path) -> None:
    kept(tmp_path)
    one = store(tmp_path)
    assert one.find(TOKENS, beyond=len(TOKENS) - MIN_TOKENS) is not None
    assert one.find(TOKENS, beyond=len(TOKENS) - MIN_TOKENS + 1) is None


def test_a_state_that_cannot_be_cut_is_used_whole_or_not_at_all(tmp_path: Path) -> None:
    kept(tmp_path, whole=True)
    assert found(tmp_path, [*TOKENS, 1], whole=True) == (len(TOKENS), STATE)
    assert found(tmp_path, TOKENS[:-1], whole=True) is None


def test_prefixes_depend_on_the_settings(tmp_path: Path) -> None:
    kept(tmp_path, setting=1)
    assert found(tmp_path, setting=2) is None
    assert found(tmp_path, setting=1) is not None


def test_few_new_tokens_are_not_written(tmp_path: Path) -> None:
    kept(tmp_path)
    one = store(tmp_path)
    assert not one.wants(TOKENS, len(STATE))
    assert not one.wants([*TOKENS, *range(MIN_TOKENS - 1)], len(STATE))
    assert one.wants([*TOKENS, *range(MIN_TOKENS)], len(STATE))
    assert not one.wants(TOKENS[: MIN_TOKENS - 1], 1)


def test_a_longer_prefix_replaces_the_shorter_one(tmp_path: Path) -> None:
    shorter = kept(tmp_path)
    longer = kept(tmp_path, [*TOKENS, *range(MIN_TOKENS)], b"longer")
    assert not shorter.exists()
    assert files(tmp_path) == {longer}
    assert found(tmp_path) == (len(TOKENS), b"longer")


def test_the_least_recently_used_prefixes_make_room(tmp_path: Path) -> None:
    first, second, third = (kept(tmp_path, [number] * MIN_TOKENS) for number in range(3))
    limit = sum(path.stat().st_size for path in (first, second, third))
    for seconds, path in ((30, first), (20, second), (10, third)):
        age(path, seconds)
    assert found(tmp_path, [0] * MIN_TOKENS) is not None  # which makes it the last used
    kept(tmp_path, [3] * MIN_TOKENS, limit=limit)
    assert first.exists()
    assert not second.exists()
    assert third.exists()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_files, "MAX_FILES", 3)
    paths = []
    for number in range(5):
        paths.append(kept(tmp_path, [number] * MIN_TOKENS))
        age(paths[-1], 100 - number)
    assert files(tmp_path) == set(paths[2:])


def test_a_prefix_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    before = kept(tmp_path)
    one = store(tmp_path, limit=len(STATE) - 1)
    assert not one.wants([5] * MIN_TOKENS, len(STATE))
    assert files(tmp_path) == {before}


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    place = tmp_path / "made" / "here"
    previous = os.umask(0)
    try:
        kept(place)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in place.iterdir())
    place.chmod(0o755)
    assert found(place) is not None
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _flip(place: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return flip


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _claim_much(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:32] = prefix_files.START.pack(prefix_files.MAGIC, 1 << 31, 1 << 31, 1 << 62, 1 << 62)
    path.write_bytes(data)


def _of_another_key(path: Path) -> None:
    (path.parent / "key").write_bytes(bytes(32))


def _of_another_identity(path: Path) -> None:
    other = kept(path.parent, identity=2)
    other.rename(path)


def _readable_by_all(path: Path) -> None:
    path.chmod(0o644)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


DAMAGES = [_cut, _lengthen, _flip(0), _flip(20), _flip(200), _flip(-40), _flip(-1), _empty, _claim_much]
DAMAGES += [_of_another_key, _of_another_identity, _readable_by_all, _link, _pipe]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_removed(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = kept(tmp_path)
    damage(path)
    assert found(tmp_path) is None
    assert not path.is_symlink()
    assert not path.exists()
    kept(tmp_path)
    assert found(tmp_path) == (len(TOKENS), STATE)


def test_a_damaged_key_makes_another(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / "key").write_bytes(b"short")
    assert found(tmp_path) is None
    kept(tmp_path)
    assert found(tmp_path) is not None


def test_an_unusable_directory_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the directory should be")
    one = store(tmp_path / "file")
    assert one.find(TOKENS) is None
    assert not one.wants(TOKENS, len(STATE))


def test_a_full_disk_is_not_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    program = (
        "import resource, signal; from tests.engine.prefix_cache.test_store import *;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); place = Path(sys.argv[1]);"
        "one = store(place); assert one.wants(TOKENS, len(STATE));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); one.put(TOKENS, STATE, wait=True);"
        "assert not files(place)"
    )
    run(program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_file_is_written_in_another_thread(tmp_path: Path) -> None:
    woken = threading.Event()
    one = PrefixStore(dict, 1 << 30, model="tiny", whole=False, wake=woken.set, place=str(tmp_path))
    assert one.wants(TOKENS, len(STATE))
    one.put(TOKENS, STATE)
    assert woken.wait(30)
    one.join()
    assert not one.busy
    assert found(tmp_path) == (len(TOKENS), STATE)


WRITER = """
from tests.engine.prefix_cache.test_store import *
place, number = Path(sys.argv[1]), int(sys.argv[2])
print("begun", flush=True)
while True:
    for step in range(50):
        store(place, 3_000_000).put([number, step] * MIN_TOKENS, STATE * 40, wait=True)
        if number == 9 and step == 20: sys.exit()
"""


def run(program: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, timeout=300)


def test_a_writer_that_is_killed_leaves_only_whole_files(tmp_path: Path) -> None:
    kept(tmp_path)
    for number in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.05 * (number + 1))
            writer.send_signal(signal.SIGKILL)
    key = prefix_files.key_of(str(tmp_path))
    assert all(prefix_files.read_header(str(path), key) is not None for path in files(tmp_path))
    prefix_files.prune(str(tmp_path), 3_000_000)
    assert not list(tmp_path.glob(".writing-*"))


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with prefix_files.temporary_file(str(tmp_path)) as (_, path):
        prefix_files.prune(str(tmp_path), 0)
        assert os.path.exists(path)
    assert not os.path.exists(path)


def test_two_processes_write_and_read_at_once(tmp_path: Path) -> None:
    place = str(tmp_path)
    command = [sys.executable, "-c", WRITER, place, "9"]
    with subprocess.Popen(command) as one, subprocess.Popen(command) as other:
        reader = store(tmp_path)
        while one.poll() is None or other.poll() is None:
            stored = reader.find([9, 3] * MIN_TOKENS)
            state = reader.load(stored) if stored is not None else None
            assert state is None or bytes(state) == STATE * 40
            time.sleep(0.01)
    assert (one.returncode, other.returncode) == (0, 0)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 3_000_000
    assert found(tmp_path, [9, 20] * MIN_TOKENS) is not None


def test_entries_are_listed_and_cleared(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert prefix_files.entries(place) == []
    path = kept(tmp_path)
    _cut(kept(tmp_path, [1] * MIN_TOKENS))
    (one,) = prefix_files.entries(place)
    assert (one.model, one.tokens, one.size) == ("tiny", len(TOKENS), path.stat().st_size)
    assert prefix_files.clear(place)[0] == 2
    assert list(tmp_path.iterdir()) == []
    assert prefix_files.clear(place) == (0, 0)


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    path, other = tmp_path / "one", tmp_path / "other"
    data = bytearray(os.urandom(1 << 16))
    path.write_bytes(data)
    age(path, 1000)
    known = prefix_files.fingerprint(str(path), 16)
    assert prefix_files.fingerprint(str(path), 16) == known
    other.write_bytes(data)
    assert prefix_files.fingerprint(str(other), 16) != known  # another time
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    assert prefix_files.fingerprint(str(other), 16) == known
    for place in (0, len(data) - 1):  # the head, and a sample
        changed = bytearray(data)
        changed[place] ^= 1
        other.write_bytes(changed)
        os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
        assert prefix_files.fingerprint(str(other), 16) != known
