# SPDX-License-Identifier: Apache-2.0
"""`inference-bridge cache`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from inference_bridge.cli.commands import bridge
from inference_bridge.engine.prefix_cache import files as prefix_files
from inference_bridge.engine.prefix_cache.store import PrefixStore

TOKENS = 600


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(bridge, ["cache", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def keep(model: str, count: int) -> None:
    store = PrefixStore(lambda: {"model": model}, 1 << 20, model=model, whole=False)
    for number in range(count):
        store.put([number] * TOKENS, bytes(1000), wait=True)


def test_an_empty_cache_is_shown_and_cleared() -> None:
    out, err = run()
    assert out == ""
    assert prefix_files.directory() in err
    assert json.loads(run("--json")[0]) == {
        "directory": prefix_files.directory(),
        "prefixes": 0,
        "bytes": 0,
        "models": [],
    }
    assert json.loads(run("--clear", "--json")[0])["removed"] == 0


def test_the_prefixes_of_each_model_are_shown_and_cleared() -> None:
    keep("/models/a.gguf", 2)
    keep("/models/b.gguf", 3)
    head, *rows = [line.split("\t") for line in run()[0].splitlines()]
    assert head[:3] == ["MODEL", "PREFIXES", "TOKENS"]
    assert [row[:3] for row in rows] == [["a.gguf", "2", str(2 * TOKENS)], ["b.gguf", "3", str(3 * TOKENS)]]
    shown = json.loads(run("--json")[0])
    place = Path(shown["directory"])
    assert shown["bytes"] == sum(path.stat().st_size for path in place.glob("*.prefix"))
    assert [(one["model"], one["prefixes"]) for one in shown["models"]] == [
        ("/models/a.gguf", 2),
        ("/models/b.gguf", 3),
    ]
    assert json.loads(run("--clear", "--json")[0])["removed"] == 5
    assert not list(place.iterdir())
