# SPDX-License-Identifier: Apache-2.0
"""The hooks are public: plugins of other packages implement them."""

from __future__ import annotations

import inspect
import re
import textwrap
from types import ModuleType

import inference_bridge as ib
from inference_bridge import hookspecs, plugins


def test_the_hooks_and_their_arguments() -> None:
    specified = {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(hookspecs).items()
        if hasattr(value, "inference_bridge_spec")
    }
    assert specified == {"register_backends": ["register"], "model_directories": []}


def test_hookimpl_is_exported() -> None:
    assert ib.hookimpl is hookspecs.hookimpl
    assert ib.hookimpl.project_name == plugins.new_manager().project_name == "inference_bridge"


def test_the_example_in_the_documentation_works() -> None:
    assert hookspecs.__doc__
    (example,) = re.findall(r"^    from inference_bridge(?:.*\n)+?(?=\n?\S)", hookspecs.__doc__, re.MULTILINE)
    plugin = ModuleType("example")
    exec(textwrap.dedent(example), vars(plugin))  # noqa: S102 - our own text
    backend = plugin.EchoBackend
    assert issubclass(backend, ib.Backend)
    backend.__abstractmethods__ = frozenset()  # the example leaves them out

    manager = plugins.new_manager()
    manager.register(plugin)
    manager.check_pending()
    registered: list[ib.Backend] = []
    manager.hook.register_backends(register=registered.append)
    assert [one.name for one in registered] == ["echo"]


def test_an_implementation_may_leave_arguments_out() -> None:
    called = []

    class Plugin:
        @ib.hookimpl
        def register_backends(self) -> None:
            called.append(self)

    manager = plugins.new_manager()
    manager.register(plugin := Plugin())
    manager.check_pending()
    manager.hook.register_backends(register=ib.register)
    assert called == [plugin]


def test_the_specification_is_short_enough_to_be_the_documentation() -> None:
    assert len(inspect.getsource(hookspecs).splitlines()) <= 60
