# SPDX-License-Identifier: Apache-2.0
"""A Jinja environment for chat templates out of files that nobody vetted.

`jinja2.sandbox` keeps a template away from Python. What it does not do is bound it:
`'a' * 10**9`, a loop within a loop or a list that holds itself twice, forty times over,
take all memory or all time. Here every render has a `Budget`:

- Time. Each turn of a loop, call, filter and operator looks at the clock.
- Size. Each operation that makes a string or a container pays for it, beforehand where the
  result can be much larger than what went in. So the sum of all that a render makes is
  bounded, and with it memory and output.
- Nesting. A container's size counts what it holds each time it is reached, so that nothing
  small can print, or compare, as something huge.

Loops, displays (`[a, b]`), slices and `~` are compiled to plain Python, which no hook of the
sandbox sees, so `Bounding` rewrites the parsed template: they pass through filters whose
names no template can spell. Methods and filters are those on a list; the rest don't exist.
"""

from __future__ import annotations

import json
import operator
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_SOURCE_LIMIT = 1 << 17
_INT_BITS = 4096
_WIDTH = 1000

_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit "
        "isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip partition removeprefix "
        "removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title "
        "upper".split()
    ),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}

_FILTERS = (
    "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float forceescape format "
    "groupby indent int items join last length list lower map max min reject rejectattr replace reverse round select "
    "selectattr slice sort string striptags sum title trim truncate unique upper urlencode wordcount wordwrap"
).split()

# Those that take a width or a count, and those that make several characters of one, or a list of them.
_NUMBERS = {"batch", "center", "indent", "round", "slice", "wordwrap"}
_GROWING = {"e", "escape", "forceescape", "list", "striptags", "title", "urlencode", "wordcount", "wordwrap"}


class RefusalError(Exception):
    """The template called `raise_exception`: it says what it won't render, and why."""


class LimitError(Exception):
    """The template went beyond the bounds of a render."""


class Budget:
    """What one render may still take: seconds by the clock, characters (a container's slot counts 8)."""

    __slots__ = ("_deadline", "_sizes", "left", "limit", "seconds")

    def __init__(self, seconds: float, characters: int) -> None:
        self.seconds = seconds
        self.limit = self.left = characters
        self._deadline = time.monotonic() + seconds
        self._sizes: dict[int, tuple[Any, int]] = {}

    def pay(self, characters: int) -> None:
        if time.monotonic() > self._deadline:
            raise LimitError(f"it ran for more than {self.seconds:g} s")
        self.left -= characters + 1
        if self.left < 0:
            raise LimitError(f"it made more than {self.limit} characters")

    def made(self, value: Any) -> Any:
        """Pay for a value that an operation made, and give it."""
        if isinstance(value, str):
            self.pay(len(value))
        elif isinstance(value, list | tuple | dict):
            self.pay(8 * len(value) + 64)
            if self.size(value) > self.limit:
                raise LimitError(f"it made a value of more than {self.limit} characters")
        else:
            self.pay(0)
            if isinstance(value, int) and value.bit_length() > _INT_BITS:
                raise LimitError(f"it made a number of more than {_INT_BITS} bits")
        return value

    def size(self, value: Any) -> int:
        """About how many characters `value` prints as. Known containers are not looked into again."""
        if isinstance(value, str):
            return len(value) + 4
        if not isinstance(value, list | tuple | dict):
            return 8
        known = self._sizes.get(id(value))
        if known is None:
            size = 4 + sum(map(self.size, value))
            if isinstance(value, dict):
                size += sum(map(self.size, value.values()))
            # Held, so that no other value gets its id.
            known = self._sizes[id(value)] = (value, size)
        return known[1]


_rendering = threading.local()


def _budget() -> Budget:
    budget: Budget | None = getattr(_rendering, "budget", None)
    return budget if budget is not None else Budget(1.0, 1 << 16)


