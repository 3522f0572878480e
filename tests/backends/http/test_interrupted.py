# SPDX-License-Identifier: Apache-2.0
"""An operation over HTTP that is interrupted by close() in its own thread, as by a signal handler."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from inference_bridge import TextModel, load_model
from inference_bridge.errors import ModelClosedError

from ...parts.interrupting import Place, interrupted, places_in_locks
from ...parts.models.tiny_gguf import write_llama
from ...parts.servers.processes import KEY, llama_server

STEP = 7
"""Every seventh line is interrupted, and the first one of each block that holds a lock."""


def generated(model: TextModel) -> str:
    return model.generate("ab", max_tokens=2).text()


@pytest.mark.slow
def test_close_at_lines_of_generate(tmp_path: Path) -> None:
    with llama_server(write_llama(tmp_path / "tiny.gguf", 512), key=KEY, length=256) as url:
        with load_model(url, api_key=KEY) as whole:
            expected = generated(whole)

        def reached(at: int | Place) -> bool:
            with load_model(url, api_key=KEY) as model:
                outcome = interrupted(partial(generated, model), model.close, at)
            if outcome.error is None:
                assert outcome.result == expected, outcome.where
            else:
                assert isinstance(outcome.error, ModelClosedError), (outcome.where, outcome.error)
            return outcome.reached

        with load_model(url, api_key=KEY) as model:
            locked = places_in_locks(partial(generated, model))
        assert len(locked) > 5
        assert all(reached(place) for place in locked)
        line = 0
        while reached(line):
            line += STEP
    assert line > 200
