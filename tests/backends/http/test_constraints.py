# SPDX-License-Identifier: Apache-2.0
"""`choices` on a llama-server; `regex` and `grammar`, which it may ignore, are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from inference_bridge import GenerationError, Message, TextModel, UnsupportedError, load_model

from ...parts.models.tiny_gguf import write_llama
from ...parts.servers.fault_server import last, piece, serving, stream
from ...parts.servers.processes import llama_server

CHOICES = ["yes", "yes, please", "no", "nö\n"]
HOT: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    path = write_llama(tmp_path_factory.mktemp("choices") / "tiny.gguf")
    with llama_server(path) as address, load_model(address) as model:
        yield model


async def test_answer_is_one_of_the_choices(model: TextModel) -> None:
    assert "choices" in model.options
    asked = [Message("user", "x")]
    results = model.batch_generate(["a", "b", "c"], n=3, seed=1, choices=CHOICES, **HOT)
    results += model.chat_batch([asked], n=4, seed=2, choices=CHOICES, **HOT)
    texts = {result.text for result in results}
    assert len(texts) > 1
    assert texts <= {*CHOICES}
    assert await model.agenerate("a", choices=CHOICES).text() in CHOICES
    assert await model.achat(asked, choices=CHOICES).text() in CHOICES


def test_answer_that_max_tokens_cuts_says_so(model: TextModel) -> None:
    answer = model.generate("a", choices=["a long text", "another text"], max_tokens=3)
    assert len(answer.text()) == 3
    assert answer.finish_reason == "length"


def test_what_a_llama_server_may_ignore_is_refused(model: TextModel) -> None:
    refusals: list[dict[str, Any]] = [{"regex": "a"}, {"grammar": 'start: "a"'}]
    for options in refusals:
        with pytest.raises(UnsupportedError, match="use choices") as refused:
            model.generate("a", **options)
        assert {refused.value.feature} == {*options}


def test_answer_that_is_none_of_the_choices_is_an_error() -> None:
    """A server that leaves a special token out of the text, or ignores the grammar."""
    with (
        serving({"/completion": [stream(piece("ye", 5, 1), last(1))]}) as server,
        load_model(server.address) as model,
    ):
        with pytest.raises(GenerationError, match="choices") as caught:
            model.generate("a", choices=CHOICES).text()
        assert caught.value.partial is not None
        assert caught.value.partial.text == "ye"
        assert model.generate("a").text() == "ye"
