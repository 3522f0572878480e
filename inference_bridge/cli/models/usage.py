# SPDX-License-Identifier: Apache-2.0
"""The line that commands print after a model was named or downloaded: how to use it."""

from __future__ import annotations

import shlex
from importlib.util import find_spec


def line(name: str, embeddings: bool, ranks: bool = False) -> str:
    """Return a line with the command that prompts a model, or with Python code if llm is not installed.

    Args:
        name: The model's name, without a backend.
        embeddings: Whether the model makes embeddings.
        ranks: Whether the model is a reranker, for which llm has no command.
    """
    if ranks:
        return f"In Python: load_model({name!r}).rerank(query, documents)"
    if find_spec("llm") is None:
        return f"In Python: load_model({name!r})"
    id = shlex.quote(_id_in_llm(name, embeddings))
    return f"Run: llm embed -m {id} -c 'Hello'" if embeddings else f"Run: llm -m {id} 'Hello'"


def _id_in_llm(name: str, embeddings: bool) -> str:
    """Return the model's id in llm: its name, or BACKEND:NAME if the name means another model there."""
    import llm

    known = llm.get_embedding_model_aliases() if embeddings else llm.get_model_aliases()
    ids = [model.model_id for model in known.values() if model.model_id.endswith(f":{name}")]
    if not ids or (name in known and known[name].model_id in ids):
        return name
    return ids[0]
