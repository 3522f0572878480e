# SPDX-License-Identifier: Apache-2.0
"""llm's command line with models on real servers: their keys, and their embeddings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ...parts.models.tiny_gguf import WIDTH, write_embedding, write_llama
from ...parts.servers.processes import KEY, llama_server
from .test_cli import assert_one_line, logged, run

MODEL = "http:office"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that wants a key."""
    model = write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", 1024)
    with llama_server(model, key=KEY) as address:
        yield address


@pytest.fixture
def _configured(office: str, configure: Callable[[str], Path]) -> None:
    configure(f'[models.office]\nsource = "{office}"\napi_key_env = "OFFICE_KEY"\n')


@pytest.mark.usefixtures("_configured")
def test_a_servers_key_is_where_llm_looks_for_keys() -> None:
    asked = ["-m", MODEL, "-o", "max_tokens", "4", "-o", "temperature", "0", "Once"]
    assert_one_line(run(*asked), "No key found - add one using 'llm keys set office' or set the OFFICE_KEY")
    refused = run(*asked, "--key", "no-such-key")
    assert_one_line(refused, "401")
    assert "no-such-key" not in refused.stderr

    by_variable = run(*asked, OFFICE_KEY=KEY)
    assert by_variable.returncode == 0, by_variable.stderr
    assert run("keys", "set", "office", "--value", KEY).returncode == 0
    by_name = run(*asked, OFFICE_KEY="no-such-key")  # what is stored comes first, as for llm's other models
    assert (by_name.returncode, by_name.stdout) == (0, by_variable.stdout)
    in_conversation = run("-c", "--async", "-o", "temperature", "0", "-o", "max_tokens", "2", "and")
    assert in_conversation.returncode == 0, in_conversation.stderr
    second, first = sorted(logged(2), key=lambda row: -row["input_tokens"])
    assert first["output_tokens"] == 4
    assert second["input_tokens"] > first["input_tokens"]


def test_a_servers_embeddings(tmp_path: Path, configure: Callable[[str], Path]) -> None:
    with llama_server(write_embedding(tmp_path / "bert.gguf"), length=64, embedding=True) as address:
        configure(f'[models.vectors]\nsource = "{address}"\nembeddings = true\n')
        done = run("embed", "-m", "http:vectors", "-c", "the cat sat", "-f", "json")
        assert (done.returncode, done.stderr) == (0, "")
        vector = json.loads(done.stdout)
        assert len(vector) == WIDTH
        assert math.hypot(*vector) == pytest.approx(1, rel=1e-4)
    assert_one_line(run("embed", "-m", "http:vectors", "-c", "the cat sat"), "Is the server running")
