# SPDX-License-Identifier: Apache-2.0
"""What importing costs: `llm --help` with and without the plugin, and `import inference_bridge`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.report import difference, facts, parser, show, take_turns, write

LLM = [sys.executable, "-m", "llm"]


def run(command: list[str], **environment: str) -> Callable[[], float]:
    """A measurement in milliseconds of a process, from its start to its end."""

    def measure() -> float:
        begin = time.perf_counter()
        subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - begin) * 1000

    return measure


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="runs of each (default 15)")
    arguments = options.parse_args()

    with tempfile.TemporaryDirectory() as home:
        # llm loads the plugins that LLM_LOAD_PLUGINS names, and none where it is empty
        alone = {"HOME": home, "LLM_USER_PATH": home, "LLM_LOAD_PLUGINS": ""}
        with_plugin = alone | {"LLM_LOAD_PLUGINS": "inference-bridge"}
        listed = subprocess.run([*LLM, "plugins"], env=os.environ | with_plugin, capture_output=True, check=True)
        if b"inference-bridge" not in listed.stdout:
            sys.exit("llm does not load the plugin: install inference-bridge beside it (`make bench` does)")
        rivals = {
            "llm --help": run([*LLM, "--help"], **alone),
            "llm --help, with the plugin": run([*LLM, "--help"], **with_plugin),
            "python": run([sys.executable, "-c", "pass"]),
            "python, import pluggy": run([sys.executable, "-c", "import pluggy"]),
            "python, import inference_bridge": run([sys.executable, "-c", "import inference_bridge"]),
        }
        figures = take_turns(rivals, arguments.rounds)

    bases = {name: name.partition(",")[0] for name in rivals}
    added = {name: difference(figures, name, base) for name, base in bases.items() if name != base}
    rows = [
        [name, f"{statistics.median(times):.1f}", f"{min(times):.1f}", f"{added[name]:+.1f}" if name in added else ""]
        for name, times in figures.items()
    ]
    machine = facts("inference-bridge", "llm", "pluggy")
    show(machine, ["milliseconds", "median", "least", "added"], rows)
    write(arguments.json, machine, {"milliseconds": figures, "added": added})


if __name__ == "__main__":
    main()
