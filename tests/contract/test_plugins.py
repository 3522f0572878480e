# SPDX-License-Identifier: Apache-2.0
"""Plugins as installed distributions with an entry point, each in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

ECHO = """
from collections.abc import Iterator
from inference_bridge import Availability, Backend, ModelInfo, Request, TextModel, Token, hookimpl

class Echo(TextModel):
    model_type = "echo"
    info = ModelInfo(architecture="echo")
    capabilities = frozenset()

    def _run(self, request: Request) -> Iterator[Token]:
        yield Token(request.prompt)

    def close(self) -> None:
        pass

class EchoBackend(Backend):
    name = "echo"

    def availability(self):
        return Availability(True)

    def can_load(self, source):
        return True

    def load_model(self, source, config):
        return Echo()

@hookimpl
def register_backends(register):
    register(EchoBackend())
"""

HOOK = "from inference_bridge import hookimpl\n@hookimpl\n"

# The code that every probe below runs: it prints the outcome of `code`, and all warnings.
PROBE = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import inference_bridge as ib
    answer = None
    {code}
print(json.dumps({{"answer": answer, "warnings": [f"{{w.category.__name__}}: {{w.message}}" for w in caught]}}))
"""


class Site:
    """A directory of installed distributions, and programs that run with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def install(self, distribution: str, code: str, *, module: str = "", entry: str = "") -> None:
        module = module or distribution.replace("-", "_").lower()
        (self.path / f"{module}.py").write_text(code, encoding="utf-8")
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[inference_bridge]\n{entry or module} = {module}\n")

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(self.path), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": paths} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def probe(self, code: str, **environment: str) -> tuple[Any, list[str]]:
        done = self.run(PROBE.format(code=code), **environment)
        assert done.returncode == 0, done.stderr
        out = json.loads(done.stdout)
        return out["answer"], out["warnings"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_an_installed_plugin_is_found_and_used(site: Site) -> None:
    site.install("llm-echo", ECHO)
    answer, warnings = site.probe("answer = [ib.names()[-1], ib.load_model('echo:x').generate('hello').text()]")
    assert answer == ["echo", "hello"]
    assert not warnings


def test_plugins_are_loaded_at_the_first_use_of_the_registry(site: Site) -> None:
    site.install("echo", ECHO + "\nimport sys; sys.modules['echo_was_loaded'] = sys\n")
    code = "ib.TextModel; ib.load_model; answer = [m in sys.modules for m in ('echo', 'inference_bridge.backends')]"
    assert site.probe(code) == ([False, False], [])
    assert site.probe("ib.names(); answer = 'echo' in sys.modules") == (True, [])


def test_the_built_in_backends_come_first(site: Site) -> None:
    site.install("aaa", ECHO)
    names, _ = site.probe("answer = ib.names()")
    assert names.index("llama_cpp") < names.index("echo")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_engine", "ModuleNotFoundError: No module named 'no_such_engine'"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (HOOK + "def register_backends(register): raise ValueError('no!')", "ValueError: no!"),
        (HOOK + "def register_backends(register): register('backend')", "TypeError: register() takes a Backend"),
        (HOOK + "def register_backends(registry): pass", "PluginValidationError"),
        (HOOK + "def register_backend(register): pass", "unknown hook"),
    ],
    ids=["import", "syntax", "exit", "hook", "no backend", "arguments", "misspelt"],
)
def test_a_plugin_that_fails_is_reported_and_skipped(site: Site, code: str, reason: str) -> None:
    site.install("bad-plugin", code)
    site.install("echo", ECHO)
    names, warnings = site.probe("answer = ib.names()")
    assert {"llama_cpp", "echo"} <= set(names)
    assert len(warnings) == 1
    assert "RuntimeWarning: plugin 'bad-plugin:bad_plugin' was skipped: " in warnings[0]
    assert reason in warnings[0]


def test_a_failing_plugin_is_in_the_log_with_its_traceback(site: Site) -> None:
    site.install("bad", "import no_such_engine")
    done = site.run("import inference_bridge; inference_bridge.names()", INFERENCE_BRIDGE_LOG="info")
    assert "ERROR inference_bridge: plugin 'bad:bad' was skipped" in done.stderr
    assert "Traceback" in done.stderr
    quiet = site.run("import inference_bridge; inference_bridge.names()")
    assert "Traceback" not in quiet.stderr
    assert quiet.stderr.count("no_such_engine") == 1


def test_plugins_can_be_chosen_by_their_distribution(site: Site) -> None:
    site.install("Echo.Plugin", ECHO, module="echo_plugin")
    site.install("bad", "import no_such_engine")
    code = "answer = 'echo' in ib.names()"
    assert site.probe(code, INFERENCE_BRIDGE_LOAD_PLUGINS="") == (False, [])
    assert site.probe(code, INFERENCE_BRIDGE_LOAD_PLUGINS=" echo_plugin,") == (True, [])
    answer, warnings = site.probe(code, INFERENCE_BRIDGE_LOAD_PLUGINS="echo-plugin,ehco")
    assert answer is True
    assert "INFERENCE_BRIDGE_LOAD_PLUGINS names 'ehco': no plugin of that distribution is installed" in warnings[0]


def test_a_damaged_distribution_is_reported_and_no_other_is_lost(site: Site) -> None:
    site.install("echo", ECHO)
    site.install("broken", "")
    (site.path / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(b"[inference_bridge]\nmine = \xff\xfe\n")
    names, warnings = site.probe("answer = ib.names()")
    assert {"llama_cpp", "echo", "llm"} <= set(names)
    assert len(warnings) == 1
    assert "broken" in warnings[0]
    assert "UnicodeDecodeError" in warnings[0]


def test_the_first_installation_of_a_distribution_counts(site: Site, tmp_path: Path) -> None:
    site.install("My_Plugin", ECHO)
    second = Site(tmp_path / "second")
    second.install("my.plugin", "import no_such_engine")
    names, warnings = site.probe(f"import sys; sys.path.append({str(second.path)!r}); answer = ib.names()")
    assert "echo" in names
    assert not warnings


def test_a_backend_registered_by_the_program_takes_precedence_and_both_are_named(site: Site) -> None:
    site.install("echo", ECHO)
    code = """
    import echo
    class Mine(echo.EchoBackend): pass
    class MyLlama(echo.EchoBackend): name = "llama_cpp"
    ib.register(Mine())
    ib.register(MyLlama())
    answer = [type(ib.get(name)).__name__ for name in ("echo", "llama_cpp")]
    """
    answer, warnings = site.probe("\n    ".join(line.strip() for line in code.strip().splitlines()))
    assert answer == ["Mine", "MyLlama"]
    assert [warning.removeprefix("RuntimeWarning: ") for warning in warnings] == [
        "backend 'echo': __main__.Mine replaces echo.EchoBackend",
        "backend 'llama_cpp': __main__.MyLlama replaces inference_bridge.backends.llama_cpp.backend.LlamaCppBackend",
    ]


def test_a_plugin_may_use_the_registry_while_it_is_loaded(site: Site) -> None:
    site.install(
        "echo", ECHO.replace("@hookimpl", "import inference_bridge\ninference_bridge.register(EchoBackend())\n")
    )
    names, warnings = site.probe("answer = ib.names()")
    assert "echo" in names
    assert not warnings


def test_threads_that_come_first_together_load_plugins_once(site: Site) -> None:
    site.install("echo", ECHO + "\nimport time; time.sleep(0.05); print('loaded')")
    code = """
