# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError, UndefinedError

from inference_bridge.chat.sandbox import Budget, LimitError, RefusalError, TemplateEnvironment

environment = TemplateEnvironment()


def render(source: str, seconds: float = 30.0, characters: int = 1 << 20, **variables: Any) -> str:
    return environment.compile_template(source)(variables, Budget(seconds, characters))


# ---------------------------------------------------------------- what templates expect


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # trim_blocks, lstrip_blocks
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in [1, 2] if x > 1 %}{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}", "1True"),
        ("{% for x in 'ab' recursive %}{{ x }}{% if loop.depth < 2 %}{{ loop('c') }}{% endif %}{% endfor %}", "acbc"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("{% set ns = namespace(n=0) %}{% for x in range(3) %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ {'a': '<é>', 'b': [1, none, true]} | tojson }}", '{"a": "<é>", "b": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ ('<' | tojson | safe) + '<' }}", '"<"<'),
        ("{{ ('<' | escape) + '<' }}", "&lt;<"),
        ("{{ 'a' ~ 1 ~ none ~ [2] }}", "a1None[2]"),
        ("{{ (1, 2)[0] }}{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}", "1[2, 3]cba"),
        ("{% set a, b = 1, 2 %}{{ a + b }}{% set text %}x{{ a }}{% endset %}{{ text }}", "3x1"),
        ("{% macro m(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}", "1c()12(3,)"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1}.get('b', 2) }}", "a12"),
        ("{{ ' a '.strip() }}{{ 'a-b'.split('-') }}{{ 'x'.join(['a', 'b']) }}", "a['a', 'b']axb"),
        ("{{ ' a  b '.split() }}{{ 'abc'.startswith('ab') }}{{ 'abc'.find('c') }}", "['a', 'b']True2"),
        ("{{ namespace(a=1) }}", "<namespace>"),
        ("{{ 'abc'.replace('b', 'x') }}{{ 'abc' | replace('b', 'x') }}{{ 'a' * 3 }}", "axcaxcaaa"),
        ("{{ '%s=%d' % ('a', 1) }}{{ '{}-{:02d}'.format('a', 1) }}{{ '%s!' | format('a') }}", "a=1a-01a!"),
        ("{{ [3, 1, 2] | sort | join(', ') }}{{ [1, 2] | map('string') | list }}", "1, 2, 3['1', '2']"),
        ("{{ xs | selectattr('a', 'equalto', 1) | map(attribute='b') | list }}", "['x']"),
        ("{{ 'a\nb' | indent(2) }}{{ ' x ' | trim }}{{ 'x' | upper }}{{ nothing | default('d') }}", "a\n  bxXd"),
        ("{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 3 }}{{ -3 | abs }}{{ 1 / 2 }}", "31830.5"),
        ("{{ dict(a=1) }}{{ {'a': 1} | items | list }}{{ {'a': 1} | dictsort }}", "{'a': 1}[('a', 1)][('a', 1)]"),
        ("{{ undefined_thing }}{{ xs is iterable }}{{ xs is mapping }}{{ 'a' in 'abc' }}", "TrueFalseTrue"),
    ],
)
def test_renders_as_templates_expect(source: str, text: str) -> None:
    assert render(source, xs=[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]) == text


def test_tells_the_date() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_a_template_may_refuse() -> None:
    with pytest.raises(RefusalError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_wrong_template_is_a_wrong_template() -> None:
    with pytest.raises(TemplateSyntaxError):
        render("{% if %}")
    with pytest.raises(UndefinedError):
        render("{{ nothing.at_all }}")
    with pytest.raises(TemplateRuntimeError, match="tojson of an undefined value"):
        render("{{ nothing | tojson }}")
    with pytest.raises(TypeError, match="range has no JSON form"):
        render("{{ range(3) | tojson }}")
    with pytest.raises(TypeError, match="NoneType"):
        render("{{ 2 * none }}")


# ---------------------------------------------------------------- what no template may


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
        "{{ xs.append(1) }}",
        "{{ xs[0].update({'c': 1}) }}",
        "{{ 'a'.ljust(10) }}",
        "{{ (1).to_bytes(10, 'big') }}",
        "{{ 'a'.encode() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(__x=1) %}",
        "{{ self.__init__.__globals__ }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    ],
)
def test_python_is_out_of_reach(source: str) -> None:
    with pytest.raises((SecurityError, TemplateSyntaxError)):
        render(source, xs=[{"a": 1}])


@pytest.mark.parametrize("source", ["{{ lipsum() }}", "{{ cycler(1) }}", "{{ 1 | pprint }}", "{% include 'x' %}"])
def test_what_no_chat_template_needs_is_not_there(source: str) -> None:
    with pytest.raises(Exception, match="undefined|No filter|no loader"):
        render(source)


# ---------------------------------------------------------------- bounds

