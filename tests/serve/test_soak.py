# SPDX-License-Identifier: Apache-2.0
"""A short run of the soak program; `python -m tests.serve.soak` runs it for a minute."""

from __future__ import annotations

import pytest

from . import soak


@pytest.mark.slow
def test_the_server_has_no_leaks_after_a_soak() -> None:
    assert soak.soak(3, 12, seed=1) == []
