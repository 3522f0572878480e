# SPDX-License-Identifier: Apache-2.0
"""The program of the process that renders chat templates: it reads requests and writes replies until its input ends.

`renderer` starts it as a script. It does not import this package; the only other package that it imports is
Jinja2. A template comes from a model's file and is not trusted. So the kernel limits the process; the
limits are set before it reads a template, and those of time and memory again for each request:

- timers of processor time and of elapsed time end the process, whatever it is doing
- the address space is limited, so a template can't use up the machine's memory (on Linux;
  elsewhere the parent process measures the worker's memory)
- no file, socket or process can be opened, and nothing can be written to a file

A request is the length of a JSON text (`REQUEST`), then the text. A reply is a status, the seconds of processor time
that the request took, and the length of a text (`REPLY`), then the text.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

REQUEST = struct.Struct(">Q")
REPLY = struct.Struct(">BdQ")
DONE, REFUSED, FAILED, LIMIT = range(4)

_CACHED = 8
_ERROR_LENGTH = 2000


class RefusalError(Exception):
    """The template called `raise_exception`."""


class LimitError(Exception):
    """The output is too long."""


def environment() -> Any:
    """Return Jinja2's environment, set up as Hugging Face's transformers does for chat templates.

    One difference: a template may change the lists and mappings that it is given, because some
    templates append to a list. They are copies, made for one render.
    """
    from jinja2.ext import Extension
    from jinja2.sandbox import SandboxedEnvironment

    class Generation(Extension):
        """Accepts `{% generation %}`, with which training marks the assistant's text."""

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
    """Renders templates, and caches the compiled form of the last ones."""

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
        """Return a JSON list of the variables that the template reads but doesn't set."""
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
    """Return the reply to one request: a status, and the result or a message that explains the status."""
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
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _confine() -> None:
    """Import the modules that templates may need, then drop the permissions that no template needs.

    Afterwards no file can be opened, so no module can be imported.
    """
    from importlib import import_module

    # Modules that Jinja2 imports only when it needs them, and unicodedata for \N{…} in its strings.
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


def _write(status: int, seconds: float, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    view = memoryview(REPLY.pack(status, seconds, len(data)) + data)
    while view:
        view = view[os.write(1, view) :]


def main() -> None:
    # Only the program that started this one handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path += sys.argv[1:]
    renderer = Renderer()
    _confine()
    gc.freeze()
    while True:
        (length,) = REQUEST.unpack(_read(REQUEST.size))
        request = json.loads(_read(length).decode("utf-8", "surrogatepass"))
        # When a timer expires, the kernel ends the process: even inside a C function, and if the parent has ended.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        signal.setitimer(signal.ITIMER_PROF, request["processor_seconds"])
        memory = request["memory"]  # None: the parent measures it
        if memory is not None:
            _limit("RLIMIT_AS", memory)
        # The time of the only thread: while ITIMER_PROF runs, Linux updates the time of the process only now and then.
        begun = time.thread_time()
        status, text = answer(renderer, request)
        seconds = time.thread_time() - begun
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if memory is not None:
            _limit("RLIMIT_AS", memory * 2)  # encoding the reply takes memory too
        _write(status, seconds, text)
        if status == LIMIT:
            os._exit(0)  # memory may be short here, so the next request gets a new process


if __name__ == "__main__":
    main()
