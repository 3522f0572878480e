# SPDX-License-Identifier: Apache-2.0
"""Recommended models, one for each purpose. `pull` lists them, and downloads them by their short names.

Sizes and licences are those that the repositories state. Each model fits into the stated memory, with a context of a
few thousand tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import click

from ..._suggest import did_you_mean
from ...availability import bridge_command
from .. import tables


class Recommended(NamedTuple):
    """A model that is recommended.

    Attributes:
        name: The short name, which is its purpose in a word.
        purpose: Its purpose.
        repo: Its repository on the Hugging Face hub.
        file: The file in the repository.
        size: Size of the download in bytes, with the projector if it has one.
        memory: Memory in bytes that the machine should have.
        licence: The licence's SPDX identifier.
    """

    name: str
    purpose: str
    repo: str
    file: str
    size: int
    memory: int
    licence: str


RECOMMENDED = (
    Recommended(
        "chat",
        "chat on a machine with 8 GB",
        "unsloth/Qwen3-4B-Instruct-2507-GGUF",
        "Qwen3-4B-Instruct-2507-Q4_K_M.gguf",
        2_497_000_000,
        8_000_000_000,
        "Apache-2.0",
    ),
    Recommended(
        "small",
        "first attempts, and old machines",
        "bartowski/SmolLM2-1.7B-Instruct-GGUF",
        "SmolLM2-1.7B-Instruct-Q4_K_M.gguf",
        1_056_000_000,
        4_000_000_000,
        "Apache-2.0",
    ),
    Recommended(
        "tools",
        "tool calling and agents; it reasons before it answers",
        "Qwen/Qwen3-8B-GGUF",
        "Qwen3-8B-Q4_K_M.gguf",
        5_028_000_000,
        12_000_000_000,
        "Apache-2.0",
    ),
    Recommended(
        "code",
        "writing and explaining code",
        "bartowski/Qwen2.5-Coder-7B-Instruct-GGUF",
        "Qwen2.5-Coder-7B-Instruct-Q4_K_M.gguf",
        4_683_000_000,
        12_000_000_000,
        "Apache-2.0",
    ),
    Recommended(
        "vision",
        "questions about images",
        "ggml-org/Qwen2.5-VL-7B-Instruct-GGUF",
        "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf",
        6_037_000_000,
        12_000_000_000,
        "Apache-2.0",
    ),
    Recommended(
        "embeddings",
        "search and retrieval (llm embed, RAG)",
        "nomic-ai/nomic-embed-text-v1.5-GGUF",
        "nomic-embed-text-v1.5.Q8_0.gguf",
        146_000_000,
        2_000_000_000,
        "Apache-2.0",
    ),
    Recommended(
        "reranking",
        "ordering search results (rerank in Python)",
        "gpustack/bge-reranker-v2-m3-GGUF",
        "bge-reranker-v2-m3-Q8_0.gguf",
        636_000_000,
        2_000_000_000,
        "Apache-2.0",
    ),
)


def find(name: str) -> Recommended:
    """Return the recommended model with that short name.

    Raises:
        UsageError: No recommended model has that name.
    """
    known = {one.name: one for one in RECOMMENDED}
    if name not in known:
        raise click.UsageError(
            f"{name!r} is neither OWNER/NAME, such as unsloth/Qwen3-4B-GGUF, nor the short name of a recommended "
            f"model{did_you_mean(name, known)} ({', '.join(known)})"
        )
    return known[name]


def report(as_json: bool) -> None:
    if as_json:
        tables.show_json([one._asdict() for one in RECOMMENDED])
        return
    head = ["NAME", "FOR", "DOWNLOAD", "MEMORY", "LICENCE", "MODEL"]
    rows = [
        [one.name, one.purpose, tables.size(one.size), tables.size(one.memory), one.licence, one.file[: -len(".gguf")]]
        for one in RECOMMENDED
    ]
    tables.show(head, rows)
    command = bridge_command("pull")
    click.echo(f"\nDownload one with its name: {command} {RECOMMENDED[0].name}", err=True)
    click.echo(f"Any other model of the Hugging Face hub: {command} OWNER/NAME", err=True)


def advice() -> str:
    """Return a sentence that says how to download a first model, with the command that the user runs."""
    first = RECOMMENDED[0]
    return (
        f"No model was found. Download one ({tables.size(first.size)}) with: {bridge_command(f'pull {first.name}')} "
        f"(`{bridge_command('pull')}` lists others)"
    )
