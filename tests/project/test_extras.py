# SPDX-License-Identifier: Apache-2.0
"""Each extra brings all that its backend imports, whatever else is installed here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from ..parts.models.tiny_gguf import write_embedding

ROOT = Path(__file__).parents[2]

ONLY = """
import json, os, sys
ABSENT = set(json.loads(os.environ["ABSENT_MODULES"]))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
"""A sitecustomize.py, so that it holds in child processes too."""

PROGRAM = """
import sys
import inference_bridge as ib

def tried(what, call):
    try:
        call()
    except ib.UnsupportedError:
        return
    print(what, flush=True)

generating, embedding, reranking = sys.argv[1:]
question = [ib.Message("user", "Ada is 36. How old is Ada?")]
tool = ib.Tool("age", "Say the age.", {"type": "object", "properties": {"years": {"type": "integer"}}})
schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}
calls = {
    "generate": {}, "json_schema": {"json_schema": schema}, "regex": {"regex": "[0-9]+"}, "choices": {"choices": ["a"]},
    "grammar": {"grammar": "start: /[a-c]+/"}, "tools": {"tools": [tool]}, "stop": {"stop": ["6"]},
    "forced": {"tools": [tool], "tool_choice": "required"}, "logprobs": {"logprobs": 2},
    "min_tokens": {"min_tokens": 2}, "return_logits": {"return_logits": True}, "logit_bias": {"logit_bias": {5: -3.0}},
    "timeout": {"timeout": 60},
}
with ib.load_model(generating, context_length=512) as model:
    for what, options in calls.items():
        tried(what, lambda: model.chat(question, max_tokens=24, **options).result())
    tried("batch", lambda: [one.error for one in model.batch_generate(["a", "b"], max_tokens=2) if one.error])
    tried("classify", lambda: model.classify(["It is"], labels=[" good", " bad"]))
    tried("logits", lambda: model.classify(["It is"], return_logits=True))
    tried("decide", lambda: model.decide("Hello.", {"polite": ib.Noul("Is it polite?")}))
    tried("infill", lambda: model.infill("a", "b", max_tokens=2).result())
    tried("count_tokens", lambda: model.count_tokens("a"))
with ib.load_model(embedding) as model:
    tried("embed", lambda: model.embed(["a cat"]))
with ib.load_model(reranking) as model:
    tried("rerank", lambda: model.rerank("cat", ["dog", "house"]))
"""


def distributions(extra: str) -> set[str]:
    """The names of all distributions that an extra of this project brings, with those that they need themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [*project["dependencies"], f"inference-bridge[{extra}]"]
    found: set[str] = set()
    while todo:
        need = todo.pop()
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", need)
        assert match is not None
        name, extras = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
        if name == "inference-bridge":
            todo += [one for extra in (extras or "").split(",") for one in project["optional-dependencies"][extra]]
        elif name not in found:
            found.add(name)
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # for another system
                continue
            todo += [one for one in needs if "extra ==" not in one]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "backend", "module"),
    [("server", "llama_server", "xllamacpp"), ("llama-cpp", "llama_cpp", "llama_cpp")],
)
def test_an_extra_brings_all_that_its_backend_imports(
    extra: str, backend: str, module: str, demo_model_path: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(module) is None:  # an engine is optional; CI has each, and turns skips into errors
        pytest.skip(f"{module} is not installed")
    known = distributions(extra)
    absent = [
        name
        for name, owners in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & {*known, "inference-bridge"}
    ]
    assert "langchain_core" in absent
    assert module not in absent
    (tmp_path / "sitecustomize.py").write_text(ONLY)
    embedding = write_embedding(tmp_path / "embeds.gguf")
    models = [demo_model_path, embedding, write_embedding(tmp_path / "ranks.gguf", pooling=4)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(f"{backend}:{path}" for path in models)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
            "ABSENT_MODULES": json.dumps(absent),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"generate", "json_schema", "forced", "batch", "classify", "embed", "rerank"} <= set(done.stdout.split())
