# SPDX-License-Identifier: Apache-2.0
"""The public names. A change here is a change of the contract."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import inference_bridge
import langchain_inference_bridge
from inference_bridge import authoring


def test_exported_names() -> None:
    expected = """
        AsyncBatchStream AsyncTokenStream Attachment Availability Backend BackendNotFoundError
        BackendUnavailableError BatchModel BatchResult BatchStream BridgeError Choice ChoiceAnswer ClassifyResult
        ConfigError
        ContextLengthExceededError Decision DiscoveredModel Distribution EmbeddingModel FinishReason GenerateConfig
        GenerateMetrics GenerateOptions GenerateResult GenerateStats GenerationError GenerationTimeoutError
        LoadConfig LoadOptions Message ModelClosedError ModelInfo ModelLoadError ModelNotFoundError
        NoBackendAvailableError Noul NoulAnswer RankModel Ranked ReasoningEffort Request Score ScoreAnswer
        ServerCrashedError ServerError StatsModel TextModel Token
        TokenKind TokenStream Tool ToolCall ToolCallCutError ToolCallDelta TopLogprob UnsupportedError __version__
        aload_model default discover get hookimpl load_model names prometheus register unregister
    """
    assert sorted(inference_bridge.__all__) == expected.split()
    assert set(inference_bridge.__all__) <= set(dir(inference_bridge))


@pytest.mark.parametrize("name", inference_bridge.__all__)
def test_every_name_is_there(name: str) -> None:
    value = getattr(inference_bridge, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(inference_bridge.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen: dict[str, str] = {}
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # said twice, so re-exported
            seen[alias.name] = str(node.module)
    assert seen == inference_bridge._HOME_OF


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'inference_bridge' has no attribute 'load_modle'"):
        inference_bridge.load_modle  # noqa: B018


def test_an_adapter_lists_its_names_before_they_are_imported() -> None:
    assert set(langchain_inference_bridge.__all__) <= set(dir(langchain_inference_bridge))


@pytest.mark.parametrize("name", authoring.__all__)
def test_authoring_has_every_name_that_it_lists(name: str) -> None:
    assert getattr(authoring, name) is not None
    assert name in (authoring.__doc__ or "")


def test_authoring_lists_every_name_that_it_has() -> None:
    assert set(authoring.__all__) == set(authoring._HOME_OF)
    with pytest.raises(AttributeError):
        authoring.no_such_name  # noqa: B018
