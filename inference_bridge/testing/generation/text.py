# SPDX-License-Identifier: Apache-2.0
"""Tokens, characters, and the end of a text (behaviour 5).

The stop strings are parts of the model's own greedy text and span several tokens, so that the tests suit any model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from ...model import TextModel
from ...types import GenerateResult, Token
from ..base import Contract, only
from ..callers import Sync

NEVER = "\x01\x02"
"""A text that no model generates."""


def borders(tokens: Sequence[Token]) -> list[str]:
    """Return strings that begin in one token and end in a later one: early, in the middle, and late in the text."""
    texts = [token.text for token in tokens if token.text]
    found = [before[-1] + after[0] for before, after in pairwise(texts)]
    longer = [a[-1] + b + c[0] for a, b, c in zip(texts, texts[1:], texts[2:], strict=False)]
    chosen = [found[0], found[len(found) // 2], found[-1], longer[len(longer) // 2], longer[-1]]
    return list(dict.fromkeys(chosen))


def until(text: str, stops: Sequence[str]) -> str:
    """Return `text` up to the stop string that ends first. If several end at the same place, the longest one counts."""
    end, length = min((text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text)
    return text[: end + length]


class Text(Contract):
    behaviours: ClassVar[tuple[int, ...]] = (5,)

    # ------------------------------------------------ tokens and characters

    def test_a_token_for_each_of_the_model_s(self, model: TextModel, caller: Sync) -> None:
        result = caller.generate(model, self.prompt, **self.greedily(model)).result()
        ids = [token.id for token in result.tokens]
        if "token_ids" in model.capabilities:
            assert all(isinstance(id, int) and id >= 0 for id in ids)
            assert len(ids) == result.metrics.generated_tokens == self.length
            if model.info.vocab_size:
                assert all(id is not None and id < model.info.vocab_size for id in ids)
        else:
            assert set(ids) == {None}, "the tokens have ids, but the model does not declare token_ids"

    def test_text_is_whole_characters(self, model: TextModel, caller: Sync) -> None:
        schema = {"type": "object", "properties": {"text": {"const": self.characters}}, "required": ["text"]}
        if self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), "json_schema", schema):
            tokens = list(caller.generate(model, self.prompt, json_schema=schema, max_tokens=self.room))
            assert json.loads(only(tokens, "text")) == {"text": self.characters}
            assert not [token.text for token in tokens if "\ufffd" in token.text]
            return
        tokens = list(caller.generate(model, self.characters, **self.greedily(model, max_tokens=3 * self.length)))
        for token in tokens[:-1]:
            token.text.encode()  # raises an error for a lone surrogate
            assert "\ufffd" not in token.text, f"{token.text!r} contains an incomplete character"

    def test_the_texts_joined_are_the_text(self, model: TextModel, caller: Sync) -> None:
        stream = caller.generate(model, self.prompt, **self.greedily(model))
        tokens = list(stream)
        assert "".join(token.text for token in tokens) == stream.text()
        if self.repeats:
            assert stream.text() == self.alone(model).text

    # ------------------------------------------------ stop strings

    def test_a_stop_string_never_shows(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_stop(model, caller):
            return
        whole = self.alone(model)
        for stop in [*borders(whole.tokens), whole.text[0], whole.text[2:9]]:
            self._check_stop(model, caller, whole, [stop])

    def test_the_stop_string_that_ends_first_counts(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_stop(model, caller):
            return
        whole = self.alone(model)
        text = whole.text
        for stops in ([text[6:8], text[3:5]], [text[2:7], text[4:7]], [text[1:9], text[3:5], NEVER]):
            self._check_stop(model, caller, whole, stops)

    def test_what_only_begins_a_stop_string_shows(self, model: TextModel, caller: Sync) -> None:
        if not self._honours_stop(model, caller):
            return
        whole = self.alone(model)
        stops = [stop + NEVER for stop in (*borders(whole.tokens), whole.text[1:], whole.text[-2:])]
        result = caller.generate(model, self.prompt, **self.greedily(model, stop=stops)).result()
        assert result.finish_reason == "length"
        assert len(result.tokens) == len(whole.tokens)
        if self.repeats:
            assert result.text == whole.text

    def test_one_stop_string_may_be_given_as_it_is(self, model: TextModel, caller: Sync) -> None:
        if self._honours_stop(model, caller):
            whole = self.alone(model)
            result = caller.generate(model, self.prompt, **self.greedily(model, stop=whole.text[3:5])).result()
            assert whole.text[3:5] not in result.text
            assert result.finish_reason == "stop"

    def test_stop_strings_in_a_conversation(self, model: TextModel, caller: Sync) -> None:
        if not self.chats(model) or not self._honours_stop(model, caller):
            return
        whole = model.chat(self.asked(), **self.greedily(model, max_tokens=2 * self.length)).result()
        stop = whole.text[1:3]
        if len(stop) < 2:
            return
        result = caller.chat(
            model, self.asked(), **self.greedily(model, max_tokens=2 * self.length, stop=stop)
        ).result()
        assert stop not in result.text
        assert result.finish_reason == "stop"
        if self.repeats:
            assert result.text == until(whole.text, [stop])

    def test_a_token_for_each_of_the_model_s_until_the_stop(self, model: TextModel, caller: Sync) -> None:
        if "token_ids" in model.capabilities and self._honours_stop(model, caller):
            stop = self.alone(model).text[3:6]
            result = caller.generate(model, self.prompt, **self.greedily(model, stop=stop)).result()
            assert result.finish_reason == "stop"
            assert len(result.tokens) == result.metrics.generated_tokens

    # ------------------------------------------------ stop and end tokens

    def test_a_stop_token_is_counted_and_not_yielded(self, model: TextModel, caller: Sync) -> None:
        def refused(**options: object) -> object:
            return caller.generate(model, self.prompt, **options)

        if not self.honoured(model, refused, "stop_tokens", [3]):
            return
        whole = self.alone(model)
        ids = [token.id for token in whole.tokens]
        assert ids[0] is not None, "a model that supports stop_tokens must give its tokens ids"
        for stop in dict.fromkeys((ids[0], ids[3], ids[-1])):
            before = ids.index(stop)
            result = caller.generate(model, self.prompt, **self.greedily(model, stop_tokens=[stop])).result()
            assert result.finish_reason == "stop"
            assert stop not in [token.id for token in result.tokens]
            assert result.metrics.generated_tokens == len(result.tokens) + 1
            if self.repeats:
                assert [token.id for token in result.tokens] == ids[:before]
                assert whole.text.startswith(result.text.rstrip("\ufffd"))

    def test_the_end_of_the_text_is_not_yielded(self, model: TextModel, caller: Sync) -> None:
        """If the model ends the text itself, its end token is counted, but not yielded."""
        if not self.chats(model):
            return
        result = caller.chat(model, self.asked(), **self.greedily(model, max_tokens=4 * self.length)).result()
        if result.finish_reason == "stop" and "token_ids" in model.capabilities:
            own = [token for token in result.tokens if token.id is not None]
            assert result.metrics.generated_tokens == len(own) + 1
        assert result.finish_reason in ("stop", "length", "tool_calls")

    # ------------------------------------------------ helpers

    def _honours_stop(self, model: TextModel, caller: Sync) -> bool:
        return self.honoured(model, lambda **kw: caller.generate(model, self.prompt, **kw), "stop", ["x"])

    def _check_stop(self, model: TextModel, caller: Sync, whole: GenerateResult, stops: Sequence[str]) -> None:
        stream = caller.generate(model, self.prompt, **self.greedily(model, stop=stops))
        text = "".join(token.text for token in stream)
        assert text == stream.text()
        assert not [stop for stop in stops if stop in text], f"the text contains one of the stop strings {stops}"
        if self.repeats:
            assert text == until(whole.text, stops), f"wrong text with stop={stops}"
            assert stream.finish_reason == "stop"
