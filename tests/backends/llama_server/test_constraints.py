# SPDX-License-Identifier: Apache-2.0
"""`regex`, `choices`, `grammar` on managed servers: they hold, are refused at the call, or the answer is an error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_bridge import Attachment, GenerationError, LoadConfig, Message, Tool, UnsupportedError
from inference_bridge.backends.llama_server.backend import LlamaServerBackend
from inference_bridge.backends.llama_server.model import ServerModel
from inference_bridge.backends.llama_server.schemas import ServerSchemas

from ...parts.models.tiny_gguf import write_llama
from ...parts.servers.managed import REAL, script, short_directory

SETTINGS = LoadConfig(context_length=512, parallel_slots=2, threads=1)
ASKED = [{"role": "user", "content": "What?"}]
CHOICES = ["yes", "yes, please", 'say "no"', "nö\n", "a\\b", "\x01\x7f", " ", "🎉🎉"]
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
GRAMMARS = {
    'start: "I like " animal\nanimal: "cats" | "dogs" | "a " animal': r"I like (a )*(cats|dogs)",
    "start: WORD (WORD)*\nWORD: /[a-c]{1,3}/\n%ignore / /": r"[a-c ]+",
    '// a comment with <angles> and max_tokens\nstart: "<" /[a-c]{2}/ ">"': r"<[a-c]{2}>",
    'start: %json {"type": "boolean"}': r"true|false",
    '%llguidance {"no_forcing": true}\nstart: r0\nr0: A+ "!"\nA: /[ab]/': r"[ab]+!",
}
REGEXES = {
    r"\d{4}-\d{2}": r"[0-9]{4}-[0-9]{2}",
    r"^[a-c]{3}/x$": r"[a-c]{3}/x",
    r"^(?!b)(?=.*[0-9])[a-z0-9]{4}$": r"(?!b)(?=.*[0-9])[a-z0-9]{4}",
    r"\n\ta": r"\n\ta",
    r"(ä|🎉){2}": r"(ä|🎉){2}",
}
HOT: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with short_directory() as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield tmp_path_factory.mktemp("constraints")


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Iterator[ServerModel]:
    """The server of the wheel."""
    with LlamaServerBackend().load_model(str(write_llama(folder / "tiny.gguf")), SETTINGS) as model:
        assert isinstance(model, ServerModel)
        yield model


@pytest.fixture(scope="module")
def binary(folder: Path) -> Iterator[ServerModel]:
    """The same server as an unknown binary."""
    backend = LlamaServerBackend(script(folder / "llama-server", REAL))
    with backend.load_model(str(write_llama(folder / "tiny.gguf")), SETTINGS) as model:
        assert isinstance(model, ServerModel)
        yield model


@pytest.fixture(params=["wheel", "binary"])
def model(request: pytest.FixtureRequest) -> ServerModel:
    model: ServerModel = request.getfixturevalue(request.param)
    return model


async def answers(model: ServerModel, **options: Any) -> list[str]:
    """The complete answers of several calls, all at once."""
    results = [*model.batch_generate(["a", "b", "c", "d"], seed=1, **HOT, **options)]
    results += model.chat_batch([ASKED, ASKED], n=2, seed=2, **HOT, **options)
    for result in results:
        assert result.error is None, result.error
    texts = [result.text for result in results]
    for stream in (model.agenerate("a", seed=3, **HOT, **options), model.achat(ASKED, seed=4, **HOT, **options)):
        texts.append(await stream.text())
        assert stream.finish_reason == "stop"
    return texts


@pytest.mark.parametrize("pattern", REGEXES)
async def test_answer_matches_the_regex(wheel: ServerModel, pattern: str) -> None:
    for text in await answers(wheel, regex=pattern):
        assert re.fullmatch(REGEXES[pattern], text), text


@pytest.mark.parametrize("grammar", GRAMMARS)
async def test_answer_follows_the_grammar(wheel: ServerModel, grammar: str) -> None:
    for text in await answers(wheel, grammar=grammar):
        assert re.fullmatch(GRAMMARS[grammar], text), text


async def test_answer_is_one_of_the_choices(model: ServerModel) -> None:
    found = set()
    for seed in range(6):
        found.update(await answers(model, choices=[*CHOICES[seed:], *CHOICES[:seed]]))
    assert found <= {*CHOICES}
    assert len(found) > 3


def test_choice_may_have_the_name_of_a_special_token(model: ServerModel) -> None:
    """The answer has the name as text, or it is an error: the server leaves a special token out of the text."""
    with contextlib.suppress(GenerationError):
        assert model.chat(ASKED, choices=["</s>x"]).text() == "</s>x"


def test_many_choices_that_begin_alike(model: ServerModel) -> None:
    choices = [f"choice {number}" for number in range(3000)] + ["a" * length for length in range(1, 1500)]
    for seed in range(3):
        assert model.generate("a", choices=choices, seed=seed, **HOT).text() in choices


def test_nul_character_in_a_choice(wheel: ServerModel, binary: ServerModel) -> None:
    assert wheel.generate("a", choices=["\0a"]).text() == "\0a"
    with pytest.raises(UnsupportedError, match="NUL"):
        binary.generate("a", choices=["\0a"])


@pytest.mark.parametrize(
    ("options", "shortest"),
    [
        ({"regex": "[a-z]{30,}!", "max_tokens": 31}, None),
        ({"regex": "[a-z]*[0-9]", "max_tokens": 7}, None),
        ({"regex": "x|y{200}", "max_tokens": 4}, "x"),
        ({"choices": ["no", "n" * 100], "max_tokens": 5}, "no"),
        ({"grammar": 'start: "(" start ")" | /[a-z]+/', "max_tokens": 9}, None),
        ({"grammar": 'start: "(" start ")" | /[a-z]{2}/', "max_tokens": 12, "seed": 3}, None),
    ],
    ids=str,
)
async def test_answer_ends_within_its_budget(wheel: ServerModel, options: dict[str, Any], shortest: str | None) -> None:
    option = next(iter(options))
    for stream in (
        wheel.generate("a", temperature=1.0, **options),
        wheel.chat(ASKED, temperature=1.0, **options),
    ):
        result = stream.result()
        assert (result.finish_reason, option) == ("stop", option)
        assert result.metrics.generated_tokens <= options["max_tokens"] + 1  # the end is a token
        assert shortest in (None, result.text)
        if option == "regex":
            assert re.fullmatch(options["regex"], result.text)
    async_stream = wheel.agenerate("a", temperature=1.0, **options)
    assert await async_stream.text()
    assert async_stream.finish_reason == "stop"


@pytest.mark.parametrize(("pattern", "shortened"), [("[0-9]{4}", False), ("[0-9]{4,5}", True)])
def test_answer_that_ends_at_its_budget_is_shortened_if_it_may_go_on(
    wheel: ServerModel, pattern: str, shortened: bool
) -> None:
    stream = wheel.generate("a", regex=pattern, max_tokens=4)
    assert len(stream.text()) == 4
    assert (stream.finish_reason, stream.shortened) == ("stop", shortened)


def test_answer_is_cut_where_nothing_fits(model: ServerModel) -> None:
    stream = model.generate("a", choices=["a long text", "another long text"], max_tokens=3)
    assert stream.text() in ("a l", "ano")
    assert (stream.finish_reason, stream.shortened) == ("length", False)


def test_tokens_of_an_answer_come_at_once(wheel: ServerModel) -> None:
    stream = wheel.generate("a", regex="[a-z]{300}", max_tokens=400)
    first = next(stream)
    assert len(first.text) == 1
    assert stream.metrics.generated_tokens < 300
    stream.close()


# ---------------------------------------------------------------- refused at the call


def test_other_binary_refuses_what_it_may_ignore(binary: ServerModel) -> None:
    refusals: list[dict[str, Any]] = [{"regex": "a"}, {"grammar": 'start: "a"'}]
    for options in refusals:
        assert not options.keys() & binary.options
        with pytest.raises(UnsupportedError, match="llguidance") as refused:
            binary.generate("a", **options)
        assert {refused.value.feature} == {*options}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "(a"}, "regex"),
        ({"grammar": "start: missing"}, "does not compile"),
        ({"choices": ["\ud800"]}, "Unicode"),
    ],
    ids=str,
)
def test_constraint_that_is_invalid_is_a_value_error(wheel: ServerModel, options: dict[str, Any], message: str) -> None:
    for call in (lambda: wheel.generate("a", **options), lambda: wheel.achat(ASKED, **options)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "grammar",
    ['start: <|im_end|> "a"', 'start: <[5-9]> "a"', "start: a\na[max_tokens=3]: /[a-z]+/"],
)
def test_grammar_that_can_not_be_checked_is_refused(wheel: ServerModel, grammar: str) -> None:
    with pytest.raises(UnsupportedError, match="could not be checked"):
        wheel.generate("a", grammar=grammar)


def test_lookaround_inside_a_regex_is_refused(wheel: ServerModel) -> None:
    with pytest.raises(UnsupportedError, match="regex"):
        wheel.generate("a", regex=r"(a)\1")


@pytest.mark.parametrize("options", [{"choices": ["yes"]}, {"regex": "yes"}], ids=str)
def test_chats_that_a_grammar_can_not_constrain_are_refused(wheel: ServerModel, options: dict[str, Any]) -> None:
    tool = Tool("f", "A function.")
    with pytest.raises(UnsupportedError, match="leave the tools out"):
        wheel.chat(ASKED, tools=[tool], **options)
    assert wheel.chat(ASKED, tools=[tool], tool_choice="none", **options).text() == "yes"
    with pytest.raises(UnsupportedError):
        wheel.achat([Message("user", ["x", Attachment("image/png", url="http://localhost/x.png")])], **options)


@pytest.mark.parametrize("kind", ["wheel", "binary"])
async def test_reasoning_must_be_off(folder: Path, kind: str, request: pytest.FixtureRequest) -> None:
    backend = LlamaServerBackend(None if kind == "wheel" else script(folder / "llama-server", REAL))
    path = write_llama(folder / "reasoning.gguf", template=REASONING)
    with backend.load_model(str(path), replace(SETTINGS, parallel_slots=1)) as model:
        assert "reasoning" in model.capabilities
        for reasoning in (None, True):
            with pytest.raises(UnsupportedError, match="reasoning=False"):
                model.chat(ASKED, choices=["yes", "no"], reasoning=reasoning)
        stream = model.chat(ASKED, choices=["yes", "no"], reasoning=False)
        assert stream.text() in ("yes", "no")
        assert all(token.kind == "text" for token in stream.result().tokens)
        assert await model.achat(ASKED, choices=["yes"], reasoning=False).text() == "yes"
        assert model.generate("a", choices=["yes"]).text() == "yes"


# ---------------------------------------------------------------- checked at the end


@pytest.fixture
def dropping(wheel: ServerModel, monkeypatch: pytest.MonkeyPatch) -> ServerModel:
    """A server that cannot compile the grammar, and ignores it."""
    monkeypatch.setattr(ServerSchemas, "sent_grammar", lambda self, config: "%llguidance {}\nstart: %no_such {}")
    return wheel


@pytest.mark.parametrize(
    "options", [{"regex": "[0-9]{3}"}, {"choices": ["yes", "no"]}, {"grammar": 'start: "yes" | "no"'}], ids=str
)
async def test_constraint_that_the_server_ignores_is_an_error(dropping: ServerModel, options: dict[str, Any]) -> None:
    (name,) = options
    ending: dict[str, Any] = {"max_tokens": 200, "logit_bias": {2: 9.0}}
    for stream in (dropping.generate("abc", **ending, **options), dropping.chat(ASKED, **ending, **options)):
        with pytest.raises(GenerationError, match=name) as caught:
            stream.text()
        assert caught.value.partial is not None
    for limits in (ending, {"max_tokens": 5}):
        with pytest.raises(GenerationError, match=name):
            await dropping.agenerate("abc", **limits, **options).text()
