# SPDX-License-Identifier: Apache-2.0
"""The command `doctor`: what works on this machine. It imports no engine and loads no model."""

from __future__ import annotations

import glob
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import click

from .. import registry
from ..availability import bridge_command, install_command
from ..catalog import config, discovery
from ..errors import printable
from . import tables

_PACKAGES = "inference-bridge llm langchain-core httpx2 llama-cpp-python mlx mlx-lm xllamacpp llguidance".split()


def examine() -> dict[str, Any]:
    backends = [_backend(name) for name in registry.names()]
    places = discovery.default_directories(registry.model_directories())
    found = discovery.discover()
    settings = config.load()
    return {
        "works": any(backend["available"] and not backend["only_when_named"] for backend in backends),
        "backends": backends,
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "configuration": {"path": settings.path, "problems": [_problem(one) for one in _problems(settings)]},
        "directories": [{"path": place, "exists": os.path.isdir(place)} for place in places],
        "models": {"found": len(found), "with_problems": sum(model.problem is not None for model in found)},
    }


def report(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        tables.show_json(found)
        return
    tables.title("Backends")
    tables.show(["NAME", "WORKS", "WHY NOT, AND WHAT TO DO"], [_row(backend) for backend in found["backends"]])
    click.echo()
    tables.title("Machine")
    tables.show(["", ""], list(found["machine"].items()))
    click.echo()
    tables.title("Versions")
    tables.show(["", ""], list(found["versions"].items()))
    click.echo()
    tables.title("Directories searched for models")
    places = [(place["path"], "" if place["exists"] else "missing") for place in found["directories"]]
    tables.show(["", ""], places or [("none: none of the usual ones exists", "")])
    settings, models = found["configuration"], found["models"]
    click.echo(f"\nConfiguration: {settings['path']}")
    for problem in settings["problems"]:
        click.echo(f"  {problem['text']}")
    listed = f"(see `{bridge_command('models')}`)"
    click.echo(f"Models found: {models['found']}, with problems: {models['with_problems']} {listed}")
    if not models["found"]:
        from .models.recommended import advice

        click.echo(advice())
    if not found["works"]:
        click.echo(f"No backend can run here. To install one, without a compiler: {install_command('server')}")


def _problems(settings: config.Config) -> Iterator[config.Problem]:
    """Yield the mistakes in the configuration file, and what it names that is missing or can't be loaded."""
    from .models import checks

    yield from settings.problems
    wrong: list[tuple[tuple[str, ...], str]] = []
    for name, entry in settings.models.items():
        if problem := checks.problem_of(entry):
            wrong.append((("models", name), problem))
    wrong += [
        ((key,), f"there is no file {path}") for key, path in settings.programs.items() if not os.path.exists(path)
    ]
    for key, message in wrong:
        yield config.Problem(settings.path, ".".join(key), message, *config.position(settings.path, key))


def _problem(one: config.Problem) -> dict[str, Any]:
    place = f"line {one.line}, column {one.column}" if one.line else ""
    text = ": ".join(filter(None, (place, one.key, printable(one.message))))
    return {"key": one.key, "line": one.line, "column": one.column, "message": one.message, "text": text}


def _backend(name: str) -> dict[str, Any]:
    backend = registry.get(name)
    told = registry.availability(backend)
    return {
        "name": name,
        "available": bool(told),
        "reason": told.reason,
        "hint": told.hint,
        "only_when_named": backend.only_when_named,
    }


def _row(backend: dict[str, Any]) -> list[str]:
    if backend["available"]:
        named = f"used only when named, as in {backend['name']}:MODEL" if backend["only_when_named"] else ""
        return [backend["name"], "yes", named]
    return [backend["name"], "no", ". ".join(filter(None, (backend["reason"].rstrip("."), backend["hint"])))]


def _versions() -> Iterator[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


# ---------------------------------------------------------------- the machine


def _machine() -> dict[str, str]:
    cores = f"{os.cpu_count()} logical"
    memory = ""
    try:
        from ..engine.hardware import available_memory, physical_cores
    except ModuleNotFoundError:  # psutil is installed with an engine
        memory = "not known (psutil is not installed)"
    else:
        cores += f", {physical_cores()} used for a model"
        memory = f"{tables.size(available_memory())} free"
    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": cores,
        "memory": memory,
        "GPUs": ", ".join(_gpus()) or "none found",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:  # pragma: no cover - only Linux has /proc
        named = ""
    return named or platform.processor() or platform.machine()


def _gpus() -> Iterator[str]:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        yield "Apple (Metal)"
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        with open(path, encoding="utf-8", errors="replace") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("Model:")), "")
        yield model or "NVIDIA"
    try:
        from ..backends.llama_server.amd_gpus import gpus

        for gpu in gpus():
            yield f"AMD {gpu.name} ({tables.size(gpu.vram_total)}{', integrated' if gpu.integrated else ''})"
    except OSError:
        return
