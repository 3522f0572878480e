# SPDX-License-Identifier: Apache-2.0
"""The http backend keeps the contract on this server, over llama.cpp, as far as it uses OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import inference_bridge as ib
from inference_bridge.testing import ContractSuite

from ..parts.contract_models import DEMO_MODEL, NONE
from .conftest import running


@pytest.mark.slow
class TestServed(ContractSuite):
    """The small real model."""

    length = 8
    tolerance = 1.0

    # The http backend takes this server for one that it does not know. Of such a server it expects JSON schemas in
    # chats alone, and that its model reasons; this model does not, and a request that it should is refused.
    test_an_option_is_honoured_or_refused = NONE
    test_json_is_as_the_schema_says = NONE
    test_and_so_it_is_in_a_batch = NONE
    test_neighbours_have_schemas_of_their_own = NONE
    test_text_is_whole_characters = NONE
    test_generate_parses_nothing = NONE
    test_reasoning_is_apart_from_the_answer = NONE

    # An asynchronous client whose event loop stands still closes no connection that waits for its response's headers,
    # so the server can't know that it has left. test_limits has clients that leave.
    test_a_batch_that_is_left_holds_nothing = NONE

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[None]:
        with (
            ib.load_model(DEMO_MODEL, context_length=1024, parallel_slots=4) as model,
            running({"small": model}) as address,
        ):
            cls.source = f"{address}/v1"
            yield
