# SPDX-License-Identifier: Apache-2.0
"""The program of the process in which chat templates render: reads requests, writes replies, until its input ends.

`renderer` starts it, as a script: it imports nothing of this package, and of others only
Jinja2. A template comes from a model's file, which nobody has vetted, so the process limits
itself through the kernel before it reads one, and again for each request:

- a timer ends the process, whatever it is doing
- address space is limited, so a template can't take the machine's memory (Linux; elsewhere
  the parent watches how much it takes)
- no file, socket or process can be opened, and nothing can be written to a file

A request is JSON behind its length, a reply a status and text behind theirs (see `_HEADER`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

REQUEST = struct.Struct(">Q")
REPLY = struct.Struct(">BQ")
DONE, REFUSED, FAILED, LIMIT = range(4)

_CACHED = 8
_ERROR_LENGTH = 2000


class RefusalError(Exception):
    """The template called `raise_exception`."""


class LimitError(Exception):
    """The output is too long."""


def environment() -> Any:
    """Jinja2 as Hugging Face's transformers sets it up for chat templates.

    Except that a template may change the lists and mappings it holds: they are copies that
    live for one render, and some templates keep a list that they append to.
    """
    from jinja2.ext import Extension
    from jinja2.sandbox import SandboxedEnvironment

    class Generation(Extension):
        """Accepts `{% generation %}`, which marks in training what the assistant wrote."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    made = SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation], cache_size=0
    )
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any = "") -> str:
    raise RefusalError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


class Renderer:
    """Renders templates, and keeps the last ones compiled."""

    def __init__(self) -> None:
        self._environment = environment()
        self._compiled: dict[str, Any] = {}

    def render(self, source: str, variables: Mapping[str, Any], characters: int) -> str:
        template = self._template(source)
        pieces = []
        left = characters
        for piece in template.generate(variables):
            left -= len(piece)
            if left < 0:
                raise LimitError(f"it wrote more than {characters} characters")
            pieces.append(piece)
        return "".join(pieces)

    def undeclared(self, source: str) -> str:
        """The names of the variables that the template reads and doesn't set, as a JSON list."""
        from jinja2.meta import find_undeclared_variables

        self._template(source)
        return json.dumps(sorted(find_undeclared_variables(self._environment.parse(source))))

    def _template(self, source: str) -> Any:
        found = self._compiled.pop(source, None)
        if found is None:
            found = self._environment.from_string(source)
            while len(self._compiled) >= _CACHED:
                del self._compiled[next(iter(self._compiled))]
        self._compiled[source] = found
        return found


def answer(renderer: Renderer, request: Mapping[str, Any]) -> tuple[int, str]:
    """The reply to one request: a status, and the text that belongs to it."""
    try:
        if "variables" in request:
            return DONE, renderer.render(request["source"], request["variables"], request["characters"])
        return DONE, renderer.undeclared(request["source"])
    except RefusalError as error:
        return REFUSED, str(error)[:_ERROR_LENGTH]
    except LimitError as error:
        return LIMIT, str(error)
    except MemoryError:
        return LIMIT, "it needed too much memory"
    except RecursionError:
        return FAILED, "RecursionError: it calls itself without end, or is nested too deeply"
    except Exception as error:
        try:
            return FAILED, f"{type(error).__name__}: {error}"[:_ERROR_LENGTH]
        except Exception:
            return FAILED, type(error).__name__


# ---------------------------------------------------------------- the process


def _limit(name: str, value: int) -> None:
    import resource

    kind = getattr(resource, name, None)
    if kind is None:
        return
    with contextlib.suppress(ValueError, OSError):  # a system that doesn't have this limit
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _confine() -> None:
    """Give up what no template needs. Imports come first, for no file can be opened afterwards."""
    import time
    from importlib import import_module

    # What Jinja2 imports only when it is needed, and its strings with \N{…}.
    for name in ("jinja2.debug", "jinja2.meta", "jinja2.constants", "pprint", "textwrap", "unicodedata"):
        import_module(name)
    b"\\N{SPACE}".decode("unicode_escape")
    time.tzset()
    datetime.now().astimezone()
    _limit("RLIMIT_NOFILE", 3)
    _limit("RLIMIT_FSIZE", 0)
    _limit("RLIMIT_NPROC", 0)
    _limit("RLIMIT_CORE", 0)


def _read(length: int) -> bytes:
    parts = []
    while length:
        part = os.read(0, min(length, 1 << 20))
        if not part:
            os._exit(0)  # the parent has closed its end, or has ended
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(status: int, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    view = memoryview(REPLY.pack(status, len(data)) + data)
    while view:
        view = view[os.write(1, view) :]


def main() -> None:
    # Ctrl-C is for the program that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path += sys.argv[1:]
    renderer = Renderer()
    _confine()
    gc.freeze()
    while True:
        (length,) = REQUEST.unpack(_read(REQUEST.size))
        request = json.loads(_read(length).decode("utf-8", "surrogatepass"))
        # The kernel ends the process when the timer does, in the midst of a C function too, and without a parent.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        memory = request["memory"]  # None: the parent watches it
        if memory is not None:
            _limit("RLIMIT_AS", memory)
        status, text = answer(renderer, request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if memory is not None:
            _limit("RLIMIT_AS", memory * 2)  # the reply takes memory too
        _write(status, text)
        if status == LIMIT:
            os._exit(0)  # it may be short of memory: the next request finds a new process


if __name__ == "__main__":
    main()