class Bounding(NodeTransformer):
    """Leads what Jinja compiles to plain Python through filters that pay."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        literal = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        literal += sum(len(data.data) for data in node.body if isinstance(data, nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(literal), "a turn"), lineno=node.lineno))
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "made")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "made")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "made") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "made") if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "joined")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    # The space keeps the name out of a template's reach.
    return nodes.Filter(node, f"{name} ", [], [], None, None, lineno=node.lineno)


@pass_context
def _turn(context: Context, literal: int) -> None:
    _budget().pay(literal)


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget().made(value)


@pass_context
def _joined(context: Context, values: tuple[Any, ...]) -> str:
    budget = _budget()
    budget.pay(sum(map(budget.size, values)))
    return "".join(map(str, values))


class Generation(Extension):
    """Accepts `{% generation %}`, which marks in training what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateNamespace(Namespace):
    """`namespace()` with plain names, that prints as nothing."""

    def __init__(*arguments: Any, **values: Any) -> None:
        self, *given = arguments
        Namespace.__init__(self)
        for name, value in dict(*given, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a namespace can't have the attribute {name!r}")
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_widths(format_spec)
        return super().format_field(value, format_spec)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Renders a chat template within a Budget, with all that Hugging Face's own renderer offers."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=_printed,
            optimized=False,
            cache_size=0,
        )
        self.filters = {name: _bounded(name, FILTERS[name]) for name in _FILTERS}
        self.filters |= {"a turn ": _turn, "made ": _made, "joined ": _joined}
        # Markup would escape what is added to it; a prompt is no HTML.
        self.filters |= {"safe": _bounded("safe", str), "tojson": _bounded("tojson", _to_json)}
        self.globals = {
            "range": self.globals["range"],
            "dict": _make_dict,
            "namespace": TemplateNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def compile_template(self, source: str) -> Callable[[Mapping[str, Any], Budget], str]:
        """The function that renders `source`. Raises jinja2's TemplateError, or another Exception."""
        if len(source) > _SOURCE_LIMIT:
            raise LimitError(f"it is longer than {_SOURCE_LIMIT} characters")
        template = self.from_string(source)

        def render(variables: Mapping[str, Any], budget: Budget) -> str:
            _rendering.budget = budget
            try:
                return template.render(variables)
            finally:
                del _rendering.budget

        return render

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        return super()._generate(Bounding().visit(source), *arguments, **options)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return not isinstance(obj, type) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text = str(value.__self__)

        def wrapped(*arguments: Any, **values: Any) -> str:
            if value.__name__ == "format_map":
                arguments, values = (), dict(*arguments)
            budget = _budget()
            budget.pay(text.count("{") * sum(map(budget.size, (*arguments, *values.values()))))
            return _Formatter(self).vformat(text, arguments, values)

        return wrapped

    def call(self, context: Context, obj: Any, /, *arguments: Any, **values: Any) -> Any:
        budget = _budget()
        budget.pay(0)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and arguments:
            arguments = _paid_method(budget, owner, obj.__name__, arguments)
        elif isinstance(owner, str) and obj.__name__ in ("split", "rsplit", "splitlines"):
            budget.pay(8 * len(owner))
        for argument in (*arguments, *values.values()):
            if isinstance(argument, list | tuple | dict) and budget.size(argument) > budget.limit:
                raise LimitError("it passes too large a value")
        return budget.made(super().call(context, obj, *arguments, **values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget()
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            count, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(count, int) and hasattr(value, "__len__"):
                budget.pay(max(count, 0) * (len(value) if isinstance(value, str) else budget.size(value)))
        elif operator == "+" and isinstance(left, str | list | tuple) and hasattr(right, "__len__"):
            budget.pay(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_percent(left)
            budget.pay(budget.size(right) * left.count("%"))
        bits = [side.bit_length() for side in (left, right) if isinstance(side, int)]
        if operator == "**" and len(bits) == 2 and right > 0:
            bits.append(bits[0] * right)
        if bits and max(bits) > _INT_BITS:
            raise LimitError(f"it computes with a number of more than {_INT_BITS} bits")
        return budget.made(_BINARY[operator](left, right))


_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays."""
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def bounded(context: Context, value: Any, *arguments: Any, **values: Any) -> Any:
        budget = _budget()
        given = (*arguments, *values.values())
        if name in _NUMBERS and any(isinstance(number, int) and number > _WIDTH for number in given):
            raise LimitError(f"it calls {name} with a number above {_WIDTH}")
        if name == "format":
            _check_percent(str(value))
            budget.pay(sum(map(budget.size, given)) * str(value).count("%"))
        elif name == "replace" and isinstance(value, str):
            arguments = _paid_method(budget, value, name, arguments)
        elif name == "join":
            value = list(value)
            budget.pay(sum(map(budget.size, value)) + len(value) * sum(map(budget.size, given)))
        elif name == "indent":
            lines = str(value).count("\n") + 1
            budget.pay(lines * sum(n if isinstance(n, int) else budget.size(n) for n in given))
        elif name == "sum" and any(isinstance(start, list | tuple) for start in given):
            raise LimitError("it sums lists")
        elif name == "string":
            budget.pay(budget.size(value))
        elif name in _GROWING and hasattr(value, "__len__"):
            budget.pay(8 * len(value))
        first = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (context.environment,)}
        result = function(*first.get(passes or "", ()), value, *arguments, **values)
        if isinstance(result, str) and type(result) is not str:
            result = str.__str__(result)  # no Markup, for the reason given at "safe"
        return result if result is value else budget.made(result)

    return bounded


def _paid_method(budget: Budget, text: str, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pay beforehand for a method of a str that can make much of little."""
    if name == "replace" and len(arguments) >= 2 and all(isinstance(part, str) for part in arguments[:2]):
        old, new = arguments[:2]
        budget.pay(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "join":
        joined = list(arguments[0])
        budget.pay(sum(map(budget.size, joined)) + len(text) * len(joined))
        return (joined, *arguments[1:])
    elif name in ("split", "rsplit", "splitlines"):
        separator = arguments[0]
        budget.pay(len(text) + 64 * text.count(separator) if isinstance(separator, str) else 8 * len(text))
    return arguments


def _printed(value: Any) -> Any:
    """What `{{ value }}` prints."""
    budget = _budget()
    if not isinstance(value, str):
        budget.pay(budget.size(value))
        value = str(value)
    budget.pay(len(value))
    return value


def _check_percent(text: str) -> None:
    for spec in re.findall(r"%[^%a-zA-Z]*", text):
        _check_widths(spec)


def _check_widths(spec: str) -> None:
    if "*" in spec or any(int(width) > _WIDTH for width in re.findall(r"\d{1,9}", spec)):
        raise LimitError(f"it formats to a width above {_WIDTH}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not Jinja's own, which escapes for HTML.
    width = len(indent) if isinstance(indent, str) else indent or 0
    if isinstance(value, Undefined):
        raise TemplateRuntimeError("tojson of an undefined value")
    budget = _budget()
    budget.pay(budget.size(value) * (6 if ensure_ascii else 1) * (1 + min(width, _WIDTH) // 2))
    if width > 16 or any(len(separator) > 16 for separator in separators or ()):
        raise LimitError("it writes JSON with too much space")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_no_json
    )


def _no_json(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _make_dict(*arguments: Any, **values: Any) -> dict[Any, Any]:
    return dict(*arguments, **values)


def _raise_exception(message: Any = "") -> str:
    raise RefusalError(str(message)[:2000])


def _strftime_now(format: str) -> str:
    if len(format) > 200:
        raise LimitError("it formats the date with more than 200 characters")
    return datetime.now().astimezone().strftime(format)
