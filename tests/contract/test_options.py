# SPDX-License-Identifier: Apache-2.0
"""Options: valid and invalid values, precedence of defaults, and keys, which no repr shows."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_bridge.options import LOAD_FIELDS, GenerateConfig, GenerateOptions, LoadConfig, LoadOptions
from inference_bridge.types import Tool

NAN, INFINITY = float("nan"), float("inf")
INT32_MAX = 2**31 - 1
TOOL: dict[str, Any] = {"name": "f", "parameters": {"type": "object"}}

# For each field: values it takes, values of the right type that it refuses, and values of the wrong type.
GENERATE: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "max_tokens": ([1, 256, INT32_MAX, -1], [0, -2, INT32_MAX + 1], [1.0, "5", True, NAN, [1]]),
    "temperature": ([0, 0.0, 0.7, 2], [-0.1, NAN, INFINITY, 10**400, 1e38], ["0.7", False, [0.7]]),
    "top_k": ([0, 40], [-1, INT32_MAX + 1], [40.0, "40", True]),
    "top_p": ([0, 0.5, 1], [-0.01, 1.01, NAN], ["1", True]),
    "min_p": ([0, 0.05, 1], [-0.01, 1.01, NAN], ["1", True]),
    "repeat_penalty": ([0, 1, 1.1], [-1, NAN, INFINITY, 1e38], ["1.1", True]),
    "presence_penalty": ([-2, 0, 2.5], [-1e38, NAN, INFINITY, -INFINITY], ["0", True]),
    "frequency_penalty": ([-2, 0, 2.5], [1e38, NAN, INFINITY, -INFINITY], ["0", True]),
    "stop": (["\n", ["a", "b"], ("a",), []], ["", ["a", ""]], [3, [3], b"a", {"a": 1}, True]),
    "stop_tokens": ([7, [0, 2], ()], [-1, [-1], [INT32_MAX + 1]], ["7", [7.0], True, [True], {7: 7}]),
    "seed": ([0, 2**64 - 1], [-1, 2**64], [1.0, "1", True]),
    "logprobs": ([0, 5], [-1, INT32_MAX + 1], [1.0, True, "5"]),
    "return_logits": ([True, False], [], [1, 0, "yes"]),
    "json_schema": ([{}, {"type": "object"}], [], ["{}", [], True, {1: 2}]),
    "regex": (["a", "^[0-9]+$"], [""], [1, ["a"]]),
    "choices": ([["yes", "no"], ("a",)], [[], [""]], ["yes", 1, [1]]),
    "grammar": (["start: /a/"], [""], [1, ["a"]]),
    "schema_in_prompt": ([True, False], [], [1, "yes", 0.0]),
    "logit_bias": (
        [{}, {0: -100, 7: 1.5}, {"7": 1}],
        [{-1: 0}, {0: NAN}, {0: INFINITY}],
        ["7", [7], {"a": 1}, {0: "1"}, {1.5: 1}],
    ),
    "min_tokens": ([0, 1, INT32_MAX], [-1, INT32_MAX + 1], [1.0, "1", True]),
    "reasoning_budget": ([0, 1, INT32_MAX], [-1, INT32_MAX + 1], [1.0, "1", True]),
    "n": ([1, 2, 128], [0, -1, 129], [1.0, "1", True]),
    "tools": (
        [[], [Tool("f")], [TOOL, Tool("g")]],
        [[{"name": ""}]],
        ["f", [3], TOOL, Tool("f"), [{"name": "f", "parameters": 3}]],
    ),
    "tool_choice": (["auto", "f"], [""], [3, True, {"name": "f"}]),
    "reasoning": ([True, False, "low", "medium", "high"], ["highest", "", 1, 0, [], {}], []),
    "template_options": ([{}, {"enable_thinking": False}], [], ["x", [1], {1: 2}]),
    "timeout": ([0.001, 60, 1e300], [0, -1, NAN, INFINITY, 10**400], ["60", True]),
}  # fmt: skip

LOAD: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "context_length": ([0, 4096], [-1, INT32_MAX + 1], [1.0, "1", True]),
    "gpu_layers": ([-1, 0, 99], [-2, INT32_MAX + 1], [1.0, "all", True]),
    "parallel_slots": ([0, 4, 256], [-1, 257], [1.0, "4", True]),
    "threads": ([0, 8], [-1, 1025], [1.5, "8", True]),
    "batch_size": ([0, 512], [-1, INT32_MAX + 1], [1.5, "8", True]),
    "chat_template": (["", "{{ messages }}"], [], [3, b"x"]),
    "adapters": ([(), ["a"], [Path("a"), "b"], "a", Path("a")], ["", [""]], [3, [3], {"a": 1.0}, b"a"]),
    "draft_model": (["", "a.gguf", Path("a.gguf")], [], [3, b"a"]),
    "draft_ngram": ([0, 12], [-1, 1025], [1.5, "8", True]),
    "draft_tokens": ([0, 12], [-1, 1025], [1.5, "8", True]),
    "mmproj": (["", "a.gguf", Path("a.gguf")], [], [3, b"a"]),
    "device": (["", "cpu"], [], [0]),
    "split_mode": (["layer", "row", "none"], ["", "tensor", 3], []),
    "tensor_split": ([(), (3, 1), [0, 1.5]], [(0, 0), (-1, 1), (NAN,)], ["3,1", 3, ("3",), {"a": 1}]),
    "kv_cache_type": (["f16", "q8_0", "q4_0"], ["", "q5_1", 3], []),
    "memory_limit": ([0, 8_000_000_000], [-1], [1.5, "8 GB", True]),
    "deterministic": ([True, False], [], [1, "yes"]),
    "vet": ([True, False], [], [1, "no"]),
    "prefix_cache_size": ([0, 1 << 31, "2GiB", "1.5 gb", "512M"], [-1, "much", "-1", "", "2GiBi"], [1.5, True]),
    "keep_alive": ([0, 300.5, "5m", "1.5 h"], [-1, NAN, INFINITY, "soon", "-5m", ""], [True, []]),
    "model": (["", "m"], [], [3]),
    "api_key": (["sk-1"], [""], [3, b"sk"]),
    "headers": ([{}, {"a": "b"}], [], ["a: b", {"a": 1}, {1: "a"}, [("a", "b")]]),
    "connect_timeout": ([0.1, 5], [0, -1, NAN], ["5", True]),
    "first_token_timeout": ([0.1, 5], [0, -1, NAN], ["5", True]),
    "ca_bundle": (["", "ca.pem", Path("ca.pem")], [], [3]),
    "defaults": (["contract", "server"], ["", "model", 3], []),
    "extra": ([{}, {"n_gpu": 1}, ["--flag", "x"], ()], [[""]], ["--flag", 3, [3], {1: 2}]),
}

CONFIGS: list[tuple[Any, dict[str, tuple[list[Any], list[Any], list[Any]]]]] = [
    (GenerateConfig, GENERATE),
    (LoadConfig, LOAD),
]


def _cases(which: int) -> list[Any]:
    return [
        pytest.param(config, name, value, id=f"{name}-{str(value)[:12]}")
        for config, table in CONFIGS
        for name, values in table.items()
        for value in values[which]
    ]


@pytest.mark.parametrize(("config", "table"), CONFIGS)
def test_every_field_is_covered_here(config: Any, table: dict[str, Any]) -> None:
    assert [field.name for field in fields(config)] == list(table)


@pytest.mark.parametrize(("config", "options"), [(GenerateConfig, GenerateOptions), (LoadConfig, LoadOptions)])
def test_the_keyword_arguments_are_the_fields(config: Any, options: Any) -> None:
    assert list(options.__annotations__) == [field.name for field in fields(config)]


@pytest.mark.parametrize(("config", "name", "value"), _cases(0))
def test_right_values_are_taken(config: Any, name: str, value: Any) -> None:
    made = config(**{name: value})
    assert getattr(made, name) is not None
    assert config().with_options({name: value}) == made
    again = config(**{name: getattr(made, name)})
    assert again == made, "what was normalised stays as it is"


@pytest.mark.parametrize(("config", "name", "value"), _cases(1))
def test_wrong_values_are_value_errors_that_name_the_field(config: Any, name: str, value: Any) -> None:
    match = name if name != "tools" else "tool"
    with pytest.raises(ValueError, match=match):
        config(**{name: value})
    with pytest.raises(ValueError, match=match):
        config().with_options({name: value})


@pytest.mark.parametrize(("config", "name", "value"), _cases(2))
def test_wrong_types_are_type_errors_that_name_the_field(config: Any, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name if name != "tools" else "tool"):
        config(**{name: value})


@pytest.mark.parametrize(
    ("config", "misspelt", "meant"),
    [
        (GenerateConfig, "max_token", "max_tokens"),
        (GenerateConfig, "Temperature", "temperature"),
        (GenerateConfig, "repetition_penalty", "repeat_penalty"),
        (LoadConfig, "contextlength", "context_length"),
        (LoadConfig, "n_gpu_layers", "gpu_layers"),
    ],
)
def test_a_misspelt_option_suggests_the_nearest(config: Any, misspelt: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"unknown \w+ option '{misspelt}': did you mean '{meant}'\?"):
        config().with_options({misspelt: 1})


@pytest.mark.parametrize(
    ("config", "name", "told"),
    [
        (GenerateConfig, "context_length", "it is a load option"),
        (GenerateConfig, "n_ctx", "did you mean 'context_length', a load option?"),
        (LoadConfig, "temperature", "it is a generation option"),
        (LoadConfig, "num_predict", "did you mean 'max_tokens', a generation option?"),
    ],
)
def test_a_load_option_in_a_call_and_the_reverse_are_explained(config: Any, name: str, told: str) -> None:
    with pytest.raises(TypeError, match=re.escape(told)):
        config().with_options({name: 1})


def test_an_unknown_option_without_a_similar_name_gets_no_suggestion() -> None:
    with pytest.raises(TypeError, match=r"unknown generation option 'zzz'$"):
        GenerateConfig().with_options({"zzz": 1})


# ---------------------------------------------------------------- normal forms


def test_one_item_stands_for_a_sequence_of_one() -> None:
    assert GenerateConfig(stop="x", stop_tokens=3) == GenerateConfig(stop=("x",), stop_tokens=(3,))  # type: ignore[arg-type]
    assert LoadConfig(adapters="a") == LoadConfig(adapters=[Path("a")])  # type: ignore[list-item]


def test_values_are_copied_so_that_later_changes_do_not_reach_them() -> None:
    schema, stop, tools = {"type": "object"}, ["a"], [dict(TOOL)]
    config = GenerateConfig(json_schema=schema, stop=stop, tools=tools)
    schema["type"] = "array"
    stop.append("b")
    tools.clear()
    assert config == GenerateConfig(json_schema={"type": "object"}, stop=["a"], tools=[TOOL])


def test_numbers_are_converted_to_the_type_of_the_field() -> None:
    config = GenerateConfig(temperature=1, max_tokens=5)
    assert isinstance(config.temperature, float)
    assert isinstance(config.max_tokens, int)


# ---------------------------------------------------------------- merging

configs = st.builds(
    GenerateConfig,
    max_tokens=st.none() | st.integers(1, 100),
    temperature=st.none() | st.floats(0, 2),
    top_k=st.none() | st.integers(0, 50),
    stop=st.none() | st.lists(st.text(min_size=1), max_size=2),
    tools=st.none() | st.just([TOOL]),
)


@given(configs, configs)
def test_over_takes_only_unset_fields_from_the_base(upper: GenerateConfig, base: GenerateConfig) -> None:
    merged = upper.over(base)
    assert merged.set_fields() == base.set_fields() | upper.set_fields()
    assert merged == base.with_options(upper.set_fields())


@given(configs)
def test_an_empty_config_over_another_changes_nothing(config: GenerateConfig) -> None:
    assert config.over(GenerateConfig()) == config.over(config) == GenerateConfig().over(config) == config
    assert config.with_options({}) is config
    assert config.with_options(dict.fromkeys(config.set_fields())) == config, "None leaves a field as it is"


@given(configs)
def test_a_config_s_repr_shows_the_set_fields(config: GenerateConfig) -> None:
    assert eval(repr(config), {"GenerateConfig": GenerateConfig, "Tool": Tool}) == config  # noqa: S307 - our own


@given(configs)
def test_configs_survive_pickling_and_copying(config: GenerateConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config  # noqa: S301 - our own


def test_load_options_override_a_load_config() -> None:
    config = LoadConfig(context_length=100, device="cpu")
    over = config.with_options({"context_length": 0, "device": None})
    assert over.set_fields() == {"context_length": 0, "device": "cpu"}
    assert LoadConfig(threads=2).over(config).set_fields() == {"context_length": 100, "device": "cpu", "threads": 2}


def test_every_load_field_is_none_until_it_is_set() -> None:
    assert LoadConfig().set_fields() == {}
    assert all(getattr(LoadConfig(), name) is None for name in LOAD_FIELDS)
    assert LoadConfig(**dict.fromkeys(LOAD_FIELDS)) == LoadConfig()


def test_an_explicit_default_is_set_and_requests_no_feature() -> None:
    written: dict[str, Any] = {
        "context_length": 0,
        "gpu_layers": -1,
        "parallel_slots": 0,
        "threads": 0,
        "batch_size": 0,
        "chat_template": "",
        "adapters": (),
        "draft_model": "",
        "mmproj": "",
        "device": "",
        "deterministic": False,
        "vet": True,
        "prefix_cache_size": 0,
        "keep_alive": 0.0,
        "model": "",
        "headers": {},
        "ca_bundle": "",
        "defaults": "contract",
        "extra": {},
    }
    config = LoadConfig(**written)
    assert config.set_fields() == written
    assert config.effective() == LoadConfig()
    asked = LoadConfig(
        gpu_layers=0, context_length=8, adapters=["a"], deterministic=True, vet=False
    )  # no layer on the GPU is not the default
    assert asked.effective() == asked


def test_configs_are_frozen() -> None:
    for config, name in ((GenerateConfig(), "max_tokens"), (LoadConfig(), "threads")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 1)


# ---------------------------------------------------------------- secrets


def test_no_repr_and_no_error_shows_a_key() -> None:
    config = LoadConfig(api_key="sk-secret", headers={"Authorization": "Bearer sk-secret"})
    assert "sk-secret" not in repr(config) + str(config) + f"{config}"
    assert repr(config) == "LoadConfig(api_key='***', headers={'Authorization': '***'})"
    assert config.api_key == "sk-secret"
    for wrong in ({"api_key": ["sk-secret"]}, {"headers": ["sk-secret"]}, {"headers": {"a": ["sk-secret"]}}):
        with pytest.raises(TypeError) as error:
            LoadConfig(**wrong)
        assert "sk-secret" not in str(error.value)
