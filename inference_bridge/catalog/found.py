# SPDX-License-Identifier: Apache-2.0
"""The description of a model found on this machine, and the naming of split GGUF files."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple


class DiscoveredModel(NamedTuple):
    """A model found on disk, loadable unless `problem` says what is wrong with it.

    `mmproj` is the path of the projector that lies beside it, `context_length` what the
    model was trained for (0: unknown). `size_bytes` adds up `num_files` weight files.
    `embeddings`: it makes embeddings, and generates nothing. `ranks`: it does neither, it scores
    documents by a query; `embeddings` is True then too, since it pools its vectors.
    `images`, `audios`: what its projector takes.
    `chat`: it has a chat template; without one it continues a text, and has no conversations.
    """

    path: str
    name: str
    format: Literal["gguf", "mlx"]
    model_type: str = ""
    quant_bits: int = 0
    quant_group: int = 0
    num_files: int = 1
    size_bytes: int = 0
    problem: str | None = None
    mmproj: str | None = None
    context_length: int = 0
    embeddings: bool = False
    images: bool = False
    audios: bool = False
    chat: bool = True
    ranks: bool = False


def stem(file: str) -> str:
    """Return a GGUF file's name without its extension and the number of its part."""
    if split := as_part(file):
        return split[1]
    return file[:-5] if file.lower().endswith(".gguf") else file


def as_part(file: str) -> re.Match[str] | None:
    """Match the name of one part of a split model, as llama.cpp's gguf-split writes it.

    The groups are the model's name, the number of the part, and the number of parts.
    """
    return re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", file, re.IGNORECASE)


def parts_of(path: str) -> list[str]:
    """Return the paths of all files of a model, given the path of its first or only file."""
    directory, name = os.path.split(path)
    part = as_part(name)
    if part is None:
        return [path]
    names = [f"{part[1]}-{number:05d}-of-{part[3]}.gguf" for number in range(1, int(part[3]) + 1)]
    found = [os.path.join(directory, one) for one in names]
    return found if path in found else [path]
