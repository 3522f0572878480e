# SPDX-License-Identifier: Apache-2.0
"""A chat model's output: what is answer, what is reasoning, what is a tool call.

`detect_format` learns from a chat template how its model marks them, `chat_output` gives
the `Output` that takes one model token after the other and makes Tokens of kind "text",
"reasoning" and "tool_call". The markup itself belongs to no token's text, and neither does
the white space between it and what it marks.

The markup must be seen to be read: pieces are handed over with special tokens rendered
(`<|tool_call>` and its like are special in many vocabularies), end tokens excepted.

Nothing is lost: what looks like a tool call and turns out to be none is text. Once a call's
name and the beginning of its arguments stood there, the arguments stream; if they break off
later, the fragments are with the tokens, and `tool_calls` leaves the call out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from ..types import Tool
from .assembler import TextAssembler, matcher
from .harmony import HarmonyParser
from .reader import NoCallError, Reader, Steps, call_id, short_call_id
from .tool_formats import OPENERS, CallReader, json_calls


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags around reasoning. `anywhere`: they are read wherever they stand, not only before the answer."""

    opens: str
    closes: str
    anywhere: bool = False


# Where the tags are control tokens that no answer quotes, they count anywhere. The first
# three are what mlx-lm infers from a vocabulary too.
THINKING = (
    Thinking("<think>", "</think>"),
    Thinking("<|channel>thought", "<channel|>", anywhere=True),
    Thinking("<|think:start|>", "<|think:end|>", anywhere=True),
    Thinking("[THINK]", "[/THINK]", anywhere=True),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<longcat_think>", "</longcat_think>"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>", anywhere=True),
    Thinking("<|inner_prefix|>", "<|inner_suffix|>", anywhere=True),
    Thinking("◁think▷", "◁/think▷"),
    Thinking("<thinking>", "</thinking>"),
)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model marks what is not its answer.

    `openers` begin tool calls; `bare`: a call may also stand at the start of the answer as
    JSON alone; `short_ids`: a call's id is nine letters and digits; `harmony`: the whole
    output is in Harmony, and the rest says nothing.
    """

    thinking: Thinking | None = None
    openers: tuple[str, ...] = ()
    bare: bool = False
    short_ids: bool = False
    harmony: bool = False


# What models write that were shown tools by the generic prompt (see chat_template).
GENERIC_OPENERS = ("<tool_call>", "```json", "```tool_call", "```tool_code")


def detect_format(template: str, vocabulary: Container[str] = ()) -> ChatFormat:
    """The format of the models that use this chat template.

    `vocabulary`, the texts of the model's tokens, tells of think tags and tool-call tags
    that the template doesn't name. A template that names none gets the generic format.
    """
    if "<|channel|>" in template and "<|message|>" in template:
        return ChatFormat(harmony=True)
    thinking = next((tags for tags in THINKING if tags.closes in template), None) or next(
        (tags for tags in THINKING if tags.opens in vocabulary and tags.closes in vocabulary), None
    )
    openers = [opener for opener in OPENERS if not opener.startswith("```") and opener in template]
    if "\uff5cDSML\uff5c" in template:  # put together from pieces there
        openers += [opener for opener in OPENERS if "DSML" in opener and opener not in openers]
    # LFM2's template names the list of tools, not the calls.
    if "<|tool_list_start|>" in template or "<|tool_call_start|>" in vocabulary:
        openers = list(dict.fromkeys((*openers, "<|tool_call_start|>")))
    llama = "<|start_header_id|>" in template and "ipython" in template
    if llama and "<|python_tag|>" not in openers:
        openers.append("<|python_tag|>")
    return ChatFormat(
        thinking,
        tuple(openers) or GENERIC_OPENERS,
        bare=llama or not openers,
        short_ids="[TOOL_CALLS]" in openers,
    )


def chat_output(
    format: ChatFormat,
    *,
    stops: Sequence[str] = (),
    tools: Iterable[Tool] = (),
    in_reasoning: bool = False,
    in_answer: bool = False,
    forced_call: bool = False,
) -> TextAssembler:
    """The output of one chat. Stop strings apply to the visible text alone.

    `tools` are those that may be called: none with tool_choice "none", and then no call is
    read. `in_reasoning`: the prompt ends inside reasoning; `in_answer`: behind it.
    `forced_call`: a grammar sees to it that the answer is a call, as JSON alone:
    `{"name": …, "arguments": {…}}`, or an array.
    """
    if format.harmony:
        return TextAssembler(stops, HarmonyParser(tools))
    parser = MarkupParser(format, tools, in_reasoning=in_reasoning, in_answer=in_answer, forced_call=forced_call)
    return TextAssembler(stops, parser)


class MarkupParser(Reader):
    """Reads everything but Harmony."""

    def __init__(
        self,
        format: ChatFormat,
        tools: Iterable[Tool] = (),
        *,
        in_reasoning: bool = False,
        in_answer: bool = False,
        forced_call: bool = False,
    ) -> None:
        super().__init__(tools, short_call_id if format.short_ids else call_id)
        self.phase = "answer" if in_answer or format.thinking is None else "opening"
        self._thinking = format.thinking
        self._reasoning = in_reasoning and format.thinking is not None
        self._unclosed = False
        self._bare = forced_call or (format.bare and bool(self.schemas))
        openers = format.openers if self.schemas and not forced_call else ()
        tags = format.thinking
        always = (tags.opens, tags.closes) if tags is not None and tags.anywhere else ()
        self._trims = bool(openers or always)
        self._text_markers = matcher((*openers, *always))
        self._reasoning_markers = matcher((tags.closes, *openers) if tags is not None else ())

    def read(self) -> Steps[None]:
        opening = not self._reasoning
        if self._reasoning:
            self.phase = self.kind = "reasoning"
            yield from self.drop_space()
        while True:
            if opening:
                self._reasoning = yield from self._opening()
            self.phase = "reasoning" if self._reasoning else "answer"
            if self._reasoning:
                found = yield from self.region("reasoning", self._reasoning_markers, True)
            else:
                found = yield from self.region("text", self._text_markers, self._trims)
            if not found:
                return
            if found in OPENERS:
                opening = yield from self._call(OPENERS[found])
            else:
                opening = yield from self._tag(found)

    def _tag(self, tag: str) -> Steps[bool]:
        """Past a think tag: whether the answer may begin now."""
        opens = self._thinking is not None and tag == self._thinking.opens
        if not (opens or self._reasoning or self._unclosed):
            self.give("text", self.at - len(tag))  # a closing tag that closes nothing
            self.drop()
            return False
        self.drop()
        self._reasoning = opens
        self._unclosed = False
        self.kind = "reasoning" if opens else "text"
        self.phase = "reasoning" if opens else "answer"
        yield from self.drop_space()
        return not self._reasoning

    def _opening(self) -> Steps[bool]:
        """What may stand only before an answer: a think tag, a call that nothing announces."""
        tags = self._thinking
        self.kind = "text"
        while tags is not None or self._bare:
            yield from self.space()
            if tags is not None:
                # Behind a call inside the reasoning, the closing tag may follow or not.
                tag = yield from self.option(tags.opens, *((tags.closes,) if self._unclosed else ()))
                if tag:
                    yield from self._tag(tag)
                    if self._reasoning:
                        return True
                    continue
            bare = self._bare and self.text.startswith(("{", "["), self.at)
            if not bare or not (yield from self._call(_bare_calls)):
                break
        self.at = self.pos
        self._unclosed = False
        return False

    def _call(self, read: CallReader) -> Steps[bool]:
        """Past a tool call; False, and what was read so far is text, if it is none."""
        calls, body, phase = self.calls, self.at, self.phase
        self.phase = "call"
        try:
            yield from read(self)
        except NoCallError:
            if self.ended and self.calling:
                self.at = len(self.text)
                self.arguments(self.text[self.pos :])
        self.phase = phase
        if self.calls == calls:
            self.give(self.kind, body)
            self.at = self.pos
            return False
        self.at = self.pos
        self._unclosed = self._unclosed or self._reasoning
        self._reasoning = False
        self.kind = "text"
        self.phase = "answer"
        yield from self.drop_space()
        return True


def _bare_calls(reader: Reader) -> Steps[None]:
    yield from json_calls(reader, bare=True)
