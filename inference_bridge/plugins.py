# SPDX-License-Identifier: Apache-2.0
"""Find plugins and call their hooks, one plugin at a time, so that a failing plugin does not affect the others."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .backend import Backend

GROUP = "inference_bridge"
"""The group of the plugins' entry points."""

_BUILT_IN = ("inference_bridge.backends",)


def new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("inference_bridge")
    manager.add_hookspecs(hookspecs)
    return manager


def load(manager: pluggy.PluginManager, register: Callable[[Backend], None]) -> None:
    """Load the built-in backends, then the installed plugins sorted by name.

    Args:
        manager: The plugin manager.
        register: Called with each backend of a plugin.
    """
    for name, find in _found():
        plugin = None
        try:
            plugin = find()
            manager.register(plugin, name)
            manager.check_pending()  # raises for an unknown hook: its name is probably misspelled
            _call(manager, plugin, "register_backends", register=register)
        except (Exception, SystemExit) as error:
            if plugin is not None and manager.get_name(plugin) == name:
                manager.unregister(plugin)
            _report(f"plugin {name!r} was skipped", error)


def model_directories(manager: pluggy.PluginManager) -> list[str]:
    """Return the directories that the `model_directories` hooks of the plugins return."""
    directories: list[str] = []
    for name, plugin in manager.list_name_plugin():
        try:
            for answer in _call(manager, plugin, "model_directories"):
                if isinstance(answer, str | os.PathLike):
                    answer = [answer]
                directories += [os.path.expanduser(os.fspath(path)) for path in answer]
        except Exception as error:
            _report(f"the model directories of plugin {name!r} were skipped", error)
    return directories


def _found() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each plugin and a function that imports it."""
    for module in _BUILT_IN:
        yield module, lambda module=module: importlib.import_module(module)  # type: ignore[misc]

    listed = os.environ.get("INFERENCE_BRIDGE_LOAD_PLUGINS")
    wanted = None if listed is None else {_normal(name) for name in listed.split(",") if name.strip()}
    if wanted is not None and not wanted:
        return

    seen = set()
    for distribution, entry in _installed():
        seen.add(distribution)
        if wanted is None or distribution in wanted:
            yield f"{distribution}:{entry.name}", entry.load
    for name in sorted((wanted or set()) - seen):
        _report(f"INFERENCE_BRIDGE_LOAD_PLUGINS names {name!r}", "no plugin of that distribution is installed")


def _installed() -> list[tuple[str, EntryPoint]]:
    """Return the plugins' entry points, each with the normalised name of its distribution, sorted."""
    from importlib.metadata import distributions, entry_points

    found: list[tuple[str, EntryPoint]] = []
    try:
        for entry in entry_points(group=GROUP):
            found.append((_normal(entry.dist.name if entry.dist else ""), entry))
    except Exception:  # one distribution is damaged: the others are read one by one
        found.clear()
        seen: set[str] = set()
        for distribution in distributions():
            name = "a distribution"
            try:
                name = _normal(distribution.name)
                entries = () if name in seen else distribution.entry_points.select(group=GROUP)
                seen.add(name)
                found += [(name, entry) for entry in entries]
            except Exception as error:
                _report(f"the plugins of {name} in {distribution.locate_file('')} were skipped", error)
    return sorted(found, key=lambda one: (one[0], one[1].name, one[1].value))


def _normal(name: str) -> str:
    """Return the normalised name of a distribution (PyPA's name normalisation)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _call(manager: pluggy.PluginManager, plugin: Any, hook: str, **arguments: Any) -> list[Any]:
    others = [other for other in manager.get_plugins() if other is not plugin]
    answers: list[Any] = manager.subset_hook_caller(hook, others)(**arguments)
    return answers


def _report(what: str, why: BaseException | str) -> None:
    import logging
    import warnings

    reason = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
    trace = why if isinstance(why, BaseException) else None
    logging.getLogger("inference_bridge").error("%s: %s", what, reason, exc_info=trace)
    warnings.warn(f"{what}: {reason}", RuntimeWarning, stacklevel=2)
