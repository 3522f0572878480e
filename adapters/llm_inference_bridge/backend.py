# SPDX-License-Identifier: Apache-2.0
"""The backend `llm`: load any model of llm and its plugins with `load_model("llm:NAME")`.

The registry of backends imports this module. llm itself is imported when a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from inference_bridge import Availability, Backend, ModelLoadError, ModelNotFoundError, hookimpl, registry
from inference_bridge.authoring import did_you_mean, install_command

if TYPE_CHECKING:
    from inference_bridge import LoadConfig

    from .reverse import LLMTextModel


class LLMBackend(Backend):
    name = "llm"
    capabilities = frozenset({"chat", "tools", "json_schema", "reasoning", "images", "audios"})
    load_options = frozenset({"api_key", "parallel_slots"})
    only_when_named = True

    def availability(self) -> Availability:
        if find_spec("llm") is not None:
            return Availability(True)
        return Availability(False, "the package llm is not installed", f"Run: {install_command('llm')}")

    def can_load(self, source: str) -> bool:
        """Return True for any name, because a look-up would load all plugins of llm; False for a path or URL."""
        return not os.path.isabs(source) and "://" not in source

    def load_model(self, source: str, config: LoadConfig) -> LLMTextModel:
        """Load an llm model.

        Args:
            source: The id or an alias of the model.
            config: `api_key` is a key, or the name of a key that `llm keys` stores. `parallel_slots` is the maximum
                number of operations that run at once.

        Raises:
            ModelNotFoundError: llm has no model of this name.
            ModelLoadError: The model needs a key, and none was found.
        """
        import llm

        from . import catalog
        from .reverse import LLMTextModel

        with catalog.hidden():
            known = {
                name: entry
                for entry in llm.get_models_with_aliases()
                for name in (*entry.aliases, entry.model.model_id)
            }
        entry = known.get(source)
        if entry is None:
            if source.partition(":")[0] in registry.names():
                raise ModelNotFoundError(
                    f"{source!r} is a model of inference-bridge, not of another llm plugin: use load_model({source!r})"
                )
            raise ModelNotFoundError(
                f"llm has no model {source!r}{did_you_mean(source, known)} (`llm models` lists them)"
            )
        try:
            entry.model.get_key(config.api_key)
        except llm.NeedsKeyException as error:
            raise ModelLoadError(f"the llm model {source!r} needs a key: {error}") from error
        return LLMTextModel(
            entry.model, async_model=entry.async_model, key=config.api_key, parallel=config.parallel_slots or None
        )


@hookimpl
def register_backends(register: Callable[[Backend], None]) -> None:
    register(LLMBackend())
