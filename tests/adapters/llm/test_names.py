# SPDX-License-Identifier: Apache-2.0
"""Names of models in llm, and the errors of models that cannot be loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.models import ModelWithAliases

import inference_bridge as ib
from llm_inference_bridge import register_models

from ...parts.llm_plugin import offered
from ...parts.models.gguf_files import write_model
from ...parts.models.tiny import WordsBackend
from ...parts.models.tiny_gguf import write_embedding

pytestmark = pytest.mark.usefixtures("no_models_in_llm")


def test_a_prompt_to_a_damaged_model_reports_its_problem(
    models_directory: Path, configure: Callable[[str], Path]
) -> None:
    write_model(models_directory / "damaged.gguf", cut=10)
    (models_directory / "text.gguf").write_text("not a model")
    configure(
        "[models.gone]\nsource = '/nowhere/gone.gguf'\n[models.away]\nsource = 'away:x'\n"
        "[models.odd]\nsource = '/nowhere/odd.gguf'\nbackend = 'wrods'\n"
        "[models.again]\nsource = 'gpt-4o'\nbackend = 'llm'"
    )
    ib.register(WordsBackend(loads=lambda source: source.endswith(".gguf") and "gone" not in source))
    ib.register(WordsBackend("away", missing="no such device"))
    models = {id: pair for id, pair in offered().items() if "SmolLM2" not in id}
    odd = next(id for id in models if id.endswith(":odd"))
    gone = next(id for id in models if id.endswith(":gone"))
    again = next(id for id in models if id.endswith(":again"))
    assert set(models) == {"words:damaged", "words:text", gone, "away:away", odd, again}
    for id, told in (
        ("words:damaged", "fetch it again"),
        ("words:text", "not a usable GGUF file"),
        (gone, "/nowhere/gone.gguf: there is no such file"),
        (odd, "'wrods': did you mean 'words'?"),
        ("away:away", "no such device"),
        (again, "llm -m gpt-4o"),
    ):
        model, async_model = models[id]
        assert told in str(model)
        with pytest.raises(llm.ModelError, match=told):
            model.prompt("p").text()
        with pytest.raises(llm.ModelError, match=told):
            asyncio.run(collected(async_model.prompt("p")))


def test_the_error_for_a_model_without_a_backend_has_the_install_command(models_directory: Path) -> None:
    write_model(models_directory / "small.gguf")
    ib.register(WordsBackend("first", missing="there is no GPU"))
    ib.register(WordsBackend("second", missing="it is not installed"))
    models = {id: pair for id, pair in offered().items() if "SmolLM2" not in id}
    assert list(models) == ["second:small"]
    with pytest.raises(llm.ModelError, match="second is not available: it is not installed"):
        models["second:small"][0].prompt("p").text()


def test_a_model_that_ranks_is_not_offered(models_directory: Path, configure: Callable[[str], Path]) -> None:
    models_directory.mkdir(exist_ok=True)
    write_embedding(models_directory / "ranks.gguf", pooling=4)
    configure("[models.mine]\nsource = 'ranks'")
    ib.register(WordsBackend())
    assert not [id for id in offered() if id.endswith((":ranks", ":mine"))]


async def collected(response: Any) -> str:
    return str(await response.text())


def aliases(*others: ModelWithAliases) -> dict[str, list[str]]:
    """The aliases that the plugin gives its models, by id; `others` are the models of other plugins."""
    given: dict[str, list[str]] = {}

    def register(model: llm.Model, async_model: llm.AsyncModel, aliases: list[str]) -> None:
        given[model.model_id] = aliases

    register_models(register, list(others))
    return {id: names for id, names in given.items() if "SmolLM2" not in id}


def test_a_name_without_a_backend_uses_the_default_backend(
    models_directory: Path, configure: Callable[[str], Path]
) -> None:
    write_model(models_directory / "small.gguf")
    configure("[models.mine]\nsource = 'small'\n[models.second]\nsource = 'small'\nbackend = 'second'")
    ib.register(WordsBackend("second"))
    ib.register(WordsBackend("llama_cpp"))  # which comes first, whatever the order of registration
    assert aliases() == {
        "llama_cpp:mine": ["mine"],
        "second:mine": [],
        "second:second": ["second"],
        "llama_cpp:small": ["small"],
        "second:small": [],
    }


def test_a_name_that_another_model_or_an_alias_of_the_user_has_is_left_to_it(
    home: Path, models_directory: Path, configure: Callable[[str], Path]
) -> None:
    for name in ("free", "theirs", "short", "set"):
        write_model(models_directory / f"{name}.gguf")
    (home / "llm").mkdir(exist_ok=True)
    (home / "llm" / "aliases.json").write_text('{"set": "gpt-4o"}')
    ib.register(WordsBackend())
    echo = offered()["words:free"][0]
    other = ModelWithAliases(echo, offered()["words:free"][1], {"short"})
    echo.model_id = "theirs"
    assert aliases(other) == {"words:free": ["free"], "words:theirs": [], "words:short": [], "words:set": []}
    (home / "llm" / "aliases.json").write_text("not JSON")
    assert aliases()["words:set"] == ["set"]
