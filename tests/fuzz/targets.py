# SPDX-License-Identifier: Apache-2.0
"""The parsers of external bytes, and the guarantee of each for any input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inference_bridge import get
from tests.fuzz import constraints, families, files, markup, schemas, servers, templates
from tests.fuzz.mutate import inputs

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """`check` raises, whatever it is, where the parser broke a promise; a test run tries `count` inputs."""

    name: str
    about: str
    check: Callable[[bytes], None]
    count: int
    seeds: Callable[[], list[bytes]] | None = None

    def corpus(self) -> list[bytes]:
        """The inputs to begin with: those that are made, or those of the files, in the order of their names."""
        if self.seeds is not None:
            return self.seeds()
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]

    def inputs(self, seed: object = 0) -> Iterator[bytes]:
        return inputs(self.corpus(), f"{self.name} {seed}")


TARGETS = {
    target.name: target
    for target in (
        Target("gguf", "the header of a GGUF file", files.gguf, 700),
        Target("config", "a checkpoint's config.json", files.config, 400),
        Target("index", "a checkpoint's list of weight files", files.index, 300),
        Target("safetensors", "the header of a weight file", files.safetensors, 200),
        Target("image", "the header of a picture, and what a PNG unpacks to", files.image, 700),
        Target("sound", "the header of a sound", files.sound, 700),
        Target("toml", "the configuration file", files.toml, 500),
        Target("sse", "server-sent events, cut anywhere", servers.sse, 700),
        Target("answers", "what a server streams, by each protocol", servers.answers, 400),
        Target("refusals", "what a server says that does not answer", servers.refusals, 700),
        Target("facts", "what a server says of itself", servers.facts, 500),
        Target("templates", "a chat template, in the process that renders it", templates.template, 250),
        Target("markup", "a chat model's output: reasoning, tool calls", markup.markup, 200),
        Target("schema", "a JSON Schema that becomes a grammar", schemas.schema, 300),
        *(
            Target(
                name, f"what is said under a random {what}", partial(constraints.check, name), 150, constraints.seeds
            )
            for name, what in {"regex": "regular expression", "choices": "list of choices", "lark": "grammar"}.items()
        ),
        *(
            Target(
                f"{backend}-{name}",
                f"what {backend} answers under a random constraint, at temperature 1",
                partial(constraints.check_on_engine, backend, name),
                40,
                constraints.seeds,
            )
            for backend in ("llama_cpp", "mlx")
            if get(backend).availability().ok
            for name in constraints.CASES
        ),
        *(
            Target(name, f"an output of the family {form}", families.check(name), 60, partial(families.seeds, name))
            for name, form in families.NAMES.items()
        ),
    )
}


def shown(data: bytes) -> str:
    """An input for a message, as Python writes it."""
    text = repr(data)
    return text if len(text) < 2000 or sys.flags.verbose else f"{text[:2000]}… ({len(data)} bytes)"
