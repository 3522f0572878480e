# SPDX-License-Identifier: Apache-2.0
"""`reasoning_budget` on a real llama-server, whose chat template is made to reason, and on servers without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_bridge import ServerError, TextModel, UnsupportedError, load_model

from ...parts.servers.fault_server import HEAD, raw
from ...parts.servers.processes import llama_server
from ...parts.servers.recorded import CHAT, USER, recorded

QUESTION = [{"role": "user", "content": "Write a sentence about cats."}]
# llama-server finds the tags by how the template shows reasoning of the past.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Iterator[TextModel]:
    with llama_server(demo_model_path, template=TEMPLATE, exact=True) as address, load_model(address) as model:
        yield model


async def test_reasoning_ends_with_its_budget_and_the_answer_follows(model: TextModel) -> None:
    assert "reasoning_budget" in model.options
    free = model.chat(QUESTION, max_tokens=60).result().reasoning
    assert model.count_tokens(free) > 12
    answers = []
    for budget in (1, 3, 7):
        result = model.chat(QUESTION, max_tokens=60, reasoning_budget=budget).result()
        assert model.count_tokens(result.reasoning) <= budget
        assert free.strip().startswith(result.reasoning.strip())
        answers.append(result.text)
    assert any(answers), "this small model may end its turn right behind the tag"
    assert model.chat(QUESTION, max_tokens=60, reasoning_budget=1000).result().reasoning == free
    stream = model.achat(QUESTION, max_tokens=60, reasoning_budget=3)
    assert (await stream.result()).text == model.chat(QUESTION, max_tokens=60, reasoning_budget=3).result().text


def test_a_budget_of_zero_is_refused_with_an_alternative(model: TextModel) -> None:
    with pytest.raises(UnsupportedError, match="set reasoning=False"):
        model.chat(QUESTION, reasoning_budget=0)
    assert not model.chat(QUESTION, reasoning=False, max_tokens=8).result().reasoning


def test_a_model_that_does_not_reason_has_no_budget(demo_model_path: Path) -> None:
    with llama_server(demo_model_path) as address, load_model(address) as model:
        with pytest.raises(UnsupportedError, match="does not reason") as refused:
            model.chat(QUESTION, reasoning_budget=8)
        assert refused.value.feature == "reasoning_budget"


def test_reasoning_budget_on_other_servers_is_refused_with_an_alternative() -> None:
    with (
        recorded({"data": [{"id": "m", "owned_by": "sglang"}]}, {}) as (_, model),
        pytest.raises(UnsupportedError, match=r"SGLang has no such option: .*max_tokens"),
    ):
        model.chat(USER, reasoning_budget=8)


def test_a_server_that_ignores_it_is_an_error() -> None:
    """vLLM before it had the field, for one: it takes any."""
    event = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm "}}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{"content":"Yes."},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    for thoughts, ignored in ((20, False), (60, True)):
        answers = {CHAT: raw(HEAD, event * thoughts + end)}
        with recorded({"data": [{"id": "m", "owned_by": "vllm"}]}, answers) as vllm:
            if ignored:
                with pytest.raises(ServerError, match="ignored reasoning_budget"):
                    vllm.model.chat(USER, reasoning_budget=8).result()
            else:
                assert vllm.model.chat(USER, reasoning_budget=8).result().text == "Yes."
            assert vllm.sent()["thinking_token_budget"] == 8
