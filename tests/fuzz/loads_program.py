# SPDX-License-Identifier: Apache-2.0
"""Loads one file after the other, for `tests.fuzz.loads`: each line of stdin is a request, each of stdout an answer.

`trial` forks for each, as the library starts a program for each: what llama.cpp does to the child is the answer.
`library` is the program that uses the library: it must never end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    kind, answers = sys.argv[1], os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = {"trial": _trial, "library": _library, "mlx": _mlx}[kind]
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        said = answer(json.loads(line))
        answers.write(json.dumps([said, _memory()]) + "\n")
        answers.flush()


def _memory() -> int:
    """The memory of this process without mapped files, in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def _trial(request: dict[str, Any]) -> str:
    """The result of a trial load: "" if the files load."""
    import inference_bridge.backends.llama_cpp.library  # noqa: F401 - before the fork, or each would import it
    from inference_bridge.backends.llama_cpp.files import vetting, vetting_program

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            errors = os.open(os.devnull, os.O_WRONLY)
            os.dup2(errors, 2)
            problem = vetting_program.examine(request)
            os.write(write, json.dumps({"problem": problem}).encode()[:4096])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return vetting._meaning(code, said, "")[0] or ""


def _library(request: dict[str, Any]) -> str:
    """What loading the file and using the model comes to: "" if all went well, or the error's class."""
    from inference_bridge import EmbeddingModel, LoadConfig, load_model
    from inference_bridge.errors import BridgeError

    config = LoadConfig(threads=1, vet=False, mmproj=request["projector"], context_length=request["context"])
    try:
        with load_model(request["path"], backend="llama_cpp", config=config) as model:
            if request["embeds"]:
                assert isinstance(model, EmbeddingModel)
                model.embed(["the cat sat"])
            elif request["projector"]:
                from inference_bridge import Attachment, Message
                from tests.parts.models.tiny_vision import RED

                message = Message("user", ["a", Attachment("image/png", data=RED)])
                model.chat([message], max_tokens=2, timeout=4).text()
            else:
                model.generate("Hello, a world\n", max_tokens=3, timeout=4).text()
    except (BridgeError, ValueError) as error:
        return type(error).__name__
    return ""


def _mlx(request: dict[str, Any]) -> str:
    """The same for an MLX directory. No other error than these may come."""
    from inference_bridge import load_model
    from inference_bridge.errors import BridgeError

    try:
        with load_model(request["path"], backend="mlx", parallel_slots=1) as model:
            model.generate("Hello", max_tokens=1, timeout=4).text()
    except (BridgeError, ValueError) as error:
        return type(error).__name__
    return ""


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
