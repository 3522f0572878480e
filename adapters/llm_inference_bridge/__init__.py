# SPDX-License-Identifier: Apache-2.0
"""The plugin for llm: every model that is configured or found on this machine, as `llm -m backend:name`.

llm imports this module for each of its commands, `llm --help` too. So the rest is imported when
llm asks for models, and an engine when one is prompted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import llm

if TYPE_CHECKING:
    from collections.abc import Callable


@llm.hookimpl
def register_models(register: Callable[[llm.Model, llm.AsyncModel], None]) -> None:
    from .catalog import offered
    from .models import AsyncInferenceBridge, InferenceBridge

    for offer in offered():
        register(InferenceBridge(offer), AsyncInferenceBridge(offer))
