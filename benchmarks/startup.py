# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of imports: `llm --help` with and without the plugin, and `import inference_bridge`.

Each run is a separate process. The times of whole llm processes vary by more than the plugin costs, so loading the
plugin is also timed within one process, after llm's own imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns

LLM = [sys.executable, "-m", "llm"]

# What llm does with a plugin before it runs a command.
LOAD_PLUGIN = """
import importlib.metadata, time
import click, llm.cli, llm.plugins
begin = time.perf_counter()
for entry_point in importlib.metadata.distribution("inference-bridge").entry_points:
    if entry_point.group == "llm":
        plugin = entry_point.load()
        llm.plugins.pm.register(plugin, entry_point.name)
        if hasattr(plugin, "register_commands"):
            plugin.register_commands(click.Group())
print((time.perf_counter() - begin) * 1000)
"""


def whole(command: list[str], **environment: str) -> Callable[[], float]:
    """Return a measurement of a process from its start to its end, in milliseconds."""

    def measure() -> float:
        begin = time.perf_counter()
        subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - begin) * 1000

    return measure


def inside(code: str, **environment: str) -> Callable[[], float]:
    """Return a measurement that `code` takes and prints in a new process."""

    def measure() -> float:
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)

    return measure


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="runs of each (default 15, at least 2)")
    arguments = options.parse_args()
    rounds, idle = 5 if arguments.quick else arguments.rounds, IdleMachine(arguments.idle_wait)

    with tempfile.TemporaryDirectory() as home:
        # llm loads only the plugins that LLM_LOAD_PLUGINS names; none if it is empty
        alone = {"HOME": home, "LLM_USER_PATH": home, "LLM_LOAD_PLUGINS": ""}
        with_plugin = alone | {"LLM_LOAD_PLUGINS": "inference-bridge"}
        listed = subprocess.run([*LLM, "plugins"], env=os.environ | with_plugin, capture_output=True, check=True)
        if b"inference-bridge" not in listed.stdout:
            sys.exit("llm does not load the plugin: install inference-bridge beside it (`make bench` does)")
        groups = [
            {
                "llm --help": whole([*LLM, "--help"], **alone),
                "llm --help, with the plugin": whole([*LLM, "--help"], **with_plugin),
            },
            {"loading the plugin, inside llm": inside(LOAD_PLUGIN, **alone)},
            {
                "python": whole([sys.executable, "-c", "pass"]),
                "python, import pluggy": whole([sys.executable, "-c", "import pluggy"]),
                "python, import inference_bridge": whole([sys.executable, "-c", "import inference_bridge"]),
            },
        ]
        times = {name: runs for group in groups for name, runs in take_turns(group, rounds, idle).items()}

    nothing = [0.0] * rounds
    inside_llm = "loading the plugin, inside llm"
    lines = [
        compare(inside_llm, "nothing", 0, "ms", times[inside_llm], nothing, differs=True),
        *(
            compare(work, base, reach, "ms", times[work], times[base], at_most=True, differs=True)
            for work, base, reach in (
                ("llm --help, with the plugin", "llm --help", 0),
                ("python, import pluggy", "python", 0),
                ("python, import inference_bridge", "python", 30),
            )
        ),
    ]

    machine = facts("inference-bridge", "llm", "pluggy")
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
