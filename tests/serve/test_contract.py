# SPDX-License-Identifier: Apache-2.0
"""The http backend keeps the contract on this server, over llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import inference_bridge as ib
from inference_bridge.testing import ContractSuite

from ..parts.contract_models import DEMO_MODEL
from .conftest import running


@pytest.mark.slow
class TestServed(ContractSuite):
    """The small real model."""

    length = 8
    tolerance = 1.0

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[None]:
        with (
            ib.load_model(DEMO_MODEL, context_length=1024, parallel_slots=4) as model,
            running({"small": model}) as address,
        ):
            cls.source = f"{address}/v1"
            yield