import threading, inference_bridge
start = threading.Barrier(8)
def use():
    start.wait()
    assert "echo" in inference_bridge.names()
threads = [threading.Thread(target=use) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    done = site.run(code)
    assert done.stdout == "loaded\n"
    assert not done.stderr


def test_interrupted_loading_starts_afresh(site: Site) -> None:
    site.install("echo", "import os\nif os.environ.pop('INTERRUPT', ''): raise KeyboardInterrupt\n" + ECHO)
    code = """
import inference_bridge
try:
    inference_bridge.names()
except KeyboardInterrupt:
    print("interrupted")
print("echo" in inference_bridge.names())
"""
    done = site.run(code, INTERRUPT="1")
    assert done.stdout.split() == ["interrupted", "True"]
    assert not done.stderr


# ---------------------------------------------------------------- model_directories


def _directories(body: str) -> str:
    return f"{HOOK}def model_directories():\n    {body}\n"


def test_model_directories_of_all_plugins(site: Site) -> None:
    site.install("a-list", _directories("return ['~/one', '/two']"))
    site.install("b-path", _directories("import pathlib; return pathlib.Path('/three')"))
    site.install("c-raises", _directories("raise OSError('disk on fire')"))
    site.install("d-nonsense", _directories("return [4]"))
    site.install("e-nothing", "")
    directories, warnings = site.probe("from inference_bridge import registry; answer = registry.model_directories()")
    assert sorted(directories) == sorted([os.path.expanduser("~/one"), "/two", "/three"])
    assert len(warnings) == 2
    assert "the model directories of plugin 'c-raises:c_raises' were skipped: OSError: disk on fire" in warnings[0]
    assert "the model directories of plugin 'd-nonsense:d_nonsense' were skipped: TypeError" in warnings[1]


def test_discovery_looks_where_plugins_say(site: Site, tmp_path: Path, demo_model_path: Path) -> None:
    store = tmp_path / "store" / "deep"
    store.mkdir(parents=True)
    (store / "mine.gguf").write_bytes(demo_model_path.read_bytes()[: 1 << 20])  # damaged, but there
    site.install("store", _directories(f"return {str(tmp_path / 'store')!r}"))
    found, _ = site.probe("answer = [model.path for model in ib.discover() if model.name == 'mine']")
    assert found == [str(store / "mine.gguf")]
