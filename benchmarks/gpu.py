# SPDX-License-Identifier: Apache-2.0
"""Run the engine's tests and benchmark ratios on this machine's GPU, and write a page for the GPU in build/gpu.

This uses the installed llama-cpp-python: docs/gpu.md says how to build it for a GPU. It takes at most ten minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from inference_bridge.backends.llama_cpp.devices import gpus

FOLDER = Path("build/gpu")

TESTS = [f"tests/backends/llama_cpp/test_{name}.py" for name in ("gpu", "placement", "contract", "memory", "slots")]
TESTS += ["tests/backends/llama_cpp/media/test_images.py"]

STEPS: dict[str, tuple[list[str], int]] = {
    "The engine's tests": (["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], 300),
    "The engine's ratios": (["-m", "benchmarks.engine", "--quick", "--only", "defaults", "1", "8", "prefill"], 240),
}
"""The steps: arguments for Python, and a time limit in seconds."""


def main() -> int:
    found = gpus()
    if not found:
        sys.exit("llama.cpp finds no GPU here. Build llama-cpp-python for yours: docs/gpu.md has the commands")
    page = [f"# {', '.join(f'{gpu.name}: {gpu.description}' for gpu in found)}"]
    page += [f"{gpu.name}: {gpu.free_bytes / 1e9:.1f} GB free" for gpu in found]
    failed = False
    for title, (arguments, limit) in STEPS.items():
        print(f"{title} …", file=sys.stderr, flush=True)
        text, code = run(arguments, limit)
        failed = failed or code != 0
        page += [f"## {title}", f"Exit code {code}.", f"```\n{text}\n```"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', found[0].description or found[0].name).strip('-')}.md"
    path.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(path)
    return int(failed)


def run(arguments: list[str], limit: int) -> tuple[str, int]:
    """Run a Python program. Return the last lines of its output, and its exit code: 124 if it exceeded its limit."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            text, _ = process.communicate(timeout=limit)
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            text, code = process.communicate()[0], 124
    return "\n".join(text.splitlines()[-60:]), code


if __name__ == "__main__":
    sys.exit(main())