GROW = "{% set ns = namespace(x='a', y=[1], z=[1]) %}{% for i in range(1000) %}{% set STEP %}{% endfor %}{{ END }}"


def grow(step: str, end: str = "ns.x") -> str:
    return GROW.replace("STEP", step).replace("END", end)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [1] * 10**9 }}",
        "{{ ['a' * 1000] * 10**6 }}",
        grow("ns.x = ns.x + ns.x"),
        grow("ns.x = ns.x ~ ns.x"),
        grow("ns.x = ns.x * 2"),
        grow("ns.x = ns.x.replace('a', 'aa')"),
        grow("ns.x = ns.x | replace('a', 'aa')"),
        grow("ns.x = '%s%s' % (ns.x, ns.x)"),
        grow("ns.x = '{0}{0}'.format(ns.x)"),
        grow("ns.x = [ns.x, ns.x] | join"),
        grow("ns.x = ns.x.join([ns.x, ns.x])"),
        grow("ns.x = (ns.x | string) ~ (ns.x | upper)"),
        grow("ns.y = ns.y + ns.y"),
        grow("ns.y = [ns.y, ns.y]", "ns.y"),
        grow("ns.y = (ns.y, ns.y)", "{ns.y: 1}"),
        grow("ns.y = {'a': ns.y, 'b': ns.y}", "ns.y | tojson"),
        grow("ns.y = dict(a=ns.y, b=ns.y)", "ns.y | string"),
        "{% set ns = namespace(y=[1], z=[1]) %}{% for i in range(1000) %}{% set ns.y = [ns.y, ns.y] %}"
        "{% set ns.z = [ns.z, ns.z] %}{% endfor %}{{ ns.y == ns.z }}",
        "{% set ns = namespace(y=[1]) %}{% macro m() %}{% set ns.y = varargs %}{% endmacro %}"
        "{% for i in range(1000) %}{{ m(ns.y, ns.y) }}{% endfor %}{{ ns.y }}",
        "{% set x %}{% for i in range(100000) %}" + "y" * 10_000 + "{% endfor %}{% endset %}{{ x }}",
        "{% for i in range(100000) %}{{ 'y' * 1000 }}{% endfor %}",
        "{% macro m() %}{% for i in range(100000) %}" + "y" * 10_000 + "{% endfor %}{% endmacro %}{{ m() }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a' | indent(10**9) }}",
        "{{ ('\\n' * 10000) | indent('a' * 10000) }}",
        "{{ 'a' | wordwrap(10**9) }}",
        "{{ [1] | batch(10**9, 'x') | list }}",
        "{{ [1] | slice(10**9) | list }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=1000000000) }}",
        "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('b' * 100000).join(['a'] * 100000) }}",
        "{{ (['a'] * 100000) | join('b' * 100000) }}",
        "{{ ('a ' * 500000).split() }}",
        "{{ ('a' * 1000000) | list }}",
        "{{ ([['x'] * 1000] * 100) | tojson(indent=100000) }}",
        "{{ [1] | tojson(separators=('a' * 100000, ':')) }}",
        "{{ 2 ** 100000 }}",
        "{{ 1.5 | round(100000) }}",
        "{% set ns = namespace(x=9) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ ('f' * 100000) | int(0, 16) }}",
        "{{ ([['x']] * 1000) | sum(start=[]) }}",
        "{{ strftime_now('%A' * 1000) }}",
        "{{ x }}" * 30_000,
    ],
)
def test_size_is_bounded(source: str) -> None:
    with pytest.raises(LimitError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) if j < 0 %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_time_is_bounded(source: str) -> None:
    with pytest.raises(LimitError, match=r"ran for more than 0\.05 s"):
        render(source, seconds=0.05, characters=1 << 40)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ a" + "|e" * 20_000 + " }}",
    ],
)
def test_depth_is_bounded(source: str) -> None:
    with pytest.raises((RecursionError, LimitError)):
        render(source)


def test_honest_work_on_much_input_fits() -> None:
    """Several passes over a long conversation, as templates make them, stay within 32 times its size."""
    content = "word " * 20_000
    messages = [{"role": "user", "content": content} for _ in range(10)]
    source = (
        "{% for m in messages %}{% set text = m.content | trim %}{% if '</think>' in text %}"
        "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|' + m.role + '|>' + '\n' + text + '<|end|>' + '\n' }}{% endfor %}{{ messages | tojson }}"
    )
    text = render(source, characters=(1 << 24) + 32 * len(content) * 10, messages=messages)
    assert text.endswith(json.dumps(messages, ensure_ascii=False))


def test_renders_don_t_share_a_budget() -> None:
    template = environment.compile_template("{{ 'a' * 1000 }}")
    for _ in range(100):
        assert len(template({}, Budget(30.0, 4000))) == 1000
