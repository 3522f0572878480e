# SPDX-License-Identifier: Apache-2.0
"""Templates render as in Jinja2, in a worker process: a template can crash only its own worker."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference_bridge.chat.templates import renderer as module
from inference_bridge.chat.templates.renderer import Budget, FailureError, LimitError, RefusalError, Renderer

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel shows and limits it on Linux")


def render(source: str, seconds: float | None = None, **variables: Any) -> str:
    return Renderer(source).render(variables, seconds)


def workers() -> list[int]:
    return [worker._process.pid for worker in module._pool._all]


@pytest.fixture
def kept() -> Iterator[Renderer]:
    """A renderer in use, so that a worker is kept."""
    made = Renderer("{{ x }}")
    made.render({"x": 1})
    yield made
    made.close()


# ---------------------------------------------------------------- as Jinja2 renders


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # trim_blocks, lstrip_blocks
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in [1, 2] if x > 1 %}{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}", "1True"),
        ("{% for x in 'ab' recursive %}{{ x }}{% if loop.depth < 2 %}{{ loop('c') }}{% endif %}{% endfor %}", "acbc"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("{% set ns = namespace(n=0) %}{% for x in range(3) %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3"),
        ("{% set l = [] %}{% set _ = l.append(1) %}{% set _ = l.append(2) %}{{ l.pop() }}{{ l }}", "2[1]"),
        ("{% set d = {} %}{% set _ = d.update({'a': 1}) %}{{ d }}", "{'a': 1}"),
        ("{{ {'a': '<é>', 'b': [1, none, true]} | tojson }}", '{"a": "<é>", "b": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}{{ [1, 2] | tojson(separators=(',', ':')) }}", '"\\u00e9"[1,2]'),
        ("{{ ('<' | escape) }}{{ 'a' ~ 1 ~ none ~ [2] }}", "&lt;a1None[2]"),
        ("{{ (1, 2)[0] }}{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}", "1[2, 3]cba"),
        ("{% macro m(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}", "1c()12(3,)"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1}.get('b', 2) }}", "a12"),
        ("{{ ' a '.strip() }}{{ 'a-b'.split('-') }}{{ 'abc'.startswith('ab') }}", "a['a', 'b']True"),
        ("{{ '%s=%d' % ('a', 1) }}{{ '{}-{:02d}'.format('a', 1) }}{{ '%s!' | format('a') }}", "a=1a-01a!"),
        ("{{ xs | selectattr('a', 'equalto', 1) | map(attribute='b') | list }}", "['x']"),
        ("{{ 'aa bb' | wordwrap(2) }}{{ 'a b' | title }}{{ 'a\nb' | indent(2) }}", "aa\nbbA Ba\n  b"),
        ("{{ undefined_thing }}{{ xs is iterable }}{{ xs is mapping }}{{ '\\N{BULLET}\\u00e9' }}", "TrueFalse•é"),
    ],
)
def test_renders_as_templates_expect(source: str, text: str) -> None:
    assert render(source, xs=[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]) == text


def test_variables_arrive_as_they_are(kept: Renderer) -> None:
    value = [{"é\ud800": "\x00\u2028😀", "n": [1.5, -1, None, True, 10**30]}, "long " * 200_000]
    assert kept.render({"x": value}) == str(value)
    many = [{"content": f"{n}"} for n in range(20_000)]
    assert Renderer("{% for m in x %}{{ m.content }},{% endfor %}").render({"x": many}).count(",") == len(many)


def test_the_date_is_the_local_one() -> None:
    before = time.strftime("%Y-%m-%d")
    assert render("{{ strftime_now('%Y-%m-%d') }}") in (before, time.strftime("%Y-%m-%d"))


def test_variables_are_copied_for_each_render(kept: Renderer) -> None:
    grows = Renderer("{% set _ = x.append(1) %}{{ x | length }}")
    given: list[int] = []
    assert [grows.render({"x": given}) for _ in range(3)] == ["1"] * 3
    assert given == []


def test_undeclared_variables() -> None:
    assert Renderer("{% set a = b %}{{ a }}{{ c.d }}").undeclared() == {"b", "c"}
    with pytest.raises(FailureError, match="TemplateSyntaxError"):
        Renderer("{% if %}").undeclared()


def test_a_template_may_refuse() -> None:
    with pytest.raises(RefusalError, match="^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ nothing.at_all }}", "UndefinedError"),
        ("{{ 2 * none }}", "TypeError"),
        ("{{ range(3) | tojson }}", "TypeError"),
        ("{% include 'x' %}", "TypeError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_failure_names_its_kind(source: str, kind: str) -> None:
    with pytest.raises(FailureError, match=kind):
        render(source)


# ---------------------------------------------------------------- forbidden operations


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].x }}",
        "{{ range.__init__.__globals__ }}",
        "{{ (''|attr('__class__')).x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ namespace.mro() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ self.__init__.__globals__ }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    ],
)
def test_python_is_out_of_reach(source: str) -> None:
    with pytest.raises(FailureError, match=r"SecurityError|UndefinedError"):
        render(source)


@linux
def test_a_worker_cannot_open_files_and_has_no_keys_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_TEST_KEY", "secret")
    for worker in list(module._pool._all):
        worker.end()  # the next one starts with this environment
    kept = Renderer("x")
    kept.render({})
    (pid,) = workers()
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == len(os.listdir(f"/proc/{pid}/fd")) == 3
    assert resource.prlimit(pid, resource.RLIMIT_FSIZE)[0] == 0
    kept.close()


# ---------------------------------------------------------------- limits

NEST = "{% set ns = namespace(x=[1], y=[1], s='a') %}{% for i in range(50) %}{% set STEP %}{% endfor %}{{ END }}"


def nest(step: str, end: str) -> str:
    return NEST.replace("STEP", step).replace("END", end)


@pytest.mark.parametrize(
    "source",
    [
        # one C function without end
        "{{ 5 | round(-2000000000) }}",
        "{{ ('a' * 1500000) | wordwrap(1) | length }}",
        # a crash of the interpreter
        "{% set ns = namespace(t=()) %}{% for i in range(100000) %}{% set ns.t = (ns.t,) %}{% endfor %}"
        "{% for i in range(80000) %}{% set ns.t = (ns.t,) %}{% endfor %}{% set x = {ns.t: 1} %}",
        # time
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        nest("ns.x = [ns.x, ns.x]", "ns.x | string | length"),
        # memory
        "{{ 'a' * 10**10 }}",
        "{{ [1] * 10**9 }}",
        "{{ '%(a)3000000000d' % {'a': 1} }}",
        "{{ '%(a)3000000000d' | format(a=1) }}",
        "{{ '{:3000000000}'.format(1) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ ('a' * 20000) | replace(old='a', new='b' * 150000) | length }}",
        "{{ (['a'] * 100000) | join('b' * 100000) }}",
        "{{ [[1] * 1000] | tojson(indent=10000000) }}",
        nest("ns.s = ns.s ~ ns.s", "ns.s"),
        nest("ns.x = [ns.x, ns.x]", "ns.x"),
        # output
        "{% for i in range(100000) %}{% for j in range(1000) %}" + "y" * 100 + "{% endfor %}{% endfor %}",
        "a" * 200_000,
    ],
)
def test_a_template_that_exceeds_a_limit_is_stopped(source: str, kept: Renderer) -> None:
    with pytest.raises(LimitError):
        render(source, seconds=1.0)
    assert kept.render({"x": "on"}) == "on"


def test_the_processor_time_of_a_render_is_limited(monkeypatch: pytest.MonkeyPatch, kept: Renderer) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    monkeypatch.setattr(module, "ELAPSED_FACTOR", 1e6)  # the elapsed time ends nothing here
    with pytest.raises(LimitError, match="too long"):
        render("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
    assert kept.render({"x": "on"}) == "on"


def test_renders_share_a_budget_of_processor_time(kept: Renderer) -> None:
    budget = Budget(60)
    kept.render({"x": 1}, budget=budget)
    assert 0 < budget.left < 60
    with pytest.raises(LimitError, match="too long"):
        kept.render({"x": 1}, budget=Budget(0))


def test_a_worker_that_gets_no_processor_for_a_while_has_time(monkeypatch: pytest.MonkeyPatch, kept: Renderer) -> None:
    """The clock is ahead by a second at each look, as on a machine that is busy with other programs."""
    seconds = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    assert kept.render({"x": "on"}) == "on"


def test_work_in_proportion_to_the_input_is_within_limits() -> None:
    messages = [{"role": "user", "content": "word " * 20_000} for _ in range(20)]
    source = (
        "{% for m in messages %}{% set text = m.content | trim %}{% if '</think>' in text %}"
        "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|' + m.role + '|>' + '\n' + text + '<|end|>' + '\n' }}{% endfor %}{{ messages | tojson }}"
    )
    assert render(source, messages=messages).endswith(json.dumps(messages))


def test_memory_is_watched_where_the_kernel_does_not_limit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setattr(module, "_KERNEL_LIMITS_MEMORY", False)
    monkeypatch.setattr(module, "MEMORY", 100 << 20)
    loops = "{% for i in range(100000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}"
    with pytest.raises(LimitError, match="memory"):
        render("{% set x = 'a' * 200000000 %}" + loops)


def test_a_slow_render_does_not_delay_others() -> None:
    slow = threading.Thread(target=_stopped, args=(3.0,))
    slow.start()
    try:
        assert render("{{ 1 }}", seconds=2.5) == "1"
        assert slow.is_alive()
    finally:
        slow.join()


def _stopped(seconds: float) -> None:
    with pytest.raises(LimitError):
        render("{{ 5 | round(-2000000000) }}", seconds)


# ---------------------------------------------------------------- the worker


LIVES = """
from inference_bridge.chat.templates.renderer import _pool
first, second = Renderer('{{ x }}'), Renderer('{{ x }}{{ x }}')
print(*(first.render({'x': n}) for n in range(3)), second.render({'x': 1}))
(worker,) = _pool._all
first.close()
first.close()
assert worker.running
del second
assert not worker.running and not _pool._all
print(first.render({'x': 'late'}))
assert not _pool._all
"""


def test_a_worker_renders_many_times_and_ends_with_the_last_renderer() -> None:
    done = program(LIVES)
    assert (done.stdout, done.stderr) == ("0 1 2 11\nlate\n", "")


def test_a_worker_that_was_killed_is_replaced(kept: Renderer) -> None:
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert kept.render({"x": 1}) == "1"


def test_many_threads_render_at_once(kept: Renderer) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.extend(kept.render({"x": f"{n}."}) for _ in range(50)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"{n}." for n in range(8) for _ in range(50))
    assert len(workers()) <= 2 + 2


def program(code: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    lines = f"import sys; sys.path[:0] = {sys.path!r}\nfrom inference_bridge.chat.templates.renderer import *\n{code}"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=timeout, check=False)


def test_the_program_exits_immediately_and_does_not_import_jinja() -> None:
    done = program("r = Renderer('{{ 1 }}'); print(r.render({})); print('jinja2' in sys.modules)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\nFalse\n", "")


FORKS = """
import os
r = Renderer('{{ x }}')
r.render({'x': 0})
pid = os.fork()
print(*(r.render({'x': n}) for n in range(3)), flush=True)
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print(r.render({'x': 'on'}))
"""


def test_a_forked_child_starts_its_own_worker() -> None:
    done = program(FORKS)
    assert (done.stdout, done.stderr) == ("0 1 2\n0 1 2\non\n", "")


@linux
@pytest.mark.parametrize("source", ["{{ 1 }}", "{{ 5 | round(-2000000000) }}"])
def test_a_worker_does_not_outlive_the_program(source: str) -> None:
    """An idle worker ends at the end of its input. A busy worker is ended by its timer."""
    done = program(
        "import os, signal, threading, time\n"
        "from inference_bridge.chat.templates import renderer\n"
        f"r = Renderer({source!r})\n"
        "threading.Thread(target=r.render, args=({}, 2.0), daemon=True).start()\n"
        "time.sleep(1)\n"
        "print(*(worker._process.pid for worker in renderer._pool._all), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
