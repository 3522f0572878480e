# SPDX-License-Identifier: Apache-2.0
"""Managed servers in a program with more than 1,024 open files, where select() fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ...parts.models.tiny_gguf import write_llama
from ...parts.servers.managed import short_directory

resource = pytest.importorskip("resource", reason="Windows limits open files otherwise")

PROGRAM = """
import asyncio, os, resource, sys
import inference_bridge as ib

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, most))
options = {"backend": "llama_server", "context_length": 256, "parallel_slots": 1, "threads": 1}
with ib.load_model(sys.argv[1], **options) as early:
    early.generate("abc", max_tokens=1).text()
    pid = early.process.pid
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    assert early.generate("abc", max_tokens=1).result().tokens
    assert early.process.pid == pid
with ib.load_model(sys.argv[1], **options) as model:
    assert model.generate("abc", max_tokens=1).result().tokens
    assert asyncio.run(model.agenerate("abc", max_tokens=1).result()).tokens
    assert asyncio.run(model.achat([{"role": "user", "content": "abc"}], max_tokens=1).result()).tokens
print("done")
"""


@pytest.mark.skipif(
    -1 < resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048, reason="this user may not open enough files"
)
def test_server_of_a_program_with_many_open_files(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_llama(tmp_path / "tiny.gguf", 256)
    with short_directory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=120, check=False
        )
    assert (done.stdout, done.stderr) == ("done\n", "")
